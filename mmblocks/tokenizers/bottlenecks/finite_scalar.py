"""Finite scalar quantization: each entry of a feature is squashed and rounded to one of a few levels.

Shapes: B images, D width of a feature, Q numbers a token, d levels a number.
"""

import math
from collections.abc import Mapping
from itertools import accumulate
from operator import mul
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.sequence.tokens import Latents
from mmblocks.support.checks import as_int64, check_range
from mmblocks.tokenizers.bottlenecks.codebooks.any_dtype import mapped
from mmblocks.tokenizers.bottlenecks.codebooks.codebook import check, wrong_width
from mmblocks.tokenizers.bottlenecks.codebooks.full_precision import without_autocast
from mmblocks.tokenizers.bottlenecks.codebooks.options import check_plain
from mmblocks.tokenizers.bottlenecks.codebooks.soft_choices import mixtures, soft_choices

_HARMLESS = (
    "allowed_dtypes",
    "channel_first",
    "keep_num_codebooks_dim",
    "return_indices",
    "scale",  # which the library only keeps
)
"""What changes shapes alone; codes are always found in float32 here."""


FSQ_PLAIN = {"force_quantization_f32": True, "noise_dropout": 0.0, "orthogonal_rotation": False}


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """From the arguments of vector-quantize-pytorch's ``FSQ``."""
    if not config:  # the arguments are given to from_pretrained then
        return {}
    check_plain(config, FSQ_PLAIN)
    return {
        "levels": tuple(config["levels"]),
        "dim": config.get("dim"),
        "num_numbers": config.get("num_codebooks", 1),
        "symmetric": config.get("preserve_symmetry", False),
        "clamp": config.get("bound_hard_clamp", False),
        "projection_bias": config.get("projection_has_bias", True),
    }


def _published_config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "levels": arguments["levels"],
        "dim": arguments["dim"],
        "num_codebooks": arguments["num_numbers"],
        "preserve_symmetry": arguments["symmetric"],
        "bound_hard_clamp": arguments["clamp"],
        "projection_has_bias": arguments["projection_bias"],
    }


class FiniteScalarQuantizer(Block):
    """Rounds each entry of a feature to one of L levels between -1 and 1; the number of a code is written in these levels.

    There is no codebook, hence nothing of its size in memory, and there are no losses. The first entry is the least significant
    digit.

    Args:
        levels: L of each entry of a number, such as (8, 8, 8, 5, 5, 5) for 64,000 codes.
        dim: D; where it is not the number of entries, linear layers lead there and back. None: the number of entries.
        num_numbers: Q, numbers a token; each has its own entries and the same levels.
        symmetric: levels symmetric about zero for even L too, which also allows for L = 2 (arXiv 2411.19842).
        clamp: features are cut off at -1 and 1, rather than squashed by a tanh.
        projection_bias: whether the linear layers have a bias.

    Raises:
        ValueError: no levels, fewer than two of an entry (three unless ``symmetric``), or a product of 2^63 or more.

    Source: FSQ (arXiv 2309.15505); lucidrains' vector-quantize-pytorch.

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers.bottlenecks import FiniteScalarQuantizer
        >>> quantizer = FiniteScalarQuantizer(levels=(8, 5, 5))
        >>> quantizer.codebook_sizes
        (200,)
        >>> latents = quantizer(torch.randn(2, 4, 4, 3))
        >>> torch.allclose(quantizer.lookup(latents.ids), latents.z)
        True
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "vector_quantize_pytorch",
            (Rule("project_in.*", "project_in.*"), Rule("project_out.*", "project_out.*")),
            config=_config,
            published_config=_published_config,
            harmless=_HARMLESS,
        ),
    )

    def __init__(
        self,
        *,
        levels: tuple[int, ...],
        dim: int | None = None,
        num_numbers: int = 1,
        symmetric: bool = False,
        clamp: bool = False,
        projection_bias: bool = True,
    ) -> None:
        super().__init__()
        least = 2 if symmetric else 3
        if not levels or min(levels) < least or math.prod(levels) >= 2**63:
            raise ValueError(f"levels is {levels}; accepted: {least} or more each, with a product below 2^63")
        self.levels = levels
        self.num_numbers = num_numbers
        self.symmetric = symmetric
        self.clamp = clamp
        total = len(levels) * num_numbers
        self.dim = total if dim is None else dim
        straight = self.dim == total
        self.project_in = nn.Identity() if straight else nn.Linear(self.dim, total, bias=projection_bias)
        self.project_out = nn.Identity() if straight else nn.Linear(total, self.dim, bias=projection_bias)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """The product of the levels, for each number of a token."""
        return (math.prod(self.levels),) * self.num_numbers

    @without_autocast
    def forward(self, features: Float[Tensor, "B *grid D"]) -> Latents:
        """Quantises the last axis. ``ids`` are (B, *grid), or (B, *grid, Q) for several numbers a token.

        Raises:
            ValueError: if the width is not D, or a value is not finite.
        """
        check(features, wrong_width(features, self.dim))
        scaled = self._squashed(features)
        if self.symmetric:  # in the library's order of steps, whose rounding is what later quantizers of a residual code see
            scaled = scaled + 0.5
        nearest = (scaled.floor() if self.symmetric else scaled.round()).detach()
        z = self._between(scaled + (nearest - scaled).detach()).flatten(-2)
        digits = nearest.long() + (0 if self.symmetric else self._levels(scaled) // 2)
        ids = (digits * self._basis(scaled)).sum(dim=-1)
        ids = ids if self.num_numbers > 1 else ids.squeeze(-1)
        return Latents(z=mapped(self.project_out, z).to(features.dtype), ids=ids, loss={} if self.training else None)

    @without_autocast
    def lookup(self, ids: Integer[Tensor, "B *grid"]) -> Float[Tensor, "B *grid2 D"]:
        """Codes by number, in float32 where nothing is projected.

        Raises:
            TypeError: ids that are no integers.
            ValueError: a number that does not exist (checked on CPU), or not Q of them a token.
        """
        ids = as_int64("ids", ids)
        check_range("ids", ids, self.codebook_sizes[0])
        if self.num_numbers > 1 and ids.shape[-1] != self.num_numbers:
            raise ValueError(
                f"ids have shape {tuple(ids.shape)}; accepted: {self.num_numbers} numbers a token, along the last axis"
            )
        ids = ids[..., None] if self.num_numbers == 1 else ids
        return mapped(self.project_out, self._codes(ids).flatten(-2))

    @without_autocast
    def assign(self, features: Float[Tensor, "*N D"], temperature: float = 1.0) -> Float[Tensor, "*Q K"]:
        """A soft choice of codes, (*N, K) or (*N, Q, K), with weights that sum to one, in float32; see ``soft_choices``.

        All K codes are written out for it: meant for a few thousand of them.
        """
        return soft_choices(self._between(self._squashed(features)).unbind(dim=-2), self._tables(features.device), temperature)

    @without_autocast
    def mix(self, weights: Float[Tensor, "*Q K"]) -> Float[Tensor, "*N D"]:
        """The mixture of codes with these weights, which are as ``assign`` gives them.

        Raises:
            ValueError: weights of another shape.
        """
        return mapped(self.project_out, mixtures(weights, self._tables(weights.device)))

    def _tables(self, device: torch.device) -> list[Tensor]:
        return [self._codes(torch.arange(self.codebook_sizes[0], device=device))] * self.num_numbers

    def _codes(self, ids: Tensor) -> Tensor:
        levels = self._levels(ids)
        digits = ids[..., None] // self._basis(ids) % levels
        return self._between((digits if self.symmetric else digits - levels // 2).float())

    def _squashed(self, features: Tensor) -> Tensor:
        """In levels, before they are rounded: (*N, Q, d)."""
        x = mapped(self.project_in, features).float().unflatten(-1, (self.num_numbers, len(self.levels)))
        return self._symmetric_bound(x) if self.symmetric else self._bound(x)

    def _bound(self, x: Tensor) -> Tensor:
        """To within half a level of the lowest and the highest level, which are -(L // 2) and (L - 1) // 2."""
        levels = self._levels(x)
        half = (levels - 1) * 1.001 / 2  # a little more, so that the outermost levels are reached
        offset = (levels % 2 == 0) / 2
        shift = offset / half
        squashed = (x + shift).clamp(-1, 1) if self.clamp else (x + shift.atanh()).tanh()
        return squashed * half - offset

    def _symmetric_bound(self, x: Tensor) -> Tensor:
        """To between the levels 0 and L - 1."""
        return (self._levels(x) - 1) * ((x.clamp(-1, 1) if self.clamp else x.tanh()) + 1) / 2

    def _between(self, levels: Tensor) -> Tensor:
        """Levels to numbers between -1 and 1."""
        if self.symmetric:
            return levels * (2 / (self._levels(levels) - 1)) - 1
        return levels / (self._levels(levels) // 2)

    def _levels(self, like: Tensor) -> Tensor:
        return torch.tensor(self.levels, device=like.device)

    def _basis(self, like: Tensor) -> Tensor:
        """What each digit counts."""
        return torch.tensor(list(accumulate((1, *self.levels[:-1]), mul)), device=like.device)
