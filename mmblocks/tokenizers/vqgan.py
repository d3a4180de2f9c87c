"""VQGAN, the image tokenizer of taming-transformers, and Chameleon's, which is one.

Shapes: B images, H and W pixels, h and w tokens, D width of a code.
"""

from dataclasses import asdict
from functools import partial
from typing import ClassVar, Unpack

from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor, nn

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.layers.images.pixels import centre_square, on_white, pixels_of
from mmblocks.support.pickling import weightless
from mmblocks.tokenizers.bottlenecks.vector_quantizer import VectorQuantizer
from mmblocks.tokenizers.conv.conv_autoencoder import ConvArguments, ConvDecoder, ConvEncoder, ConvSizes
from mmblocks.tokenizers.visual_tokenizer import VisualTokenizer
from mmblocks.tokenizers.vqgan_layout import CHAMELEON_LAYOUTS, VQGAN_LAYOUTS


class MissingDecoder(Block):
    """Stands where a checkpoint holds no decoder, and keeps the projection in front of it, which it does hold.

    Args:
        latent_channels, code_dim: as in ``ConvDecoder``.
    """

    def __init__(self, *, latent_channels: int, code_dim: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(code_dim, latent_channels, 1)

    def forward(self, features: Float[Tensor, "B h w D"]) -> Tensor:
        """Raises ``ValueError``."""
        raise ValueError("this checkpoint holds no decoder; load the official one, which does, to decode")


_SIZES = partial(ConvSizes, attention_levels=(4,))


class VQGAN(VisualTokenizer):
    """Convolutions with a little attention, and a codebook searched by Euclidean distance.

    Args:
        num_codes: size of the codebook.
        code_dim: width of a code.
        has_decoder: False where only images are to become codes.
        deepest_first: order of the decoder's levels in its files, see ``ConvDecoder``.
        network: the arguments of ``ConvSizes``.

    The defaults are those of the ImageNet model of 16 x 16 pixels a token and 1,024 codes.

    Source: Esser et al., Taming Transformers (arXiv 2012.09841; CompVis/taming-transformers).

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers import VQGAN
        >>> sizes = {"channels": 32, "multipliers": (1, 2), "num_blocks": 1, "attention_levels": (), "latent_channels": 16}
        >>> tokenizer = VQGAN(num_codes=64, code_dim=16, **sizes).eval()
        >>> ids = tokenizer.encode(torch.rand(1, 3, 8, 12)).ids
        >>> tuple(ids.shape), tuple(tokenizer.decode(ids).shape)
        ((1, 4, 6), (1, 3, 8, 12))
    """

    layouts: ClassVar[tuple[Layout, ...]] = VQGAN_LAYOUTS
    shorthand = staticmethod(_SIZES)
    loss_weights: ClassVar[dict[str, float]] = {"codebook": 0.25, "commitment": 1.0}

    def __init__(
        self,
        *,
        num_codes: int = 1024,
        code_dim: int = 256,
        has_decoder: bool = True,
        deepest_first: bool = False,
        **network: Unpack[ConvArguments],
    ) -> None:
        sizes = _SIZES(**network)
        step = 2 ** (len(sizes.multipliers) - 1)
        decoder = (
            ConvDecoder(code_dim=code_dim, deepest_first=deepest_first, **asdict(sizes))
            if has_decoder
            else MissingDecoder(latent_channels=sizes.latent_channels, code_dim=code_dim)
        )
        super().__init__(
            encoder=ConvEncoder(code_dim=code_dim, **asdict(sizes)),
            bottleneck=VectorQuantizer(num_codes=num_codes, dim=code_dim),
            decoder=decoder,
            downsampling=(step, step),
        )


class ChameleonVQ(VQGAN):
    """Chameleon's and Anole's tokenizer: a VQGAN without attention but in the middle, 8,192 codes, 16 x 16 pixels a token.

    Args:
        image_size: shorter side, in pixels, to which ``preprocess`` brings an image before it cuts a square.
        has_decoder: transformers' checkpoints of Chameleon hold the encoder's half alone, and cannot decode.
        num_codes, code_dim: as in ``VQGAN``.
        mean, std: see ``VisualTokenizer``.
        network: the arguments of ``ConvSizes``.

    Source: Chameleon (arXiv 2405.09818; facebookresearch/chameleon), Anole (arXiv 2407.06135; GAIR-NLP/anole).

    Examples:
        >>> import torch
        >>> from PIL import Image
        >>> from mmblocks.tokenizers import ChameleonVQ
        >>> sizes = {"channels": 32, "multipliers": (1, 1), "num_blocks": 1, "latent_channels": 16}
        >>> tokenizer = ChameleonVQ(num_codes=64, code_dim=16, image_size=16, **sizes).eval()
        >>> pixels = tokenizer.preprocess(Image.new("RGB", (80, 40)))
        >>> tuple(pixels.shape), tuple(tokenizer.encode(pixels[None]).ids.shape)
        ((3, 16, 16), (1, 8, 8))
    """

    layouts: ClassVar[tuple[Layout, ...]] = CHAMELEON_LAYOUTS
    shorthand = staticmethod(ConvSizes)

    def __init__(
        self,
        *,
        num_codes: int = 8192,
        code_dim: int = 256,
        image_size: int = 512,
        has_decoder: bool = True,
        mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        std: tuple[float, ...] = (0.5, 0.5, 0.5),
        **network: Unpack[ConvArguments],
    ) -> None:
        sizes = asdict(ConvSizes(**network))
        super().__init__(num_codes=num_codes, code_dim=code_dim, has_decoder=has_decoder, **sizes)
        self.image_size = image_size
        self.mean = mean
        self.std = std

    @weightless
    def preprocess(self, image: PILImage.Image) -> Float[Tensor, "3 H W"]:
        """On white where it is transparent; shorter side to ``image_size`` (Lanczos), then the square in the middle."""
        return pixels_of(centre_square(on_white(image), self.image_size, PILImage.Resampling.LANCZOS))
