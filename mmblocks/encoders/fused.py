"""Several encoders as one: their features side by side in width, in turn, one after the other, or one at two resolutions.

Each encoder sees the same image at its own size and names its own grid; the classes differ in what becomes of the features. An
encoder may be a fused one itself, or one of tiles, whose features are fused tile by tile.

Shapes: B images, H and W pixels, h and w places, D width.
"""

import math
from typing import Any, Literal, cast

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from mmblocks.block import Block
from mmblocks.layers.images.pixels import check_pixels, dtype_of
from mmblocks.roles import AnySize, OneSize, Sized, Wide

Grid = tuple[int, ...]
"""Rows and columns, after the number of tiles where there are some; or a number of tokens without places."""


class EncoderGroup(Block):
    """Several encoders by name; what they see, as a list in their order, for a connector that reads several features.

    An encoder of one size is shown the image resized to it (bicubic, antialiased; the aspect is not kept).

    Args:
        encoders: by name. Each has ``dim``, and names its grid by ``image_size`` and ``grid``, or by ``grid_of(height, width)``.

    Raises:
        ValueError: no encoder.
        TypeError: an encoder that does not name its grid or width.

    Examples:
        >>> import torch
        >>> from mmblocks.encoders import EncoderGroup, EVACLIPVision
        >>> tower = {"dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16, "patch_size": 14}
        >>> small = EVACLIPVision(tower={**tower, "image_size": (28, 28)}, embed_dim=8)
        >>> large = EVACLIPVision(tower={**tower, "image_size": (56, 56)}, embed_dim=8)
        >>> group = EncoderGroup(encoders={"small": small, "large": large})
        >>> [tuple(features.shape) for features in group(torch.rand(1, 3, 56, 56))]
        [(1, 2, 2, 16), (1, 4, 4, 16)]
    """

    def __init__(self, *, encoders: dict[str, Block]) -> None:
        super().__init__()
        if not encoders:
            raise ValueError("encoders is empty; accepted: at least one")
        for name, encoder in encoders.items():
            if width_of(encoder) is None or not isinstance(encoder, AnySize | OneSize):
                kind = type(encoder).__name__
                raise TypeError(
                    f"encoder {name!r}, a {kind}, does not name its width and grid; accepted: with dim, grid or grid_of"
                )
        self.encoders = nn.ModuleDict(encoders)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width, where all encoders take the same one size; None otherwise: each is shown the image at its own."""
        sizes = {_own_size(encoder) for encoder in self.encoders.values()}
        return sizes.pop() if len(sizes) == 1 else None

    @property
    def dims(self) -> dict[str, int]:
        """The width of each encoder's features."""
        return {name: cast(Wide, encoder).dim for name, encoder in self.encoders.items()}

    def grids(self, height: int, width: int) -> dict[str, Grid]:
        """The grid of each encoder's features of an image of this size, usually rows and columns.

        Raises:
            ValueError: a size that one of them does not take; the message names it.
        """
        found: dict[str, Grid] = {}
        for name, encoder in self.encoders.items():
            size = _own_size(encoder) or (height, width)
            try:
                found[name] = tuple(encoder.grid_of(*size) if isinstance(encoder, AnySize) else cast(OneSize, encoder).grid)
            except ValueError as error:
                raise ValueError(f"encoder {name!r}: {error}") from error
        return found

    def grid_of(self, height: int, width: int) -> Grid:
        """The grid of the first encoder."""
        return next(iter(self.grids(height, width).values()))

    def features(self, pixels: Float[Tensor, "B 3 H W"]) -> dict[str, Tensor]:
        """What each encoder sees, (B, *grid, D) on its own grid.

        Raises:
            TypeError: pixels that are not floating point.
            ValueError: pixels that are no RGB in [0, 1], or of a size that an encoder does not take.
        """
        check_pixels(pixels, num_axes=4)
        self.grids(pixels.shape[2], pixels.shape[3])
        return {name: encoder(_resized(pixels, encoder)) for name, encoder in self.encoders.items()}

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Any:
        """The features of all encoders, a list in their order. Arguments and errors as for ``features``."""
        return list(self.features(pixels).values())

    def _grid(self, height: int, width: int, fixed: tuple[int, int] | None) -> Grid:
        """The grid of the first encoder, with other rows and columns where they are fixed.

        Raises:
            ValueError: an encoder whose features have no rows and columns, or other tiles than the first one's; as ``grids``.
        """
        grids = self.grids(height, width)
        first, grid = next(iter(grids.items()))
        for name, own in grids.items():
            if len(own) < 2 or own[:-2] != grid[:-2]:
                tiles = f" after the tiles {grid[:-2]} of {first!r}" if grid[:-2] else ""
                accepted = f"rows and columns{tiles} (TokenConcat takes any)"
                raise ValueError(f"encoder {name!r} gives features on a grid of {own}; accepted: {accepted}")
        return (*grid[:-2], *(fixed or grid[-2:]))


class ChannelFusion(EncoderGroup):
    """The features of all encoders, brought to one grid (bilinear), side by side in width.

    Args:
        encoders: as for ``EncoderGroup``.
        grid: rows and columns; None for those of the first encoder.

    Source: Eagle (arXiv 2408.15998), which finds this as good as anything learned; DeepSeek-VL (arXiv 2403.05525).

    Examples:
        >>> import torch
        >>> from mmblocks.encoders import ChannelFusion, EVACLIPVision
        >>> tower = {"dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16, "patch_size": 14}
        >>> small = EVACLIPVision(tower={**tower, "image_size": (28, 28)}, embed_dim=8)
        >>> large = EVACLIPVision(tower={**tower, "image_size": (56, 56)}, embed_dim=8)
        >>> encoder = ChannelFusion(encoders={"small": small, "large": large})
        >>> encoder.dim, tuple(encoder(torch.rand(1, 3, 56, 56)).shape)
        (32, (1, 2, 2, 32))
    """

    def __init__(self, *, encoders: dict[str, Block], grid: tuple[int, int] | None = None) -> None:
        super().__init__(encoders=encoders)
        _check_fixed(grid)
        self.fixed = grid
        self.dim = sum(self.dims.values())

    def grid_of(self, height: int, width: int) -> Grid:
        """Rows and columns of the features, after the tiles where there are some.

        Raises:
            ValueError: encoders without rows and columns, or of different tiles; as ``grids``.
        """
        return self._grid(height, width, self.fixed)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B *grid D"]:
        """Arguments and errors as for ``features``."""
        grid = self.grid_of(pixels.shape[2], pixels.shape[3])
        return torch.cat([_on_grid(features, grid) for features in self.features(pixels).values()], dim=-1)


class TokenInterleave(EncoderGroup):
    """The features of all encoders, each projected to one width, in turn: all that is known of a place stands together.

    A row holds its first place as all encoders see it, then its second, and so on: the grid has as many columns as the encoders
    together.

    Args:
        encoders: as for ``EncoderGroup``.
        dim: D.
        grid: rows and columns of places; None for those of the first encoder. The others are brought to it (bilinear).

    Source: LEO (arXiv 2501.06986), with a connector for each encoder before.

    Examples:
        >>> import torch
        >>> from mmblocks.encoders import EVACLIPVision, TokenInterleave
        >>> tower = {"dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16, "image_size": (28, 28), "patch_size": 14}
        >>> one, two = (EVACLIPVision(tower=tower, embed_dim=8) for _ in range(2))
        >>> encoder = TokenInterleave(encoders={"one": one, "two": two}, dim=12)
        >>> tuple(encoder(torch.rand(1, 3, 28, 28)).shape)
        (1, 2, 4, 12)
    """

    def __init__(self, *, encoders: dict[str, Block], dim: int, grid: tuple[int, int] | None = None) -> None:
        super().__init__(encoders=encoders)
        self.projections = _projections(self.dims, dim)
        _check_fixed(grid)
        self.fixed = grid
        self.dim = dim

    def grid_of(self, height: int, width: int) -> Grid:
        """Rows, and columns times encoders, after the tiles where there are some.

        Raises:
            ValueError: encoders without rows and columns, or of different tiles; as ``grids``.
        """
        grid = self._grid(height, width, self.fixed)
        return (*grid[:-1], grid[-1] * len(self.encoders))

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B *grid D"]:
        """Arguments and errors as for ``features``."""
        grid = self._grid(pixels.shape[2], pixels.shape[3], self.fixed)
        features = self.features(pixels)
        parts = [_on_grid(self.projections[name](own), grid) for name, own in features.items()]
        return rearrange(torch.stack(parts), "e ... w d -> ... (w e) d")


class TokenConcat(EncoderGroup):
    """The features of all encoders, each projected to one width and marked as its own, one encoder after the other.

    Nothing is resized. A resampler after it reads all of it, as in Prismer.

    Args:
        encoders: as for ``EncoderGroup``.
        dim: D.

    Source: Prismer (arXiv 2303.02506), whose experts' features go into one resampler.

    Examples:
        >>> import torch
        >>> from mmblocks.encoders import EVACLIPVision, TokenConcat
        >>> tower = {"dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16, "patch_size": 14}
        >>> small = EVACLIPVision(tower={**tower, "image_size": (28, 28)}, embed_dim=8)
        >>> large = EVACLIPVision(tower={**tower, "image_size": (56, 56)}, embed_dim=8)
        >>> encoder = TokenConcat(encoders={"small": small, "large": large}, dim=12)
        >>> tuple(encoder(torch.rand(1, 3, 56, 56)).shape)  # 4 tokens and 16
        (1, 20, 12)
    """

    def __init__(self, *, encoders: dict[str, Block], dim: int) -> None:
        super().__init__(encoders=encoders)
        self.projections = _projections(self.dims, dim)
        self.marks = nn.Parameter(torch.empty(len(encoders), dim).normal_(std=0.02))
        self.dim = dim

    def grid_of(self, height: int, width: int) -> Any:
        """(tokens,): the places of all encoders together; raises what ``grids`` raises."""
        return (sum(math.prod(grid) for grid in self.grids(height, width).values()),)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B tokens D"]:
        """Arguments and errors as for ``features``."""
        parts = zip(self.features(pixels).items(), self.marks, strict=True)
        return torch.cat([self.projections[name](features).flatten(1, -2) + mark for (name, features), mark in parts], dim=1)


class DualResolution(EncoderGroup):
    """One encoder sees the whole image small, another sees it large; each place of the small grid is told what lies in it.

    The large features are averaged over the place of the small grid that they lie in, and added through a learned layer, as much as
    a gate allows that has seen both: gate and sum are LLaVA-HR's.

    Args:
        encoders: "low" sees the image at low resolution, and its grid and width are those of what comes out; "high" sees it at
            high resolution.

    Raises:
        ValueError: encoders by other names.

    Source: LLaVA-HR (arXiv 2403.03003).

    Examples:
        >>> import torch
        >>> from mmblocks.encoders import DualResolution, EVACLIPVision
        >>> tower = {"dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16, "patch_size": 14}
        >>> low = EVACLIPVision(tower={**tower, "image_size": (28, 28)}, embed_dim=8)
        >>> high = EVACLIPVision(tower={**tower, "image_size": (56, 56)}, embed_dim=8)
        >>> encoder = DualResolution(encoders={"low": low, "high": high})
        >>> tuple(encoder(torch.rand(1, 3, 56, 56)).shape)
        (1, 2, 2, 16)
    """

    def __init__(self, *, encoders: dict[str, Block]) -> None:
        if set(encoders) != {"low", "high"}:
            raise ValueError(f"encoders are {', '.join(encoders)}; accepted: 'low' and 'high'")
        super().__init__(encoders=encoders)
        self.dim = self.dims["low"]
        self.from_low = nn.Conv2d(self.dim, self.dim, 3, padding=1, groups=self.dim)
        self.from_high = nn.Linear(self.dims["high"], self.dim)
        self.gate = nn.Sequential(nn.Linear(2 * self.dim, self.dim // 2), nn.GELU(), nn.Linear(self.dim // 2, self.dim), nn.Tanh())

    def grid_of(self, height: int, width: int) -> Grid:
        """The grid of "low".

        Raises:
            ValueError: encoders without rows and columns, or of different tiles; as ``grids``.
        """
        self._grid(height, width, None)
        return self.grids(height, width)["low"]

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B *grid D"]:
        """Arguments and errors as for ``features``."""
        self.grid_of(pixels.shape[2], pixels.shape[3])
        features = self.features(pixels)
        shape = features["low"].shape[:-3]  # of images, and of tiles where there are some
        low, high = features["low"].flatten(0, -4), features["high"].flatten(0, -4)
        near = self.from_low(low.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        far = self.from_high(_on_grid(high, (low.shape[1], low.shape[2]), mode="area"))
        gate = self.gate(torch.cat([near.mean(dim=(1, 2)), far.mean(dim=(1, 2))], dim=-1))
        return (low + near + gate[:, None, None] * far).unflatten(0, shape)


def _check_fixed(grid: tuple[int, int] | None) -> None:
    if grid is not None and min(grid) < 1:
        raise ValueError(f"grid is {grid}; accepted: at least one row and column, or None")


def _projections(dims: dict[str, int], dim: int) -> nn.ModuleDict:
    if dim < 1:
        raise ValueError(f"dim is {dim}; accepted: 1 or more")
    return nn.ModuleDict({name: nn.Linear(width, dim) for name, width in dims.items()})


def width_of(encoder: nn.Module) -> int | None:
    """D; None of an encoder that does not name it, or has several."""
    try:
        return cast(Wide, encoder).dim if isinstance(encoder, Wide) else None
    except AttributeError:  # of a part of its own
        return None


def _own_size(encoder: nn.Module) -> tuple[int, int] | None:
    """The only size that an encoder takes; None where it takes several."""
    size = encoder.image_size if isinstance(encoder, Sized) else None
    return None if size is None else (size[0], size[1])


def _resized(pixels: Tensor, encoder: nn.Module) -> Tensor:
    """Pixels of the size that an encoder takes, in their own dtype if it is the encoder's."""
    size = _own_size(encoder)
    if size is None or tuple(pixels.shape[2:]) == size:
        return pixels
    # Bicubic curves leave [0, 1] at sharp edges.
    resized = interpolate(pixels.float(), size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    return resized.to(pixels.dtype) if dtype_of(encoder, pixels.dtype) == pixels.dtype else resized


def _on_grid(features: Tensor, grid: Grid, mode: Literal["bilinear", "area"] = "bilinear") -> Tensor:
    """(B, *tiles, h, w, D) with other rows and columns."""
    if tuple(features.shape[-3:-1]) == tuple(grid[-2:]):
        return features
    options = {} if mode == "area" else {"align_corners": False}
    maps = features.flatten(0, -4).permute(0, 3, 1, 2)
    resized = interpolate(maps, (grid[-2], grid[-1]), mode=mode, **options).permute(0, 2, 3, 1)
    return resized.unflatten(0, features.shape[:-3])
