"""Feature maps that are asked for rows: they hold them, or compute them from rows of the maps that they are made of.

Maps are those of one image, (1, C, H, W).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, silu

from mmblocks.ops.conv2d import conv2d
from mmblocks.tokenizers.conv.blocks import GroupNorm, SpatialNorm


class RowMap(ABC):
    """A map of one image.

    Args:
        channels, height, width: its shape.
        dtype: of its values.
    """

    def __init__(self, channels: int, height: int, width: int, dtype: torch.dtype) -> None:
        self.channels = channels
        self.height = height
        self.width = width
        self.dtype = dtype

    @property
    def num_bytes(self) -> int:
        """What all of it takes when it is held."""
        return self.channels * self.height * self.width * self.dtype.itemsize

    @property
    def bytes_beneath(self) -> int:
        """``num_bytes`` of the largest of all maps that pass through memory while this one is computed."""
        return self.num_bytes

    def stripes(self, num_bytes: int) -> Iterator[tuple[int, int]]:
        """First row, and row after the last, of stripes that take ``num_bytes``, here or beneath; at least a row each."""
        step = max(1, num_bytes * self.height // max(1, self.bytes_beneath))
        return ((start, min(start + step, self.height)) for start in range(0, self.height, step))

    @abstractmethod
    def rows(self, start: int, stop: int) -> Float[Tensor, "1 C h W"]:
        """The rows from ``start`` up to ``stop``."""

    @abstractmethod
    def release(self, before: int) -> None:
        """Frees what is held for rows above ``before`` alone: nobody asks for them any more."""

    @abstractmethod
    def held(self) -> set["HeldMap"]:
        """The held maps from which this one is computed."""


class HeldMap(RowMap):
    """A map in memory, in pieces, one below the other."""

    def __init__(self, pieces: list[Tensor]) -> None:
        _, channels, _, width = pieces[0].shape
        super().__init__(channels, sum(piece.shape[2] for piece in pieces), width, pieces[0].dtype)
        self.pieces = pieces
        self.first = 0

    def rows(self, start: int, stop: int) -> Float[Tensor, "1 C h W"]:
        """A view where one piece has them all."""
        begin, found = self.first, []
        for piece in self.pieces:
            end = begin + piece.shape[2]
            if start < end and begin < stop:
                found.append(piece[:, :, max(start - begin, 0) : stop - begin])
            begin = end
        return _below_each_other(found)

    def release(self, before: int) -> None:
        """Frees pieces."""
        while self.pieces and self.first + self.pieces[0].shape[2] <= before:
            self.first += self.pieces.pop(0).shape[2]

    def held(self) -> set["HeldMap"]:
        """Itself."""
        return {self}


class ComputedMap(RowMap):
    """A map that is computed when asked for. It remembers its last answer: the next one may overlap with it.

    Maps that are computed from it therefore ask from above to below, and for the most rows first.
    """

    def __init__(self, channels: int, height: int, width: int, *sources: RowMap) -> None:
        super().__init__(channels, height, width, sources[0].dtype)
        self.sources = sources
        self.answer: Tensor | None = None
        self.first = 0

    @property
    def bytes_beneath(self) -> int:
        """A result of three colours may come from a map of hundreds of channels."""
        return max(self.num_bytes, *(source.bytes_beneath for source in self.sources))

    @abstractmethod
    def compute(self, start: int, stop: int) -> Tensor:
        """The rows from ``start`` up to ``stop``."""

    def rows(self, start: int, stop: int) -> Float[Tensor, "1 C h W"]:
        """Computes those that the last answer lacks."""
        end = self.first if self.answer is None else self.first + self.answer.shape[2]
        if self.answer is None or not self.first <= start < end:
            self.first, self.answer = start, self.compute(start, stop)
        elif stop > end:
            known = self.answer[:, :, start - self.first :]
            self.first, self.answer = start, _below_each_other([known, self.compute(end, stop)])
        return self.answer[:, :, start - self.first : stop - self.first]

    def held(self) -> set[HeldMap]:
        """Those of the sources."""
        return set[HeldMap]().union(*(source.held() for source in self.sources))


class ConvolvedMap(ComputedMap):
    """A convolution of stride 1 that keeps the sides, after a norm and SiLU where there is one."""

    def __init__(self, source: RowMap, conv: nn.Conv2d, norm: "KnownNorm | None" = None) -> None:
        super().__init__(conv.out_channels, source.height, source.width, source)
        self.conv = conv
        self.norm = norm
        self.margin = conv.kernel_size[0] // 2

    def compute(self, start: int, stop: int) -> Tensor:
        """Zeros above and below the map alone."""
        (source,) = self.sources
        begin, end = max(start - self.margin, 0), min(stop + self.margin, self.height)
        x = source.rows(begin, end)
        if self.norm is not None:
            x = silu(self.norm(x, begin))
        above, below = self.margin - (start - begin), self.margin - (end - stop)
        if above or below:
            x = pad(x, (0, 0, above, below))
        return conv2d(x, self.conv.weight, self.conv.bias, padding=(0, self.margin))

    def release(self, before: int) -> None:
        """The rows around are still asked for."""
        self.sources[0].release(before - self.margin)


class ResidualMap(ComputedMap):
    """A residual block's output, from its input and from what is added to it."""

    def __init__(self, source: RowMap, after: RowMap, shortcut: nn.Module) -> None:
        super().__init__(after.channels, source.height, source.width, after, source)
        self.shortcut = shortcut

    def compute(self, start: int, stop: int) -> Tensor:
        """What is added first: it asks the same source for more rows."""
        after, source = self.sources
        added = after.rows(start, stop)
        return self.shortcut(source.rows(start, stop)) + added

    def release(self, before: int) -> None:
        """What is added asks for two rows around, when it is computed from the input."""
        after, source = self.sources
        after.release(before)
        source.release(before - 2)


class HalvedMap(ComputedMap):
    """See ``Downsample``."""

    def __init__(self, source: RowMap, conv: nn.Conv2d) -> None:
        super().__init__(conv.out_channels, source.height // 2, source.width // 2, source)
        self.conv = conv

    def compute(self, start: int, stop: int) -> Tensor:
        """Zeros to the right, and below the last row alone."""
        (source,) = self.sources
        end = min(2 * stop + 1, source.height)
        return self.conv(pad(source.rows(2 * start, end), (0, 1, 0, 2 * stop + 1 - end)))

    def release(self, before: int) -> None:
        """Two rows make one."""
        self.sources[0].release(2 * before)


class DoubledMap(ComputedMap):
    """Every pixel four times."""

    def __init__(self, source: RowMap) -> None:
        super().__init__(source.channels, 2 * source.height, 2 * source.width, source)

    def compute(self, start: int, stop: int) -> Tensor:
        """One row makes two."""
        doubled = interpolate(self.sources[0].rows(start // 2, (stop + 1) // 2), scale_factor=2.0, mode="nearest")
        return doubled[:, :, start % 2 : start % 2 + stop - start]

    def release(self, before: int) -> None:
        """One row makes two."""
        self.sources[0].release(before // 2)


class KnownNorm:
    """A ``GroupNorm`` or ``SpatialNorm`` of a whole map, whose statistics are gathered beforehand, stripe by stripe.

    Args:
        norm: the norm.
        source: the map.
        stripe_bytes: of a stripe.
        condition: what the norm is called with besides the map.

    Raises:
        TypeError: another norm.
    """

    def __init__(self, norm: nn.Module, source: RowMap, stripe_bytes: int, *condition: Tensor) -> None:
        spatial = norm if isinstance(norm, SpatialNorm) else None
        group = norm.norm if isinstance(norm, SpatialNorm) else norm
        if not isinstance(group, GroupNorm) or len(condition) != (spatial is not None):
            raise TypeError(
                f"norm is {type(norm).__name__} with {len(condition)} conditions;"
                " accepted with a memory budget: GroupNorm with none, SpatialNorm with one"
            )
        size = source.channels // group.num_groups
        mean, variance = (values.repeat_interleave(size) for values in moments(source, group.num_groups, stripe_bytes))
        scale = group.weight.double() * (variance + group.eps).rsqrt()
        shift = group.bias.double() - mean * scale
        wide = torch.promote_types(source.dtype, torch.float32)
        self.scale, self.shift = (values.to(wide)[:, None, None] for values in (scale, shift))
        self.spatial = spatial
        self.condition = condition
        if spatial is not None:
            self.nearest = nearest_rows(condition[0].shape[2], source.height)

    def __call__(self, rows: Tensor, start: int) -> Tensor:
        """The norm of rows of the map, of which ``start`` is the first."""
        normed = torch.addcmul(self.shift, rows.to(self.scale.dtype), self.scale).to(rows.dtype)
        if self.spatial is None:
            return normed
        near = self.nearest[start : start + rows.shape[2]]
        first, after = int(near[0]), int(near[-1]) + 1
        beside = self.condition[0][:, :, first:after]
        near = (near - first).to(rows.device)
        scale, shift = (
            interpolate(conv(beside), size=(after - first, rows.shape[3]), mode="nearest").index_select(2, near)
            for conv in (self.spatial.scale, self.spatial.shift)
        )
        return torch.addcmul(shift, normed, scale)


def moments(source: RowMap, num_groups: int, stripe_bytes: int) -> tuple[Float[Tensor, " G"], Float[Tensor, " G"]]:
    """Mean and variance of each group of channels over the whole map, in float64.

    Stripes are put together by the formula of Chan, Golub and LeVeque, which loses nothing where the mean is large.
    """
    wide = torch.promote_types(source.dtype, torch.float32)
    count = 0
    mean = squares = torch.zeros(())
    for start, stop in source.stripes(stripe_bytes):
        values = source.rows(start, stop).reshape(num_groups, -1)
        variance, centre = (part.double() for part in torch.var_mean(values.to(wide), dim=1, correction=0))
        size = values.shape[1]
        step = centre - mean
        mean = mean + step * (size / (count + size))
        squares = squares + variance * size + step.square() * (count * size / (count + size))
        count += size
    return mean, squares / count


def nearest_rows(height: int, wanted: int) -> Int[Tensor, " H"]:
    """Which of ``height`` rows stands for each of ``wanted``, as ``interpolate`` chooses them."""
    numbers = torch.arange(height, dtype=torch.float32)[None, None, :, None]
    return interpolate(numbers, size=(wanted, 1), mode="nearest").flatten().long()


def _below_each_other(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)
