"""TiTok and TA-TiTok: an image as a few dozen tokens in a row, which belong to no place in it.

Shapes: B images, H and W pixels, K tokens, D width of a token.
"""

from functools import partial
from typing import ClassVar, Unpack

from jaxtyping import Float, Integer
from PIL import Image as PILImage
from torch import Tensor, nn

from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.layers.images.pixels import pixels_of, rgb_of, torchvision_square
from mmblocks.ops.nearest_code import Metric
from mmblocks.sequence.tokens import Latents
from mmblocks.support.pickling import weightless
from mmblocks.tokenizers.bottlenecks.clustering_vector_quantizer import ClusteringVectorQuantizer
from mmblocks.tokenizers.bottlenecks.codebooks.codebook import Codebook
from mmblocks.tokenizers.bottlenecks.gaussian import DiagonalGaussian
from mmblocks.tokenizers.bottlenecks.vector_quantizer import VectorQuantizer
from mmblocks.tokenizers.titok.layout import (
    HARMLESS,
    ONE_STAGE_RULES,
    TEXT_RULES,
    TWO_STAGE_RULES,
    one_stage_config,
    published_config,
    text_config,
    two_stage_config,
)
from mmblocks.tokenizers.titok.maskgit_vqgan import MaskGITDecoder
from mmblocks.tokenizers.titok.sizes import BASE, TiTokArguments, TiTokSizes
from mmblocks.tokenizers.titok.vit import TiTokCodeDecoder, TiTokDecoder, TiTokEncoder
from mmblocks.tokenizers.visual_tokenizer import VisualTokenizer


class OneDimensionalTokenizer(VisualTokenizer):
    """An image of one size, with pixels in [0, 1] as they are, to a row of tokens (B, K) without a grid.

    Args:
        image_size: sides of an image, in pixels.
        patch_size: sides of the encoder's patches, in pixels.
        encoder, bottleneck, decoder: see ``VisualTokenizer``.
    """

    def __init__(self, *, image_size: int, patch_size: int, encoder: nn.Module, bottleneck: nn.Module, decoder: nn.Module) -> None:
        super().__init__(
            encoder=encoder,
            bottleneck=bottleneck,
            decoder=decoder,
            downsampling=(patch_size, patch_size),  # of the patches: a token spans the whole image
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
        )
        self.image_size = image_size
        self.only_size = (image_size, image_size)
        self.grids = ("K",)

    @weightless
    def preprocess(self, image: PILImage.Image) -> Float[Tensor, "3 H W"]:
        """The square in the middle, after bicubic resizing of the shorter side.

        Source: bytedance/1d-tokenizer, the transform of its evaluation.
        """
        return pixels_of(torchvision_square(rgb_of(image), self.image_size, PILImage.Resampling.BICUBIC))


class TiTok(OneDimensionalTokenizer):
    """The first TiTok: its tokens are decoded to the codes of MaskGIT's VQGAN, and those to pixels.

    The defaults are TiTok-L-32. Training has two stages: cross-entropy between ``decoder.logits(z)`` and the ids of a
    ``MaskGITVQGAN``; then pixel losses, with encoder and bottleneck frozen and the VQGAN's codes and decoder learning too.
    ``FirstStageTiTok`` reads checkpoints of the first stage, which hold no VQGAN.

    Args:
        code_dim: D.
        num_codes: size of the codebook.
        metric: of the codebook.
        num_pixel_codes, pixel_code_dim: of the VQGAN's codebook.
        pixel_channels, pixel_multipliers, pixel_blocks: of its decoder, see ``MaskGITDecoder``.
        sizes: the arguments of ``TiTokSizes``.

    Source: TiTok (arXiv 2406.07550; bytedance/1d-tokenizer).

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers import TiTok
        >>> towers = {"encoder_size": (16, 1, 2), "decoder_size": (16, 1, 2)}
        >>> sizes = {"image_size": 16, "patch_size": 8, "decoder_patch_size": 4, **towers}
        >>> vqgan = {"pixel_channels": 32, "pixel_multipliers": (1, 2, 1), "pixel_blocks": 1, "pixel_code_dim": 8}
        >>> tokenizer = TiTok(num_tokens=5, code_dim=6, num_codes=32, **sizes, **vqgan).eval()
        >>> ids = tokenizer.encode(torch.rand(1, 3, 16, 16)).ids
        >>> tuple(ids.shape), tuple(tokenizer.decode(ids).shape)  # a sequence, not a grid
        ((1, 5), (1, 3, 16, 16))
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "titok",
            TWO_STAGE_RULES,
            config=two_stage_config,
            published_config=partial(published_config, kind="TiTok"),
            harmless=HARMLESS,
        ),
    )
    loss_weights: ClassVar[dict[str, float]] = {"codebook": 1.0, "commitment": 0.25}

    shorthand = TiTokSizes

    def __init__(
        self,
        *,
        code_dim: int = 12,
        num_codes: int = 4096,
        metric: Metric = "cosine",
        num_pixel_codes: int = 1024,
        pixel_code_dim: int = 256,
        pixel_channels: int = 128,
        pixel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        pixel_blocks: int = 2,
        **sizes: Unpack[TiTokArguments],
    ) -> None:
        own = TiTokSizes(**sizes)
        pixel_decoder = MaskGITDecoder(
            channels=pixel_channels, multipliers=pixel_multipliers, num_blocks=pixel_blocks, code_dim=pixel_code_dim
        )
        super().__init__(
            image_size=own.image_size,
            patch_size=own.patch_size,
            encoder=TiTokEncoder(code_dim=code_dim, scrambled=True, **own.encoder()),
            bottleneck=VectorQuantizer(num_codes=num_codes, dim=code_dim, metric=metric),
            decoder=TiTokCodeDecoder(
                codebook=Codebook(num_codes=num_pixel_codes, dim=pixel_code_dim),
                pixel_decoder=pixel_decoder,
                code_dim=code_dim,
                **own.decoder(),
            ),
        )


_ONE_STAGE = partial(TiTokSizes, num_tokens=64, encoder_size=BASE)
_WITH_TEXT = partial(TiTokSizes, encoder_size=BASE)


class OneStageTiTok(OneDimensionalTokenizer):
    """The later TiTok, which decodes straight to pixels and is trained in one stage; with codes, or with a Gaussian.

    The defaults are TiTok-BL-64 with 8,192 codes.

    Args:
        code_dim: D: 64 for codes, 16 for the Gaussian as published.
        num_codes: size of the codebook; None for a Gaussian (``encode`` then takes ``generator=``, ``noise=`` or ``sample=False``).
        metric: of the codebook.
        sizes: the arguments of ``TiTokSizes``.

    Source: TiTok (arXiv 2406.07550), one-stage as in TA-TiTok (arXiv 2501.07730; bytedance/1d-tokenizer).

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers import OneStageTiTok
        >>> towers = {"encoder_size": (16, 1, 2), "decoder_size": (16, 1, 2)}
        >>> sizes = {"image_size": 16, "patch_size": 8, "decoder_patch_size": 4, **towers}
        >>> tokenizer = OneStageTiTok(num_tokens=5, code_dim=6, num_codes=32, **sizes).eval()
        >>> ids = tokenizer.encode(torch.rand(1, 3, 16, 16)).ids
        >>> tuple(ids.shape), tuple(tokenizer.decode(ids).shape)
        ((1, 5), (1, 3, 16, 16))
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "titok",
            ONE_STAGE_RULES,
            config=one_stage_config,
            published_config=partial(published_config, kind="OneStageTiTok"),
            harmless=HARMLESS,
        ),
    )
    loss_weights: ClassVar[dict[str, float]] = {"codebook": 1.0, "commitment": 0.25, "kl": 1e-6}

    shorthand = staticmethod(_ONE_STAGE)

    def __init__(
        self,
        *,
        code_dim: int = 64,
        num_codes: int | None = 8192,
        metric: Metric = "l2",
        **sizes: Unpack[TiTokArguments],
    ) -> None:
        own = _ONE_STAGE(**sizes)
        super().__init__(
            image_size=own.image_size,
            patch_size=own.patch_size,
            encoder=TiTokEncoder(code_dim=2 * code_dim if num_codes is None else code_dim, **own.encoder()),
            bottleneck=_bottleneck(num_codes, code_dim, metric, VectorQuantizer),
            decoder=TiTokDecoder(code_dim=code_dim, **own.decoder()),
        )


class TATiTok(OneDimensionalTokenizer):
    """TiTok whose decoder also reads a text about the image: ``decode(latents, text=...)``.

    The text is what CLIP ViT-L/14's (336 pixels, OpenAI) text tower gives for every one of its 77 tokens after its last norm. The
    defaults are TA-TiTok-BL-32 with 8,192 codes.

    Args:
        code_dim, num_codes, metric: see ``OneStageTiTok``.
        clustering: unused codes move while training, see ``ClusteringVectorQuantizer``: as the published models with codes were
            trained, whose files no longer say so.
        text_dim, text_length: shape of a text's embeddings.
        sizes: the arguments of ``TiTokSizes``.

    Source: TA-TiTok (arXiv 2501.07730; bytedance/1d-tokenizer).

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers import TATiTok
        >>> towers = {"encoder_size": (16, 1, 2), "decoder_size": (16, 1, 2)}
        >>> sizes = {"image_size": 16, "patch_size": 8, "decoder_patch_size": 4, **towers}
        >>> tokenizer = TATiTok(num_tokens=5, code_dim=6, num_codes=32, text_dim=7, text_length=3, **sizes).eval()
        >>> latents = tokenizer.encode(torch.rand(1, 3, 16, 16))
        >>> tuple(tokenizer.decode(latents, text=torch.randn(1, 3, 7)).shape)
        (1, 3, 16, 16)
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "tatitok", TEXT_RULES, config=text_config, published_config=partial(published_config, kind="TATiTok"), harmless=HARMLESS
        ),
    )
    loss_weights: ClassVar[dict[str, float]] = OneStageTiTok.loss_weights

    shorthand = staticmethod(_WITH_TEXT)

    def __init__(
        self,
        *,
        code_dim: int = 64,
        num_codes: int | None = 8192,
        metric: Metric = "l2",
        clustering: bool = False,
        text_dim: int = 768,
        text_length: int = 77,
        **sizes: Unpack[TiTokArguments],
    ) -> None:
        own = _WITH_TEXT(**sizes)
        quantizer = ClusteringVectorQuantizer if clustering else VectorQuantizer
        super().__init__(
            image_size=own.image_size,
            patch_size=own.patch_size,
            encoder=TiTokEncoder(code_dim=2 * code_dim if num_codes is None else code_dim, **own.encoder()),
            bottleneck=_bottleneck(num_codes, code_dim, metric, quantizer),
            decoder=TiTokDecoder(text_dim=text_dim, text_length=text_length, code_dim=code_dim, **own.decoder()),
        )

    def decode(
        self, latents: Latents | Integer[Tensor, "B K"], text: Float[Tensor, "B L T"] | None = None
    ) -> Float[Tensor, "B 3 H W"]:
        """Latents, or ids alone, to pixels in [0, 1]; not clamped while training.

        Args:
            latents: what ``encode`` gave, or ids.
            text: embeddings of a text for each image, of ``text_length`` tokens, ``text_dim`` wide. The decoder needs one: that of
                the empty text where there is none.

        Raises:
            TypeError: ids that are no integers.
            ValueError: ids that do not exist; no text; latents, ids or a text of another shape.
        """
        if text is None:
            raise ValueError("text is missing; accepted: embeddings (B, text_length, text_dim), of the empty text at least")
        z = self.decoder_input(latents)
        pixels = self.decoder(z, text.to(z.dtype))
        return pixels if self.training else pixels.clamp(0, 1)


def _bottleneck(num_codes: int | None, code_dim: int, metric: Metric, quantizer: type[VectorQuantizer]) -> nn.Module:
    return DiagonalGaussian() if num_codes is None else quantizer(num_codes=num_codes, dim=code_dim, metric=metric)
