"""MingTok, the continuous tokenizer of Ming-UniVision: one latent to understand images by and to paint them with.

Shapes: B images, H and W pixels, N tokens of a row, D width of a latent, F width of a semantic feature.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor

from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import check_model, only, shown, title
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.layers.images.pixels import pixels_of, rgb_of, torchvision_square
from mmblocks.sequence.tokens import Latents
from mmblocks.support.pickling import weightless
from mmblocks.tokenizers.bottlenecks.affine import AffineBottleneck
from mmblocks.tokenizers.ming_tok.vit import HEAD_DIM, MingTokDecoder, MingTokEncoder, MingTokSemanticDecoder
from mmblocks.tokenizers.visual_tokenizer import VisualTokenizer

_SWIGLU = (("mlp.w12.*", "mlp.fc1.*"), ("mlp.w3.*", "mlp.fc2.*"))
_GELU = (("mlp.fc1.*", "mlp.fc1.*"), ("mlp.fc2.*", "mlp.fc2.*"))


def _transformer_rules(theirs: str, ours: str, feed_forward: tuple[tuple[str, str], ...]) -> tuple[Rule, ...]:
    """Blocks are numbered within chunks, of which the published models have one."""
    same = ((name, name) for name in ("norm1.*", "norm2.*", "attn.qkv.*", "attn.proj.*"))
    return tuple(Rule(f"{theirs}.blocks.0.{{}}.{key}", f"{ours}.blocks.{{}}.{name}") for key, name in (*same, *feed_forward))


_RULES = (
    *_transformer_rules("low_level_encoder", "encoder", _SWIGLU),
    Rule("low_level_encoder.cls_token", "encoder.class_token"),
    Rule("low_level_encoder.pos_embed", "encoder.positions"),
    Rule("low_level_encoder.patch_embed.proj.*", "encoder.patch_embed.*"),
    Rule("low_level_encoder.out_norm.*", "encoder.norm.*"),
    Rule("low_level_encoder.out_proj.*", "encoder.project.*"),
    *_transformer_rules("semantic_decoder", "decoder.semantic", _SWIGLU),
    Rule("semantic_decoder.in_proj.*", "decoder.semantic.project.*"),
    Rule("semantic_decoder.norm.*", "decoder.semantic.norm.*"),
    Rule("sem_to_pix.*", "decoder.split.*"),
    *_transformer_rules("pixel_decoder", "decoder", _GELU),
    Rule("pixel_decoder.norm.*", "decoder.norm.*"),
    Rule("pixel_decoder.head.*", "decoder.to_pixels.*"),
)


_TRAINING = ("initialization_method", "fa_enable", "frozen", "norm_pix_loss", "loss_type", "enable_lpips_loss")
_HARMLESS = (
    "pretrained_checkpoint",
    "model_dtype",
    *(f"{part}.{name}" for part in ("low_level_encoder", "semantic_decoder", "pixel_decoder") for name in _TRAINING),
)
"""How the parts are made and trained, and which kernels they run on."""


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Ming's config; sizes that its own may leave out are required, since none of its defaults is a published model's."""
    check_model(config, "mingtok")
    encoder, semantic, pixel = (config[name] for name in ("low_level_encoder", "semantic_decoder", "pixel_decoder"))
    for part in (encoder, semantic):
        kind = part.get("ffn_layer", "mlp")
        if kind not in ("swiglu", "swiglufused"):
            raise ValueError(f"{title(part, 'ffn_layer')} is {shown(kind)}; accepted: 'swiglu', 'swiglufused'")
    only(pixel, "ffn_layer", "mlp")
    for part in (encoder, semantic, pixel):
        _check_transformer(part)
    only(semantic, "in_dim", encoder["out_dim"])
    if semantic.get("patch_size", 16) != encoder["patch_size"]:
        raise ValueError(f"semantic_decoder.patch_size is {semantic.get('patch_size', 16)}; accepted: {encoder['patch_size']}")
    return {
        "image_size": encoder["img_size"],
        "patch_size": encoder["patch_size"],
        "latent_dim": encoder["out_dim"],
        "encoder_size": (encoder["embed_dim"], encoder["depth"]),
        "semantic_size": (semantic["embed_dim"], semantic["decoder_depth"]),
        "pixel_size": (pixel["embed_dim"], pixel["decoder_depth"]),
        "pixel_patch_size": pixel["patch_size"],
        "latent_mean": config.get("mean", 0.0),
        "latent_std": config.get("scaling_factor", 1.0),
    }


def _check_transformer(part: Mapping[str, Any]) -> None:
    """Ming's own builder gives every transformer heads of 64 and MLPs of four times its width, whatever a config says."""
    only(part, "num_heads", part["embed_dim"] // HEAD_DIM)
    only(part, "mlp_ratio", 4)
    only(part, "qkv_bias", True)
    only(part, "in_chans", 3)
    only(part, "num_register_tokens", 0)


def _published_config(arguments: Arguments) -> dict[str, Any]:
    names = ("encoder_size", "semantic_size", "pixel_size")
    (dim, layers), (semantic_dim, semantic_layers), (pixel_dim, pixel_layers) = (arguments[name] for name in names)
    patch_size, latent_dim = arguments["patch_size"], arguments["latent_dim"]
    return {
        "model_type": "mingtok",
        "low_level_encoder": {
            "img_size": arguments["image_size"],
            "patch_size": patch_size,
            "depth": layers,
            "embed_dim": dim,
            "ffn_layer": "swiglufused",
            "out_dim": latent_dim,
        },
        "semantic_decoder": {
            "in_dim": latent_dim,
            "patch_size": patch_size,
            "embed_dim": semantic_dim,
            "decoder_depth": semantic_layers,
            "ffn_layer": "swiglufused",
        },
        "pixel_decoder": {
            "patch_size": arguments["pixel_patch_size"],
            "decoder_depth": pixel_layers,
            "embed_dim": pixel_dim,
        },
        "mean": arguments["latent_mean"],
        "scaling_factor": arguments["latent_std"],
    }


class MingTok(VisualTokenizer):
    """Pixels to a grid of continuous latents, without codes and without draws; ``semantic`` gives what a language model reads.

    Ming-UniVision feeds the semantic features of images that it is shown and of images that it paints, latent by latent, alike.

    Args:
        image_size: sides, in pixels, that the encoder's positions are learned for, and of what ``preprocess`` gives; any
            multiples of ``patch_size`` are accepted.
        patch_size: pixels a latent spans.
        latent_dim: D.
        encoder_size, semantic_size, pixel_size: width, a multiple of 64, and layers of the three transformers.
        pixel_patch_size: pixels a patch of the pixel decoder spans.
        latent_mean, latent_std: of the encoder's outputs over the training data; latents are brought to 0 and 1.

    Source: MingTok (arXiv 2510.06590; inclusionAI/Ming-UniVision).

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers import MingTok
        >>> towers = {"encoder_size": (64, 1), "semantic_size": (64, 1), "pixel_size": (64, 1), "pixel_patch_size": 4}
        >>> tokenizer = MingTok(image_size=16, patch_size=8, latent_dim=4, **towers).eval()
        >>> latents = tokenizer.encode(torch.rand(1, 3, 16, 24))
        >>> tuple(latents.z.shape), tuple(tokenizer.semantic(latents).shape), tuple(tokenizer.decode(latents).shape)
        ((1, 2, 3, 4), (1, 2, 3, 64), (1, 3, 16, 24))
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout("mingtok", _RULES, config=_config, published_config=_published_config, harmless=_HARMLESS),
    )

    def __init__(
        self,
        *,
        image_size: int = 512,
        patch_size: int = 32,
        latent_dim: int = 32,
        encoder_size: tuple[int, int] = (768, 12),
        semantic_size: tuple[int, int] = (1024, 24),
        pixel_size: tuple[int, int] = (1024, 24),
        pixel_patch_size: int = 16,
        latent_mean: float = 1.46817409,
        latent_std: float = 8.09449291,
    ) -> None:
        (dim, layers), (semantic_dim, semantic_layers), (pixel_dim, pixel_layers) = encoder_size, semantic_size, pixel_size
        semantic = MingTokSemanticDecoder(
            latent_dim=latent_dim,
            dim=semantic_dim,
            num_layers=semantic_layers,
            latent_mean=latent_mean,
            latent_std=latent_std,
        )
        super().__init__(
            encoder=MingTokEncoder(image_size=image_size, patch_size=patch_size, latent_dim=latent_dim, dim=dim, num_layers=layers),
            bottleneck=AffineBottleneck(mean=latent_mean, std=latent_std),
            decoder=MingTokDecoder(
                semantic=semantic,
                semantic_dim=semantic_dim,
                patch_size=patch_size,
                pixel_patch_size=pixel_patch_size,
                dim=pixel_dim,
                num_layers=pixel_layers,
            ),
            downsampling=(patch_size, patch_size),
        )
        self.image_size = image_size

    def semantic(self, latents: Latents | Float[Tensor, "B *grid D"]) -> Float[Tensor, "B *grid F"]:
        """The features that a language model reads of an image: each knows the latents up to its own.

        Args:
            latents: what ``encode`` gave, or its ``z`` alone; or the first latents of an image, in a row (B, N, D).
        """
        return self.decoder.get_submodule("semantic")(latents.z if isinstance(latents, Latents) else latents)

    @weightless
    def preprocess(self, image: PILImage.Image) -> Float[Tensor, "3 H W"]:
        """The square in the middle, after bicubic resizing of the shorter side, as upstream prepares images to rebuild.

        For understanding, Ming-UniVision instead squeezes the whole image into 1,024 x 1,024 pixels.

        Source: inclusionAI/Ming-UniVision, ``CenterCropProcessor``.
        """
        return pixels_of(torchvision_square(rgb_of(image), self.image_size, PILImage.Resampling.BICUBIC))
