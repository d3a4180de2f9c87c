"""Emu3's tokenizer, of images and of video.

Shapes: B images or clips, T frames, H and W pixels; t, h and w tokens, D width of a code.
"""

import math
from typing import Any, ClassVar

from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor

from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.layers.images.pixels import check_pixels, normalised_for, pixels_of, rgb_of
from mmblocks.support.pickling import weightless
from mmblocks.tokenizers.bottlenecks.vector_quantizer import VectorQuantizer
from mmblocks.tokenizers.emu3.autoencoder import Emu3Decoder, Emu3Encoder
from mmblocks.tokenizers.emu3.layout import EMU3_LAYOUTS
from mmblocks.tokenizers.visual_tokenizer import VisualTokenizer

MAX_ASPECT = 5
"""Of images that ``preprocess`` takes: the longer side by the shorter."""


class Emu3VQ(VisualTokenizer):
    """A VQGAN whose decoder is conditioned on the codes in every norm, with causal convolutions over time.

    Images (B, 3, H, W) have ids (B, h, w), clips (B, 3, T, H, W) ids (B, t, h, w), and ids decode to what they are made of.
    A clip has T = ``temporal_factor`` t frames, so that none is left over; upstream drops the last ones silently. Clips that
    follow each other are encoded apart: within a clip, a token depends on all frames before it.

    Args:
        num_codes: size of the codebook.
        code_dim: width of a code.
        channels, multipliers, num_blocks, attention_levels, temporal_factor: see ``Emu3Encoder``.
        min_pixels, max_pixels: between which ``preprocess`` brings an image's area.
        size_step: of which ``preprocess`` makes both sides multiples; None for a token's side.
        mean, std: see ``VisualTokenizer``.

    The defaults are the published model's. Half precision of the encoder changes ids; keep float32 for encoding. The memory
    format ``channels_last`` is for ``encoder.spatial`` and ``decoder.spatial``, whose convolutions are 2-d. For images whose
    feature maps are too large see ``tokenizers.conv.stripes.set_memory_budget``.

    Upstream has no training code: the losses are those of ``VectorQuantizer``, their weights those of the VQ-VAE paper.

    Source: Emu3 (arXiv 2409.18869; baaivision/Emu3), a MoVQ (arXiv 2209.09002).

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers import Emu3VQ
        >>> tokenizer = Emu3VQ(num_codes=64, channels=32, multipliers=(1, 2), num_blocks=1, attention_levels=()).eval()
        >>> latents = tokenizer.encode(torch.rand(1, 3, 8, 12))
        >>> tuple(latents.ids.shape), tuple(tokenizer.decode(latents.ids).shape)
        ((1, 4, 6), (1, 3, 8, 12))
        >>> tuple(tokenizer.encode(torch.rand(1, 3, 4, 8, 8)).ids.shape)  # a clip of four frames
        (1, 1, 4, 4)
    """

    layouts: ClassVar[tuple[Layout, ...]] = EMU3_LAYOUTS
    loss_weights: ClassVar[dict[str, float]] = {"codebook": 1.0, "commitment": 0.25}

    def __init__(
        self,
        *,
        num_codes: int = 32768,
        code_dim: int = 4,
        channels: int = 256,
        multipliers: tuple[int, ...] = (1, 2, 2, 4),
        num_blocks: int = 2,
        attention_levels: tuple[int, ...] = (3,),
        temporal_factor: int = 4,
        min_pixels: int = 512 * 512,
        max_pixels: int = 1024 * 1024,
        size_step: int | None = None,
        mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        std: tuple[float, ...] = (0.5, 0.5, 0.5),
    ) -> None:
        network: dict[str, Any] = {
            "code_dim": code_dim,
            "channels": channels,
            "multipliers": multipliers,
            "num_blocks": num_blocks,
            "attention_levels": attention_levels,
            "temporal_factor": temporal_factor,
        }
        step = 2 ** (len(multipliers) - 1)
        super().__init__(
            encoder=Emu3Encoder(**network),
            bottleneck=VectorQuantizer(num_codes=num_codes, dim=code_dim),
            decoder=Emu3Decoder(**network),
            downsampling=(temporal_factor, step, step),
            mean=mean,
            std=std,
        )
        self.grids = ("hw", "thw")
        self.min_pixels = min_pixels
        self.max_pixels = max_pixels
        self.size_step = step if size_step is None else size_step

    def features(self, pixels: Float[Tensor, "B 3 *size"]) -> Float[Tensor, "B *grid D"]:
        """What the bottleneck is given, of images (B, 3, H, W) or clips (B, 3, T, H, W).

        Raises:
            TypeError: pixels that are not floating point.
            ValueError: pixels outside [0, 1] (NaN included), sides or a number of frames that are no multiples.
        """
        check_pixels(pixels, num_axes=5 if pixels.ndim == 5 else 4)
        self.check_size(*pixels.shape[2:])
        return self.encoder(normalised_for(self.encoder, pixels, self.mean, self.std))

    def check_size(self, *size: int) -> None:
        """Refuses (H, W) or (T, H, W) that are no positive multiples of ``downsampling``.

        Raises:
            ValueError: names the nearest number of frames, or the nearest size, that is accepted.
        """
        *frames, height, width = size
        time, *steps = self.downsampling
        if frames and (frames[0] % time or not frames[0]):
            near = max(round(frames[0] / time), 1) * time
            raise ValueError(
                f"pixels hold {frames[0]} frames; accepted: multiples of {time}, such as {near},"
                f" since {time} frames make one token in time and none is dropped"
            )
        if any(side % step or not side for side, step in zip((height, width), steps, strict=True)):
            near_height, near_width = (max(round(side / step), 1) * step for side, step in zip((height, width), steps, strict=True))
            raise ValueError(
                f"pixels are {height}x{width}; accepted: multiples of {steps[0]}x{steps[1]}, such as {near_height}x{near_width}"
            )

    @weightless
    def preprocess(self, image: PILImage.Image) -> Float[Tensor, "3 H W"]:
        """Resizes (bicubic) to multiples of ``size_step`` with about the same aspect, within the two areas.

        Raises:
            ValueError: a side shorter than ``size_step``, or an aspect beyond 5 to 1.

        Source: baaivision/Emu3.
        """
        width, height = (self._resized(side, *image.size) for side in image.size)
        return pixels_of(rgb_of(image).resize((width, height), PILImage.Resampling.BICUBIC))

    def _resized(self, side: int, width: int, height: int) -> int:
        """What a side of an image becomes. The order of the divisions decides where the result is nearly whole."""
        step = self.size_step
        if min(width, height) < step or max(width, height) / min(width, height) > MAX_ASPECT:
            raise ValueError(
                f"image is {height}x{width}; accepted: sides of at least {step}, the longer at most {MAX_ASPECT} times the shorter"
            )
        area = round(width / step) * round(height / step) * step**2
        if area > self.max_pixels:
            return math.floor(side / math.sqrt(width * height / self.max_pixels) / step) * step
        if area < self.min_pixels:
            return math.ceil(side * math.sqrt(self.min_pixels / (width * height)) / step) * step
        return round(side / step) * step
