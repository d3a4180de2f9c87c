"""UniTok: one tokenizer for painting and for understanding, with eight codebooks a token.

Shapes: B images, H and W pixels, h and w tokens, Q codebooks, D width of a token's codes, E width of a text encoder.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor, nn

from mmblocks.checkpoints.layouts import Layout, Rule
from mmblocks.layers.attention_projection import attention_projection_rules
from mmblocks.layers.pixels import pixels_of, rgb_of, torchvision_square
from mmblocks.pickling import weightless
from mmblocks.tokenizers.bottlenecks.multi_codebook import MultiCodebook, unitok_codebooks
from mmblocks.tokenizers.visual_tokenizer import VisualTokenizer
from mmblocks.tokenizers.vitamin import VITAMIN_RULES, ViTaminDecoder, ViTaminEncoder
from mmblocks.tokens import Latents

_SIZES = {
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


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options in UniTok's file, which are handed in by hand; without them the defaults are taken."""
    if config.get("quant_proj", "attn") != "attn":
        raise ValueError(f"quant_proj is {config['quant_proj']!r}; accepted: 'attn'")
    return {
        **_SIZES[config.get("model", "vitamin_large")],
        **unitok_codebooks(config),
        "text_dim": config.get("embed_dim", 768),
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
    """

    layouts: ClassVar[tuple[Layout, ...]] = (Layout("unitok", _RULES, ignored=_LEFT_OUT, config=_config, unwrap="trainer.unitok"),)
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
