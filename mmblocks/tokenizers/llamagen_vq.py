"""LlamaGen's image tokenizer, which is also Janus's.

Shapes: B images, H and W pixels, h and w tokens, D width of a code.
"""

from typing import Any, ClassVar, Literal, cast

from jaxtyping import Float, Integer
from PIL import Image as PILImage
from torch import Tensor
from torch.nn.functional import normalize

from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.layers.images.pixels import centre_square, pixels_of, rgb_of
from mmblocks.sequence.tokens import Latents
from mmblocks.support.pickling import weightless
from mmblocks.tokenizers.bottlenecks.vector_quantizer import VectorQuantizer
from mmblocks.tokenizers.conv.conv_autoencoder import ConvDecoder, ConvEncoder
from mmblocks.tokenizers.llamagen_layout import LLAMAGEN_LAYOUTS
from mmblocks.tokenizers.visual_tokenizer import VisualTokenizer


class PlainSearchQuantizer(VectorQuantizer):
    """Searches features and codes as they are, yet hands codes of length one to the decoder: what transformers' Janus does.

    Losses are of the codes as they are.
    """

    def forward(self, features: Float[Tensor, "B *grid D"]) -> Latents:
        """Quantises the last axis.

        Raises:
            ValueError: if a value is not finite.
        """
        latents = super().forward(features)
        ids = cast("Tensor", latents.ids)
        return latents._replace(z=features + (normalize(self.rows(ids), dim=-1) - features).detach())

    def lookup(self, ids: Integer[Tensor, "*N"]) -> Float[Tensor, "*N D"]:
        """Codes by number, scaled to length one; raises as ``Codebook.lookup``."""
        return normalize(super().lookup(ids), dim=-1)

    def mix(self, weights: Float[Tensor, "*N K"]) -> Float[Tensor, "*N D"]:
        """The mixture of codes of length one with these weights."""
        return weights @ normalize(self.codes, dim=-1)


class LlamaGenVQ(VisualTokenizer):
    """A VQGAN with attention at its deepest level alone, and narrow codes of length one, searched by angle.

    Args:
        num_codes: size of the codebook.
        code_dim: width of a code.
        channels, multipliers, num_blocks, latent_channels: see ``ConvEncoder``.
        decoder_multipliers: of the decoder's levels, from the finest; None for those of the encoder.
        search: "cosine" as published; "l2" for a model trained so; "l2-as-transformers" to get the ids of transformers' port of
            Janus, which searches without scaling codes to length one, but decodes with codes of length one.
        entropy_temperature: also return entropies while training, see ``VectorQuantizer`` (0.01 in LlamaGen).
        image_size: sides, in pixels, of what ``preprocess`` gives.

    Raises:
        ValueError: another number of ``decoder_multipliers`` than of ``multipliers``.

    The defaults are VQ-16, which Janus and Janus-Pro use too. Files hold ``quantize.codebook_used``, a statistic of training,
    which is dropped.

    Source: LlamaGen (arXiv 2406.06525; FoundationVision/LlamaGen), Janus (arXiv 2410.13848; deepseek-ai/Janus).

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers import LlamaGenVQ
        >>> sizes = {"channels": 32, "multipliers": (1, 1), "num_blocks": 1, "latent_channels": 16}
        >>> tokenizer = LlamaGenVQ(num_codes=64, code_dim=8, **sizes).eval()
        >>> latents = tokenizer.encode(torch.rand(1, 3, 8, 12))
        >>> tuple(latents.ids.shape), tuple(tokenizer.decode(latents.ids).shape)
        ((1, 4, 6), (1, 3, 8, 12))
        >>> torch.allclose(latents.z.norm(dim=-1), torch.ones(1, 4, 6), atol=1e-5)  # codes of length one
        True
    """

    layouts: ClassVar[tuple[Layout, ...]] = LLAMAGEN_LAYOUTS
    loss_weights: ClassVar[dict[str, float]] = {"codebook": 1.0, "commitment": 0.25}

    def __init__(
        self,
        *,
        num_codes: int = 16384,
        code_dim: int = 8,
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        decoder_multipliers: tuple[int, ...] | None = None,
        num_blocks: int = 2,
        latent_channels: int = 256,
        search: Literal["cosine", "l2", "l2-as-transformers"] = "cosine",
        entropy_temperature: float | None = None,
        image_size: int = 256,
    ) -> None:
        decoder_multipliers = multipliers if decoder_multipliers is None else decoder_multipliers
        if len(decoder_multipliers) != len(multipliers):
            raise ValueError(f"decoder_multipliers is {decoder_multipliers}; accepted: as many as multipliers, {len(multipliers)}")
        network: dict[str, Any] = {
            "channels": channels,
            "multipliers": multipliers,
            "num_blocks": num_blocks,
            "attention_levels": (len(multipliers) - 1,),
            "latent_channels": latent_channels,
            "code_dim": code_dim,
        }
        quantizer = PlainSearchQuantizer if search == "l2-as-transformers" else VectorQuantizer
        step = 2 ** (len(multipliers) - 1)
        super().__init__(
            encoder=ConvEncoder(**network),
            bottleneck=quantizer(
                num_codes=num_codes,
                dim=code_dim,
                metric="cosine" if search == "cosine" else "l2",
                entropy_temperature=entropy_temperature,
            ),
            decoder=ConvDecoder(**network | {"multipliers": decoder_multipliers}, deepest_first=True),
            downsampling=(step, step),
        )
        self.image_size = image_size

    @weightless
    def preprocess(self, image: PILImage.Image) -> Float[Tensor, "3 H W"]:
        """Halved (box filter) while both sides stay above twice ``image_size``, then bicubic, then the square in the middle."""
        image = rgb_of(image)
        while min(image.size) >= 2 * self.image_size:
            image = image.resize((image.width // 2, image.height // 2), PILImage.Resampling.BOX)
        return pixels_of(centre_square(image, self.image_size, PILImage.Resampling.BICUBIC))
