"""MingTok, the continuous tokenizer of Ming-UniVision: one latent to understand images by and to paint them with.

Shapes: B images, H and W pixels, N tokens of a row, D width of a latent, F width of a semantic feature.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor

from mmblocks.checkpoints.layouts import Layout, Rule
from mmblocks.layers.pixels import pixels_of, rgb_of, torchvision_square
from mmblocks.pickling import weightless
from mmblocks.tokenizers.bottlenecks.affine import AffineBottleneck
from mmblocks.tokenizers.ming_tok_vit import MingTokDecoder, MingTokEncoder, MingTokSemanticDecoder
from mmblocks.tokenizers.visual_tokenizer import VisualTokenizer
from mmblocks.tokens import Latents

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


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    encoder, semantic, pixel = (config[name] for name in ("low_level_encoder", "semantic_decoder", "pixel_decoder"))
    for part in (encoder, semantic):
        kind = part.get("ffn_layer", "mlp")
        if kind not in ("swiglu", "swiglufused"):
            raise ValueError(f"ffn_layer is {kind!r}; accepted: 'swiglu', 'swiglufused'")
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
    """

    layouts: ClassVar[tuple[Layout, ...]] = (Layout("mingtok", _RULES, config=_config),)

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
        semantic: Any = self.decoder.semantic
        return semantic(latents.z if isinstance(latents, Latents) else latents)

    @weightless
    def preprocess(self, image: PILImage.Image) -> Float[Tensor, "3 H W"]:
        """The square in the middle, behind bicubic resizing of the shorter side, as upstream prepares images to rebuild.

        For understanding, Ming-UniVision instead squeezes the whole image into 1,024 x 1,024 pixels.

        Source: inclusionAI/Ming-UniVision, ``CenterCropProcessor``.
        """
        return pixels_of(torchvision_square(rgb_of(image), self.image_size, PILImage.Resampling.BICUBIC))
