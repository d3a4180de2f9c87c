"""A visual tokenizer: an encoder, a bottleneck and a decoder, each of which can be another.

Shapes: B images, H and W pixels (T frames), a grid of tokens, D width of a token.
"""

from collections.abc import Callable
from typing import Any, ClassVar, cast

from jaxtyping import Float, Integer
from PIL import Image as PILImage
from torch import Tensor, nn

from mmblocks.block import Block
from mmblocks.layers.images.pixels import check_pixels, denormalise, normalised_for, pixels_of
from mmblocks.sequence.tokens import Latents
from mmblocks.support.pickling import weightless


class VisualTokenizer(Block):
    """Pixels to features (encoder), features to codes or latents (bottleneck), and back to pixels (decoder).

    Put together your own from parts, or use one of the published methods, which are subclasses.

    Args:
        encoder: pixels, normalised, (B, 3, H, W) -> features (B, *grid, D).
        bottleneck: features -> ``Latents``; a discrete one also has ``lookup(ids)`` and ``codebook_sizes``.
        decoder: (B, *grid, D) -> pixels, normalised, (B, 3, H, W).
        downsampling: pixels a token spans along (H, W), or (T, H, W) for video.
        mean, std: what the encoder's normalisation subtracts and divides by, per colour.

    Attributes:
        loss_weights: weights of the bottleneck's losses in the published training, by name.

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers import ConvDecoder, ConvEncoder, VisualTokenizer
        >>> from mmblocks.tokenizers.bottlenecks import FiniteScalarQuantizer
        >>> sizes = {"channels": 32, "multipliers": (1, 1), "num_blocks": 1, "code_dim": 3}
        >>> parts = {"encoder": ConvEncoder(**sizes), "decoder": ConvDecoder(**sizes)}
        >>> tokenizer = VisualTokenizer(**parts, bottleneck=FiniteScalarQuantizer(levels=(8, 5, 5)), downsampling=(2, 2)).eval()
        >>> ids = tokenizer.encode(torch.rand(1, 3, 8, 12)).ids
        >>> tuple(ids.shape), tuple(tokenizer.decode(ids).shape)
        ((1, 4, 6), (1, 3, 8, 12))
    """

    loss_weights: ClassVar[dict[str, float]] = {}

    def __init__(
        self,
        *,
        encoder: nn.Module,
        bottleneck: nn.Module,
        decoder: nn.Module,
        downsampling: tuple[int, ...],
        mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        std: tuple[float, ...] = (0.5, 0.5, 0.5),
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.bottleneck = bottleneck
        self.decoder = decoder
        self.downsampling = downsampling
        self.mean = mean
        self.std = std
        self.only_size: tuple[int, ...] | None = None
        """The one size, in pixels, that a subclass with learned positions takes."""
        self.grids: tuple[str, ...] = ("thw"[-len(downsampling) :],)
        """The axes of a grid of tokens, a letter each; several kinds where a subclass takes images and clips."""

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """How many codes there are for each of the Q numbers of a token; () for a continuous tokenizer."""
        return tuple(getattr(self.bottleneck, "codebook_sizes", ()))  # a continuous one has none

    def features(self, pixels: Float[Tensor, "B 3 *size"]) -> Float[Tensor, "B *grid D"]:
        """What the bottleneck is given.

        Raises:
            TypeError: pixels that are not floating point.
            ValueError: pixels outside [0, 1] (NaN included), or of a size that the method cannot take.
        """
        check_pixels(pixels, num_axes=2 + len(self.downsampling))
        self.check_size(*pixels.shape[2:])
        return self.encoder(normalised_for(self.encoder, pixels, self.mean, self.std))

    # Any: subclasses have keywords of their own.
    def encode(self, pixels: Float[Tensor, "B 3 *size"], **draws: Any) -> Latents:
        """Pixels in [0, 1] to codes or latents; while training, with the bottleneck's losses.

        Args:
            pixels: images, or clips where the method takes them.
            draws: for a bottleneck that draws at random: its ``generator``, or the draws themselves.

        Raises:
            TypeError, ValueError: as ``features``.
        """
        return self.bottleneck(self.features(pixels), **draws)

    def decode(self, latents: Latents | Integer[Tensor, "B *grid"]) -> Float[Tensor, "B 3 *size"]:
        """Latents, or ids alone, to pixels in [0, 1]; not clamped while training.

        Raises:
            TypeError: ids that are no integers.
            ValueError: ids that do not exist; ids or latents of another shape than the method's.
        """
        pixels = denormalise(self.decoder(self.decoder_input(latents)), self.mean, self.std)
        return pixels if self.training else pixels.clamp(0, 1)

    def decoder_input(self, latents: Latents | Integer[Tensor, "B *grid"]) -> Float[Tensor, "B *grid2 D"]:
        """The vectors that ``decode`` hands to the decoder, in its dtype; raises as ``decode``."""
        if isinstance(latents, Latents):
            z = latents.z
            self._check_axes("latents", z, z.ndim, "D")
        elif latents.ndim < 2 or len(self.codebook_sizes) > 1:
            self._check_axes("ids", latents, latents.ndim, *self._codes_axis())
            z = self.lookup(latents)
        else:
            # A bottleneck may lay its ids out in another way than on the grid: what they stand for tells.
            z = self.lookup(latents)
            self._check_axes("ids", latents, z.ndim - 1)
        # The vectors of codes that are computed rather than stored are float32 whatever the decoder is.
        return z.to(next((parameter.dtype for parameter in self.decoder.parameters()), z.dtype))

    def _codes_axis(self) -> tuple[str, ...]:
        """The last axis of ids, where a token has several."""
        count = len(self.codebook_sizes)
        return (str(count),) if count > 1 else ()

    def _check_axes(self, name: str, given: Tensor, num_axes: int, *last: str) -> None:
        """Refuses what has another number of axes than a batch of grids, with ``last`` after them."""
        if num_axes not in [1 + len(grid) + len(last) for grid in self.grids]:
            accepted = " or ".join(f"({', '.join(('B', *grid, *last))})" for grid in self.grids)
            raise ValueError(f"{name} have shape {tuple(given.shape)}; accepted: {accepted}")

    def lookup(self, ids: Integer[Tensor, "B *grid"]) -> Float[Tensor, "B *grid2 D"]:
        """The vectors of codes: what the decoder reads, and a language model may.

        Raises:
            TypeError: ids that are no integers.
            ValueError: ids that do not exist.
        """
        return cast("Callable[[Tensor], Tensor]", self.bottleneck.lookup)(ids)

    def check_size(self, *size: int) -> None:
        """Refuses a size, in pixels (and frames), that is no positive multiple of ``downsampling``, or not ``only_size``.

        Raises:
            ValueError: names the nearest size that is accepted.
        """
        if self.only_size is not None:
            if size != tuple(self.only_size):
                only = "x".join(map(str, self.only_size))
                raise ValueError(f"pixels are {'x'.join(map(str, size))}; accepted: {only} alone (see preprocess)")
            return
        if any(side % step or not side for side, step in zip(size, self.downsampling, strict=True)):
            near = "x".join(str(max(round(side / step), 1) * step) for side, step in zip(size, self.downsampling, strict=True))
            steps = "x".join(map(str, self.downsampling))
            raise ValueError(f"pixels are {'x'.join(map(str, size))}; accepted: multiples of {steps}, such as {near}")

    @weightless
    def preprocess(self, image: PILImage.Image) -> Float[Tensor, "3 H W"]:
        """The image in RGB, cropped at the right and below to a size the method takes."""
        width, height = (side - side % step for side, step in zip(image.size, self.downsampling[:-3:-1], strict=True))
        return pixels_of(image.crop((0, 0, width, height)))
