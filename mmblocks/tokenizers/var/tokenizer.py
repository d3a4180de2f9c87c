"""VAR's tokenizer: a VQGAN whose codes go from coarse to fine.

Shapes: B images, H and W pixels, h and w places of the finest scale, L tokens of all scales together, D width of a code.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

from jaxtyping import Float, Integer
from PIL import Image as PILImage
from torch import Tensor

from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.checkpoints.layouts.published_config import only
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.layers.images.pixels import check_pixels, normalised_for, pixels_of, rgb_of, torchvision_square
from mmblocks.sequence.tokens import Latents
from mmblocks.support.pickling import weightless
from mmblocks.tokenizers.bottlenecks.multi_scale import MultiScaleQuantizer, Scale
from mmblocks.tokenizers.conv.blocks import Conv2d
from mmblocks.tokenizers.conv.conv_autoencoder import ConvDecoder, ConvEncoder
from mmblocks.tokenizers.var.layout import NETWORK_RULES, published_quantizer, quantizer_arguments, quantizer_rules
from mmblocks.tokenizers.visual_tokenizer import VisualTokenizer


def _config(config: Mapping[str, Any], layout: str) -> dict[str, Any]:
    """VAR's options; its file comes without any, and is that of the defaults."""
    only(config, "quant_conv_ks", 3)
    only(config, "using_sa", True)
    only(config, "using_mid_sa", True)
    only(config, "in_channels", 3)
    only(config, "double_z", False)
    quantizer = quantizer_arguments(config, layout)
    only(config, "default_qresi_counts", 0, len(quantizer["scales"]))
    if quantizer["blend"] < 1e-6:
        raise ValueError("quant_resi is 0, which leaves the smoothing convolutions out; accepted: any other number")
    return {
        **quantizer,
        "code_dim": config.get("z_channels", 32),
        "channels": config.get("ch", 160),
        "multipliers": tuple(config.get("ch_mult", (1, 1, 2, 2, 4))),
        "num_blocks": config.get("num_res_blocks", 2),
    }


def _published_config(arguments: Arguments) -> dict[str, Any]:
    """Under the names of VAR's class, which has no config file."""
    return {
        **published_quantizer(arguments),
        "z_channels": arguments["code_dim"],
        "ch": arguments["channels"],
        "ch_mult": list(arguments["multipliers"]),
        "num_res_blocks": arguments["num_blocks"],
    }


class VAREncoder(ConvEncoder):
    """A ``ConvEncoder`` that ends in a 3x3 convolution.

    Args:
        channels, multipliers, num_blocks, attention_levels: see ``ConvEncoder``.
        code_dim: width of a code.
    """

    def __init__(
        self, *, channels: int, multipliers: tuple[int, ...], num_blocks: int, attention_levels: tuple[int, ...], code_dim: int
    ) -> None:
        super().__init__(
            channels=channels,
            multipliers=multipliers,
            num_blocks=num_blocks,
            attention_levels=attention_levels,
            latent_channels=code_dim,
            code_dim=None,
        )
        self.project = Conv2d(code_dim, code_dim, 3, padding=1)


class VARDecoder(ConvDecoder):
    """A ``ConvDecoder`` that begins with a 3x3 convolution.

    Args:
        channels, multipliers, num_blocks, attention_levels: see ``ConvDecoder``.
        code_dim: width of a code.
    """

    def __init__(
        self, *, channels: int, multipliers: tuple[int, ...], num_blocks: int, attention_levels: tuple[int, ...], code_dim: int
    ) -> None:
        super().__init__(
            channels=channels,
            multipliers=multipliers,
            num_blocks=num_blocks,
            attention_levels=attention_levels,
            latent_channels=code_dim,
            code_dim=None,
        )
        self.project = Conv2d(code_dim, code_dim, 3, padding=1)


class VARVQ(VisualTokenizer):
    """An image as grids of codes, each finer than the one before: ids are one sequence, the coarsest first.

    The model was trained for one size, that of the last scale; ``scales`` for another size or shape may be given call by call.

    Args:
        num_codes: size of the codebook.
        code_dim: width of a code.
        scales, num_blends, blend, metric: see ``MultiScaleQuantizer``.
        channels, multipliers, num_blocks: see ``ConvEncoder``; attention is at the deepest level.

    The defaults are the published ``vae_ch160v4096z32.pth``, which comes without a config.

    Source: VAR (arXiv 2404.02905; FoundationVision/VAR).

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers import VARVQ
        >>> tokenizer = VARVQ(channels=32, multipliers=(1, 1), num_blocks=1, num_codes=16, code_dim=8, scales=(1, 2, 4)).eval()
        >>> ids = tokenizer.encode(torch.rand(1, 3, 8, 8)).ids
        >>> tuple(ids.shape), len(tokenizer.stages(ids))  # 1 + 4 + 16 codes; an image after each scale
        ((1, 21), 3)
        >>> torch.allclose(tokenizer.stages(ids)[-1], tokenizer.decode(ids))
        True
    """

    layouts: ClassVar[tuple[Layout, ...]] = tuple(
        Layout(
            name,
            (*NETWORK_RULES, *rules),
            config=partial(_config, layout=name),
            published_config=_published_config,
            harmless=("beta", "test_mode"),
        )
        for name, rules in quantizer_rules("quantize.", "bottleneck.").items()
    )
    loss_weights: ClassVar[dict[str, float]] = {"codebook": 1.0, "commitment": 0.25}
    bottleneck: MultiScaleQuantizer

    def __init__(
        self,
        *,
        num_codes: int = 4096,
        code_dim: int = 32,
        scales: tuple[Scale, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
        num_blends: int = 4,
        blend: float = 0.5,
        metric: Literal["l2", "cosine"] = "l2",
        channels: int = 160,
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        num_blocks: int = 2,
    ) -> None:
        network: dict[str, Any] = {
            "channels": channels,
            "multipliers": multipliers,
            "num_blocks": num_blocks,
            "attention_levels": (len(multipliers) - 1,),
            "code_dim": code_dim,
        }
        step = 2 ** (len(multipliers) - 1)
        super().__init__(
            encoder=VAREncoder(**network),
            bottleneck=MultiScaleQuantizer(
                num_codes=num_codes, dim=code_dim, scales=scales, num_blends=num_blends, blend=blend, metric=metric
            ),
            decoder=VARDecoder(**network),
            downsampling=(step, step),
        )

    # Unlike its base, it must be told how long the scales' sequences are, where they are not its own.

    def encode(self, pixels: Float[Tensor, "B 3 H W"], *, scales: Sequence[Scale] | None = None, **draws: object) -> Latents:
        """Pixels in [0, 1] to codes (B, L); while training, with the bottleneck's losses.

        Args:
            pixels: images of the size of the last scale.
            scales: other scales than the tokenizer's own.
            draws: none; the bottleneck draws nothing.

        Raises:
            TypeError: pixels that are not floating point.
            ValueError: pixels of another size, or outside [0, 1].
        """
        check_pixels(pixels, num_axes=4)
        self.check_size(*pixels.shape[2:])
        step = self.downsampling[0]
        self.bottleneck.sizes(scales, [side // step for side in pixels.shape[2:]])  # refused before any work
        return self.bottleneck(self.encoder(normalised_for(self.encoder, pixels, self.mean, self.std)), scales=scales, **draws)

    def decode(
        self, latents: Latents | Integer[Tensor, "B L"], *, scales: Sequence[Scale] | None = None
    ) -> Float[Tensor, "B 3 H W"]:
        """Latents, or ids alone, to pixels in [0, 1]; not clamped while training.

        Args:
            latents: what ``encode`` made, or its ids.
            scales: those that the ids were made with.

        Raises:
            TypeError: ids that are no integers.
            ValueError: ids that do not exist, or another number of them than the scales have; latents of another shape.
        """
        if not isinstance(latents, Latents):
            latents = Latents(z=self.bottleneck.lookup(latents, scales=scales), ids=latents)
        return super().decode(latents)

    def stages(self, ids: Integer[Tensor, "B L"], *, scales: Sequence[Scale] | None = None) -> list[Float[Tensor, "B 3 H W"]]:
        """The image as it looks after each scale, from coarse to fine.

        Raises:
            TypeError, ValueError: as ``decode``.
        """
        return [self.decode(Latents(z=total)) for total in self.bottleneck.cumulative(ids, scales=scales)]

    @weightless
    def preprocess(self, image: PILImage.Image) -> Float[Tensor, "3 H W"]:
        """Shorter side to 9/8 of the size of the last scale (Lanczos), then the square in the middle.

        A tokenizer that is not square crops at the right and below instead.

        Source: FoundationVision/VAR, the transform of its evaluation.
        """
        rows, columns = self.bottleneck.scales[-1]
        if rows != columns:
            return super().preprocess(image)
        size = rows * self.downsampling[0]
        return pixels_of(torchvision_square(rgb_of(image), size, PILImage.Resampling.LANCZOS, shorter=round(1.125 * size)))
