"""UniTok: one tokenizer for painting and for understanding, with eight codebooks a token.

Shapes: B images, H and W pixels, h and w tokens, Q codebooks, D width of a token's codes, E width of a text encoder.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor, nn

from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import only, read_own, shown, written_own
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.layers.images.pixels import pixels_of, rgb_of, torchvision_square
from mmblocks.sequence.tokens import Latents
from mmblocks.support.pickling import weightless
from mmblocks.tokenizers.bottlenecks.multi_codebook import MultiCodebook, unitok_codebooks
from mmblocks.tokenizers.towers.attention_projection import attention_projection_rules
from mmblocks.tokenizers.towers.vitamin import VITAMIN_RULES, ViTaminDecoder, ViTaminEncoder
from mmblocks.tokenizers.visual_tokenizer import VisualTokenizer

_SIZES: dict[str, dict[str, Any]] = {
    "vitamin_base": {"dim": 768, "widths": (128, 256), "num_layers": 14, "num_heads": 12},
    "vitamin_large": {"dim": 1024, "widths": (160, 320), "num_layers": 31, "num_heads": 16},
}

_RULES = (
    *VITAMIN_RULES,
    *attention_projection_rules("quant_proj.", "encoder.project."),
    Rule("quantizer.codebooks.{}.codebook.weight", "bottleneck.codebooks.{}.codes"),
    *attention_projection_rules("post_quant_proj.", "decoder.project."),
    Rule("fc_norm.*", "text_norm.*"),
    Rule("projection.*", "to_text.*"),
)
_LEFT_OUT = ("encoder.pos_embed", "quantizer.codebooks.{}.vocab_usage", "text_encoder.*", "logit_scale")


_DEPTHS = {"depths": (2, 4), "decoder_depths": (4, 2)}

_HARMLESS = (
    # the quantiser's losses, and an option that nothing reads
    *("vq_beta", "beta", "le", "lq", "e_temp", "use_entropy_loss", "entropy_temp", "vocab_norm"),
    # the text encoder, and how it and the image encoder begin
    *("text_width", "text_heads", "text_layers", "text_vocab_size", "text_context_length", "use_clip_pretrain"),
    *("clip_pretrain_path", "pretrained_clip", "pretrained_clip_text", "lock_text", "lock_text_unlocked_layers"),
    *("lock_text_freeze_layer_norm", "force_custom_text", "force_custom_vision", "local_loss", "gather_with_grad"),
    *("vae_init", "vocab_init", "disc_init", "drop_path"),
    # files, devices and number formats
    *("exp_name", "output_dir", "resume_from", "lpips_path", "dino_path", "fid_eval_src", "fid_eval_dst", "vis_img_dir"),
    *("fid_feature_extractor", "fp16", "bf16", "tf32", "compile_model", "ddp_static", "grad_ckpt", "grad_accu", "device"),
    *("seed", "deterministic", "same_seed_for_all_ranks", "report_wandb", "wandb_notes", "run_id", "eval_per_epoch"),
    *("dbg_unused_param", "dbg_nan", "zeroshot_eval_freq"),
    # data
    *("train_data", "val_data", "dataset_type", "imagenet_val", "imagenet_v2", "subset_ratio", "hflip", "workers"),
    *("train_num_samples", "train_data_upsampling_factors", "dataset_resampled", "use_aug"),
    # the discriminator, the optimiser and the weights of losses
    *("dino_depth", "dino_kernel_size", "disc_norm", "disc_aug_prob", "disc_specnorm", "step_disc_every", "disc_lr", "disc_wd"),
    *("disc_start_ep", "disc_warmup_ep", "disc_lr_end_ratio", "disc_optim_beta", "dcrit", "gada", "bcr", "bcr_cut"),
    *("epoch", "local_bs", "vae_local_bs", "global_bs", "lr", "wd", "grad_clip", "ema", "warmup_iter", "warmup_ep", "schedule"),
    *("lr_start_ratio", "lr_end_ratio", "custom_lr_multiplier", "optimizer", "optim_eps", "fuse_opt", "optim_beta"),
    *("l1", "l2", "lp", "lpr", "ld", "lc"),
)
"""Of the arguments of UniTok's training script, which its file holds all of."""


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options in UniTok's file, which are handed in by hand; without them the defaults are taken."""
    only(config, "quant_proj", "attn")
    only(config, "num_query", 0)
    only(config, "patch_size", 16)
    only(config, "resize_ratio", 1.125)
    model = config.get("model", "vitamin_large")
    if model not in _SIZES:
        raise ValueError(f"model is {shown(model)}; accepted: {', '.join(_SIZES)}")
    return {
        **read_own(config, {**_SIZES[model], **_DEPTHS}),
        **unitok_codebooks(config),
        "text_dim": config.get("embed_dim", 768),
        "image_size": config.get("img_size", 256),
    }


def _published_config(arguments: Arguments) -> dict[str, Any]:
    """The options of UniTok's training script; sizes that it has no name for are written as they are, and read here alone."""
    count, temperature = arguments["num_codebooks"], arguments["entropy_temperature"]
    known = (name for name, sizes in _SIZES.items() if all(arguments[key] == value for key, value in sizes.items()))
    model = next(known, "vitamin_large")
    return {
        "model": model,
        "num_codebooks": count,
        "vocab_size": count * arguments["num_codes"],
        "vocab_width": count * arguments["code_dim"],
        "quant_proj": "attn",
        "embed_dim": arguments["text_dim"],
        "img_size": arguments["image_size"],
        **({"le": 0.0} if temperature is None else {"le": 1.0, "e_temp": temperature}),
        **written_own(arguments, {**_SIZES[model], **_DEPTHS}),
    }


class UniTok(VisualTokenizer):
    """ViTamin on both sides, attention that narrows and widens tokens, and codebooks that are trained with text too.

    Training with text takes a text encoder beside it: ``embedding`` is what it is compared with. The published file holds one;
    it is left out here, as are its temperature and statistics of training.

    Args:
        num_codebooks, num_codes, code_dim, entropy_temperature: see ``MultiCodebook``.
        dim, widths, depths, num_layers, num_heads: see ``ViTaminEncoder``.
        decoder_depths: see ``ViTaminDecoder``.
        text_dim: E.
        image_size: sides, in pixels, of what ``preprocess`` gives.

    The defaults are the published model.

    Source: UniTok (arXiv 2502.20321; FoundationVision/UniTok).

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers import UniTok
        >>> sizes = {"dim": 32, "widths": (8, 16), "depths": (1, 1), "decoder_depths": (1, 1), "num_layers": 1, "num_heads": 2}
        >>> tokenizer = UniTok(num_codebooks=2, num_codes=16, code_dim=4, text_dim=12, **sizes).eval()
        >>> latents = tokenizer.encode(torch.rand(1, 3, 32, 16))
        >>> tuple(latents.ids.shape), tuple(tokenizer.decode(latents.ids).shape), tuple(tokenizer.embedding(latents).shape)
        ((1, 2, 1, 2), (1, 3, 32, 16), (1, 12))
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "unitok",
            _RULES,
            ignored=_LEFT_OUT,
            config=_config,
            published_config=_published_config,
            unwrap="trainer.unitok",
            harmless=_HARMLESS,
        ),
    )
    loss_weights: ClassVar[dict[str, float]] = {"codebook": 1.0, "commitment": 0.25}
    decoder: ViTaminDecoder

    def __init__(
        self,
        *,
        num_codebooks: int = 8,
        num_codes: int = 4096,
        code_dim: int = 8,
        entropy_temperature: float | None = None,
        dim: int = 1024,
        widths: tuple[int, int] = (160, 320),
        depths: tuple[int, int] = (2, 4),
        decoder_depths: tuple[int, int] = (4, 2),
        num_layers: int = 31,
        num_heads: int = 16,
        text_dim: int = 768,
        image_size: int = 256,
    ) -> None:
        network: dict[str, Any] = {
            "dim": dim,
            "widths": widths,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "code_dim": num_codebooks * code_dim,
        }
        super().__init__(
            encoder=ViTaminEncoder(**network, depths=depths),
            bottleneck=MultiCodebook(
                num_codebooks=num_codebooks, num_codes=num_codes, code_dim=code_dim, entropy_temperature=entropy_temperature
            ),
            decoder=ViTaminDecoder(**network, depths=decoder_depths),
            downsampling=(16, 16),
        )
        self.image_size = image_size
        self.text_norm = nn.LayerNorm(dim, eps=1e-6)
        self.to_text = nn.Linear(dim, text_dim)

    def embedding(self, latents: Latents) -> Float[Tensor, "B E"]:
        """One vector an image, to be compared with a text's by angle: the mean of its tokens, as the decoder reads them."""
        return self.to_text(self.text_norm(self.decoder.project(latents.z).mean(dim=(1, 2))))

    @weightless
    def preprocess(self, image: PILImage.Image) -> Float[Tensor, "3 H W"]:
        """Shorter side to 9/8 of ``image_size`` (bilinear), then the square in the middle.

        Source: FoundationVision/UniTok, ``inference.py``.
        """
        shorter = int(self.image_size * 1.125)
        return pixels_of(torchvision_square(rgb_of(image), self.image_size, PILImage.Resampling.BILINEAR, shorter=shorter))
