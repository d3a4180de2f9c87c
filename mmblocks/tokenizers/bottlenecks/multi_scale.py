"""Residual quantisation from coarse to fine: one token for the whole image, then grids of more and more tokens.

Shapes: B images, H and W places of features of width D, K codes, L tokens of all scales together, h and w those of one scale.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn
from torch.nn.functional import embedding, interpolate

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.ops.nearest_code import nearest_code
from mmblocks.sequence.tokens import Latents
from mmblocks.support.checks import as_int64, check_range, check_shape
from mmblocks.tokenizers.bottlenecks.codebooks.any_dtype import product
from mmblocks.tokenizers.bottlenecks.codebooks.codebook import check, wrong_width
from mmblocks.tokenizers.bottlenecks.codebooks.full_precision import without_autocast
from mmblocks.tokenizers.bottlenecks.codebooks.losses import squared_distance
from mmblocks.tokenizers.bottlenecks.multi_scale_layout import MULTI_SCALE_LAYOUTS
from mmblocks.tokenizers.conv.blocks import channels_first, channels_last

Scale = int | Sequence[int]
"""Rows and columns of a grid of tokens; one number for as many of either."""


def blend_of_scale(scale: int, num_scales: int, num_blends: int) -> int:
    """Which smoothing convolution belongs to a scale: that whose tick on a line from 0 to 1 is nearest.

    Two of the published ten scales lie half-way between ticks, so that the rounding of float64 decides: these are the operations,
    in their order, of ``numpy.linspace``, which the official code calls.
    """
    edge = 1 / 3 / num_blends if num_blends == 4 else 1 / 2 / num_blends
    last = 1 - edge
    step = (last - edge) / max(num_blends - 1, 1)
    ticks = [number * step + edge for number in range(num_blends - 1)] + [last]
    place = scale / max(num_scales - 1, 1)
    return min(range(num_blends), key=lambda number: abs(ticks[number] - place))


class Blend(nn.Conv2d):
    """A mixture of a map and its 3x3 convolution, which smooths what was enlarged."""

    def __init__(self, channels: int, share: float) -> None:
        super().__init__(channels, channels, 3, padding=1)
        self.share = share

    def forward(self, x: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D H W"]:
        """Keeps the shape."""
        return (1 - self.share) * x + self.share * super().forward(x)


class MultiScaleQuantizer(Block):
    """Quantises a map at growing scales with one codebook; each scale sees what those before it have left over.

    The ids of an image are one sequence: the scales one after the other, each row by row (``split`` takes them apart). Losses
    while training, unweighted, are the means over scales of the squared distance between the features and the sum of the codes
    so far: ``codebook`` with gradients to the codes, ``commitment`` with gradients to the features.

    Args:
        num_codes: K.
        dim: D.
        scales: rows and columns of tokens of each scale, the last as large as the map.
        num_blends: how many smoothing convolutions the scales share; 0 for one each.
        blend: how much of the smoothed map counts; 0 for no smoothing.
        metric: what the nearest code is; with "cosine" what is added is the code as it is, not scaled to length one.

    Attributes:
        hits: (number of scales, K), a statistic of the published training. It is only read and written.

    Raises:
        ValueError: no scale.

    Published: the quantizer alone. The authors' scripts name its arguments, as a config.json beside its weights does.

    Source: VAR (arXiv 2404.02905; FoundationVision/VAR).

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers.bottlenecks import MultiScaleQuantizer
        >>> quantizer = MultiScaleQuantizer(num_codes=16, dim=4, scales=(1, 2, 3)).eval()
        >>> latents = quantizer(torch.randn(1, 3, 3, 4))
        >>> [tuple(scale.shape) for scale in quantizer.split(latents.ids)]
        [(1, 1, 1), (1, 2, 2), (1, 3, 3)]
        >>> torch.allclose(quantizer.cumulative(latents.ids)[-1], latents.z, atol=1e-6)
        True
    """

    hits: Tensor

    layouts: ClassVar[tuple[Layout, ...]] = MULTI_SCALE_LAYOUTS

    def __init__(
        self,
        *,
        num_codes: int,
        dim: int,
        scales: tuple[Scale, ...],
        num_blends: int = 4,
        blend: float = 0.5,
        metric: Literal["l2", "cosine"] = "l2",
    ) -> None:
        super().__init__()
        self.scales = _sizes(scales)
        self.metric: Literal["l2", "cosine"] = metric
        self.codes = nn.Parameter(torch.empty(num_codes, dim).normal_())
        self.register_buffer("hits", torch.zeros(len(scales), num_codes))
        self.num_blends = num_blends or len(scales)
        smooths = blend > 1e-6
        self.blends = nn.ModuleList(Blend(dim, blend) if smooths else nn.Identity() for _ in range(self.num_blends))

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """One number: K."""
        return (len(self.codes),)

    @property
    def num_tokens(self) -> int:
        """L."""
        return sum(rows * columns for rows, columns in self.scales)

    @without_autocast
    def forward(self, features: Float[Tensor, "B H W D"], *, scales: Sequence[Scale] | None = None) -> Latents:
        """Quantises a map; ids are (B, L).

        Args:
            features: what the encoder made.
            scales: other scales than the Block's own, for maps of another size or shape; the last is the map's.

        Raises:
            ValueError: the last scale is not the map's size, the width is not D, or a value is not finite.
        """
        sizes = self.sizes(scales, features.shape[1:3])
        check(features, wrong_width(features, self.codes.shape[1]))
        maps = channels_first(features).float()
        total, rest, ids, totals = torch.zeros_like(maps), maps.detach(), [], []
        for number, size in enumerate(sizes):
            is_last = number == len(sizes) - 1
            chosen = self._nearest(rest if is_last else interpolate(rest, size=size, mode="area"))
            added = self._enlarged(embedding(chosen, self.codes), number, sizes)
            # The rest is subtracted from rather than computed anew, since rounding may decide between two codes.
            total, rest = total + added, rest - added.detach()
            ids.append(chosen.flatten(1))
            totals.append(total)
        z = channels_last(maps + (total - maps).detach()).to(features.dtype)
        return Latents(z=z, ids=torch.cat(ids, dim=1), loss=_losses(maps, totals) if self.training else None)

    def lookup(self, ids: Integer[Tensor, "B L"], *, scales: Sequence[Scale] | None = None) -> Float[Tensor, "B H W D"]:
        """The map that the codes of all scales add up to.

        Raises:
            TypeError, ValueError: as ``split``.
        """
        return self.cumulative(ids, scales=scales)[-1]

    def split(self, ids: Integer[Tensor, "B L"], *, scales: Sequence[Scale] | None = None) -> list[Int[Tensor, "B _ _"]]:
        """The ids (B, h, w) of each scale.

        Raises:
            TypeError: ids that are no integers.
            ValueError: other axes, another number of ids than the scales have, or one that does not exist (checked on CPU).
        """
        check_shape("ids", ids, "B", "L")
        sizes = self.sizes(scales)
        counts = [rows * columns for rows, columns in sizes]
        if ids.shape[1] != sum(counts):
            raise ValueError(f"there are {ids.shape[1]} ids; accepted: {sum(counts)}, for the scales {_text(sizes)}")
        ids = as_int64("ids", ids)
        check_range("ids", ids, len(self.codes))
        return [part.view(-1, *size) for part, size in zip(ids.split(counts, dim=1), sizes, strict=True)]

    @without_autocast
    def cumulative(self, ids: Integer[Tensor, "B L"], *, scales: Sequence[Scale] | None = None) -> list[Float[Tensor, "B H W D"]]:
        """The map as it is after each scale: coarse first, each to be decoded.

        Raises:
            TypeError, ValueError: as ``split``.
        """
        sizes = self.sizes(scales)
        totals: list[Tensor] = []
        for number, part in enumerate(self.split(ids, scales=scales)):
            added = self._enlarged(embedding(part, self.codes), number, sizes)
            totals.append(totals[-1] + added if totals else added)
        return [channels_last(total).to(self.codes.dtype) for total in totals]

    def next_scale_inputs(self, ids: Integer[Tensor, "B L"], *, scales: Sequence[Scale] | None = None) -> Float[Tensor, "B L2 D"]:
        """What a model that predicts scale by scale reads: for every scale but the first, the map so far at that scale.

        L2 is L without the tokens of the first scale.

        Raises:
            TypeError, ValueError: as ``split``.
        """
        following = self.sizes(scales)[1:]
        totals = self.cumulative(ids, scales=scales)[:-1]
        shrunk = [interpolate(channels_first(total), size=size, mode="area") for total, size in zip(totals, following, strict=True)]
        nothing = self.codes.new_zeros(len(ids), 0, self.codes.shape[1])
        return torch.cat([nothing, *(part.flatten(2).transpose(1, 2) for part in shrunk)], dim=1)

    @without_autocast
    def add_scale(
        self,
        total: Float[Tensor, "B H W D"] | None,
        vectors: Float[Tensor, "B h w D"],
        number: int,
        *,
        scales: Sequence[Scale] | None = None,
    ) -> tuple[Float[Tensor, "B H W D"], Float[Tensor, "B h2 w2 D"]]:
        """One step of generation: the codes of scale ``number`` are added to the map so far.

        Args:
            total: the map so far; None at the first scale.
            vectors: the codes of that scale, or mixtures of codes (``mix``).
            number: of the scale, from 0.
            scales: other scales than the Block's own.

        Returns:
            The map, in float32, and what a model reads to predict the next scale: the map at that scale, or itself at the last.

        Raises:
            ValueError: ``vectors`` are not of that scale's size.
        """
        sizes = self.sizes(scales)
        if tuple(vectors.shape[1:3]) != sizes[number]:
            raise ValueError(f"vectors have {vectors.shape[1]}x{vectors.shape[2]} places; accepted: {_text([sizes[number]])}")
        added = channels_last(self._enlarged(vectors, number, sizes))
        total = added if total is None else total + added
        if number == len(sizes) - 1:
            return total, total
        return total, channels_last(interpolate(channels_first(total), size=sizes[number + 1], mode="area"))

    def vectors(self, ids: Integer[Tensor, "*N"]) -> Float[Tensor, "*N D"]:
        """Codes by number, for ``add_scale``.

        Raises:
            TypeError: ids that are no integers.
            ValueError: a number outside [0, K) (checked on CPU).
        """
        ids = as_int64("ids", ids)
        check_range("ids", ids, len(self.codes))
        return embedding(ids, self.codes)

    @without_autocast
    def mix(self, weights: Float[Tensor, "*N K"]) -> Float[Tensor, "*N D"]:
        """The mixture of codes with these weights, for ``add_scale``."""
        return product(weights, self.codes)

    def sizes(self, scales: Sequence[Scale] | None = None, map_size: Sequence[int] | None = None) -> tuple[tuple[int, int], ...]:
        """Rows and columns of each scale.

        Args:
            scales: None for the Block's own.
            map_size: the size that the last scale must have.

        Raises:
            ValueError: it has another, or there is no scale.
        """
        sizes = self.scales if scales is None else _sizes(scales)
        if map_size is not None and sizes[-1] != tuple(map_size):
            raise ValueError(
                f"the map is {_text([tuple(map_size)])}; accepted: {_text([sizes[-1]])}, the last of scales, or give others"
            )
        return sizes

    def _nearest(self, maps: Tensor) -> Tensor:
        features = channels_last(maps)
        return nearest_code(features.flatten(0, -2), self.codes, self.metric).view(features.shape[:-1])

    def _enlarged(self, vectors: Tensor, number: int, sizes: tuple[tuple[int, int], ...]) -> Tensor:
        """The codes of a scale as a map of full size, smoothed, in float32."""
        maps = channels_first(vectors)
        if number < len(sizes) - 1:
            maps = interpolate(maps, size=sizes[-1], mode="bicubic")
        return self.blends[blend_of_scale(number, len(sizes), self.num_blends)](maps).float()


def _losses(maps: Tensor, totals: list[Tensor]) -> dict[str, Tensor]:
    return {
        "codebook": torch.stack([squared_distance(total, maps.detach()) for total in totals]).mean(),
        "commitment": torch.stack([squared_distance(maps, total.detach()) for total in totals]).mean(),
    }


def _sizes(scales: Sequence[Scale]) -> tuple[tuple[int, int], ...]:
    if not scales:
        raise ValueError("scales is empty; accepted: at least one")
    return tuple((scale, scale) if isinstance(scale, int) else (scale[0], scale[1]) for scale in scales)


def _text(sizes: Sequence[Sequence[int]]) -> str:
    return ", ".join(f"{rows}x{columns}" for rows, columns in sizes)
