"""Rotary angles of rows that are longer than those a trunk was trained on: the ``rope_scaling`` of the Llama family.

| type | entries beside ``factor`` | what it does |
|---|---|---|
| linear | | divides positions |
| dynamic | max_position | enlarges the base once a row is longer (NTK-aware) |
| llama3 | max_position, low_freq_factor, high_freq_factor | slows pairs that turn rarely within ``max_position`` |
| yarn | max_position; beta_fast, beta_slow, truncate, attention_factor | likewise, and makes attention sharper |
| longrope | max_position, short_factor, long_factor | slows each pair by a number of its own; another one in longer rows |

``max_position`` is the length that was trained with. Keys already in a cache keep the angles they were given.

Shapes: B batch, L tokens.
"""

import math
from typing import Any

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from mmblocks.sequence.positions import RotaryTable, rotary_table

_ENTRIES: dict[str, tuple[set[str], set[str]]] = {
    "linear": (set(), set()),
    "dynamic": ({"max_position"}, set()),
    "llama3": ({"max_position", "low_freq_factor", "high_freq_factor"}, set()),
    "yarn": ({"max_position"}, {"beta_fast", "beta_slow", "truncate", "attention_factor"}),
    "longrope": ({"max_position", "short_factor", "long_factor"}, set()),
}
"""By type: entries that must be there, and entries that may."""


def check_rotary_scaling(scaling: dict[str, Any] | None) -> None:
    """Refuses a ``rope_scaling`` that cannot be followed.

    Raises:
        ValueError: unknown type, missing or superfluous entries, a factor below 1, or frequency factors that do not rise.
    """
    if scaling is None:
        return
    common = {"type", "factor"}
    needed, optional = _ENTRIES.get(str(scaling.get("type")), (None, set()))
    if needed is None or not common | needed <= set(scaling) <= common | needed | optional:
        accepted = "; ".join(
            " ".join([repr(name), *sorted(common - {"type"} | must), *(f"[{entry}]" for entry in sorted(may))])
            for name, (must, may) in _ENTRIES.items()
        )
        raise ValueError(f"rope_scaling is {scaling}; accepted: a type with its entries, of {accepted}")
    if float(scaling["factor"]) < 1:
        raise ValueError(f"rope_scaling has factor {scaling['factor']}; accepted: 1 or more")
    if scaling["type"] == "llama3" and not scaling["low_freq_factor"] < scaling["high_freq_factor"]:
        raise ValueError(f"rope_scaling is {scaling}; accepted: a high_freq_factor above low_freq_factor")


def scaled_rotary_table(
    positions: Num[Tensor, "B L"],
    dim: int,
    theta: float,
    scaling: dict[str, Any] | None,
    *,
    last: int,
    total: int | Int[Tensor, " B"] | None = None,
) -> RotaryTable:
    """The angles of the ``last`` tokens, scaled as ``scaling`` says; all positions, or ``total``, tell how long a row is.

    Source: YaRN (arXiv 2309.00071), LongRoPE (arXiv 2402.13753), Llama 3.1 (arXiv 2407.21783).
    """
    if scaling is None or scaling["type"] in ("linear", "dynamic"):
        positions, base = scale_rotary(positions, dim, theta, scaling, total=total)
        return rotary_table(positions[:, -last:], dim, base)
    if total is not None:  # the types below read the largest position alone
        positions = torch.cat([_by_row(total - 1, positions[:, :1]), positions], dim=1)
    find = {"llama3": _llama3, "yarn": _yarn, "longrope": _longrope}[scaling["type"]]
    stretch, growth = find(positions, dim, theta, scaling)
    table = rotary_table(positions[:, -last:], dim, theta, stretch.expand(len(positions), -1))
    return RotaryTable(table.cos * growth, table.sin * growth)


def scale_rotary(
    positions: Num[Tensor, "B L"],
    dim: int,
    theta: float,
    scaling: dict[str, Any] | None,
    *,
    total: int | Int[Tensor, " B"] | None = None,
) -> tuple[Num[Tensor, "B L"], float | Float[Tensor, "B 1"]]:
    """The types "linear" and "dynamic", which need no more than other positions or another base.

    Returns:
        The positions and the base to hand to ``rotary_table``.
    """
    if scaling is None:
        return positions, theta
    factor = float(scaling["factor"])
    if scaling["type"] == "linear":
        return positions / factor, theta
    length = _largest(positions).float() + 1
    length = length if total is None else torch.maximum(length, _by_row(total, length))
    trained = float(scaling["max_position"])
    stretch = (factor * length.clamp(min=trained) / trained - (factor - 1)) ** (dim / (dim - 2))
    return positions, theta * stretch


def _llama3(positions: Tensor, dim: int, theta: float, scaling: dict[str, Any]) -> tuple[Float[Tensor, "1 half"], float]:
    """Pairs that turn often enough within the trained length stay, those that turn rarely are slowed by the whole factor."""
    pair = torch.arange(dim // 2, dtype=torch.float32, device=positions.device)
    turns = scaling["max_position"] / (2 * math.pi) * theta ** (-2 * pair / dim)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    return _slowed(scaling["factor"], (high - turns) / (high - low)), 1.0


def _yarn(positions: Tensor, dim: int, theta: float, scaling: dict[str, Any]) -> tuple[Float[Tensor, "1 half"], float]:
    """Likewise, with a ramp over the pairs; queries and keys grow, so that attention is sharper."""

    def pair_with(turns: float) -> float:
        return dim * math.log(scaling["max_position"] / (2 * math.pi * turns)) / (2 * math.log(theta))

    first, last = pair_with(scaling.get("beta_fast", 32)), pair_with(scaling.get("beta_slow", 1))
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    pair = torch.arange(dim // 2, dtype=torch.float32, device=positions.device)
    growth = scaling.get("attention_factor") or yarn_growth(scaling["factor"])
    return _slowed(scaling["factor"], (pair - first) / (last - first or 1e-3)), growth


def yarn_growth(factor: float, weight: float = 1.0) -> float:
    """By how much YaRN's queries and keys grow, together."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1


def _slowed(factor: float, share: Float[Tensor, " half"]) -> Float[Tensor, "1 half"]:
    """What divides the angles: 1 where the share is 0 or less, the factor where it is 1 or more, between in between."""
    share = share.clamp(0, 1)
    return 1 / (share / factor + 1 - share)[None]


def _longrope(positions: Tensor, dim: int, theta: float, scaling: dict[str, Any]) -> tuple[Float[Tensor, "B half"], float]:
    """Each row by its own length; queries and keys grow by ``sqrt(1 + ln f / ln m)``."""
    trained = scaling["max_position"]
    too_long = _largest(positions) >= trained
    long, short = (torch.tensor(scaling[f"{name}_factor"], device=positions.device) for name in ("long", "short"))
    return torch.where(too_long, long, short), math.sqrt(1 + math.log(scaling["factor"]) / math.log(trained))


def _by_row(number: int | Tensor, like: Num[Tensor, "B 1"]) -> Num[Tensor, "B 1"]:
    """One number for each row, or for all of them."""
    return torch.as_tensor(number, dtype=like.dtype, device=like.device).view(-1, 1).expand_as(like)


def _largest(positions: Num[Tensor, "B L"]) -> Num[Tensor, "B 1"]:
    """The largest position of each row; 0 in empty rows."""
    return positions.amax(dim=1, keepdim=True) if positions.shape[1] else positions.new_zeros(len(positions), 1)
