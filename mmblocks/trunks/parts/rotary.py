"""Rotary angles as a mixer asks for them: which tokens stand where, and how heads are turned.

Shapes: B batch, L new tokens, H heads, E width of a head.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmblocks.configurable import Description
from mmblocks.layers.attention.rotary_scaling import check_rotary_scaling, scaled_rotary_table
from mmblocks.sequence.positions import (
    RotaryTable,
    mrope,
    rotate_half_split,
    rotate_interleaved,
    sections_rotary_table,
    sequential,
)
from mmblocks.trunks.context import ForwardContext

_DTYPES = {None: None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Rotary(Description):
    """Rotary embedding of queries and keys.

    Args:
        theta: base of the frequencies.
        scaling: how rows beyond the trained length are read; see ``layers.attention.rotary_scaling``.
        sections: for positions on several axes: how many pairs of a head's channels each has; see
            ``sequence.positions.sections_rotary_table`` and ``sequence.positions.mrope`` (Qwen2-VL). Without ``scaling``.
        dtype: "bfloat16" or "float16" where a model was made in it, and its sines and cosines keep that rounding in whatever dtype
            it runs later (Emu, with the transformers of its day); None leaves them exact.
        share: part of a head's channels that is turned, the first ones; the rest are left as they are (StableLM, Phi).
        neighbours: whether channels (2i, 2i + 1) are turned together, and not (i, i + E/2) (Cohere, Helium, Ernie 4.5).

    Source: RoFormer (arXiv 2104.09864).

    Examples:
        >>> from mmblocks.trunks import Rotary
        >>> Rotary(theta=1e6, scaling={"type": "linear", "factor": 2.0}).turned(128)
        128
        >>> Rotary(share=0.25, neighbours=True).turned(128)
        32
    """

    theta: float = 10000.0
    scaling: dict[str, Any] | None = None
    sections: tuple[int, ...] | None = None
    dtype: str | None = None
    share: float = 1.0
    neighbours: bool = False

    def check(self) -> None:
        """Refuses what does not go together."""
        check_rotary_scaling(self.scaling)
        if self.dtype not in _DTYPES:
            raise ValueError(f"rope_dtype is {self.dtype!r}; accepted: None, 'bfloat16', 'float16'")
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}; accepted: above 0, and 1 at most")

    def check_head(self, head_dim: int) -> None:
        """Refuses heads that cannot be turned like this.

        Raises:
            ValueError: an odd width, or sections that are not half of it.
        """
        if self.turned(head_dim) % 2 or not self.turned(head_dim):
            raise ValueError(f"head_dim is {head_dim}; rotary embedding needs an even one")
        if self.sections is not None and (2 * sum(self.sections) != self.turned(head_dim) or self.scaling is not None):
            accepted = f"{self.turned(head_dim) // 2} in all, without rope_scaling"
            raise ValueError(f"rope_sections are {self.sections}; accepted: {accepted}")

    def turned(self, head_dim: int) -> int:
        """How many of a head's channels are turned."""
        return int(head_dim * self.share)

    @property
    def static_step(self) -> bool:
        """Whether a step's angles are computed on the device alone."""
        return self.sections is None and (self.scaling or {}).get("type") != "longrope"

    def angles(self, context: ForwardContext, head_dim: int) -> RotaryTable:
        """Those of the new tokens, with the rounding that the model was made with."""
        return self._rounded(self.table(context, head_dim))

    def table(self, context: ForwardContext, head_dim: int) -> RotaryTable:
        """The exact angles of the new tokens."""
        length, dim = context.lengths[0], self.turned(head_dim)
        if self.sections is not None:
            return sections_rotary_table(context.position(mrope)[:, -length:], dim, self.theta, self.sections)
        positions = context.position(sequential)
        return scaled_rotary_table(positions, dim, self.theta, self.scaling, last=length, total=context.total_length)

    def rotate(self, x: Float[Tensor, "B H L E"], angles: RotaryTable) -> Float[Tensor, "B H L E"]:
        """Turned heads."""
        turn: Callable[[Tensor, RotaryTable], Tensor] = rotate_interleaved if self.neighbours else rotate_half_split
        width = 2 * angles.cos.shape[-1]
        if width == x.shape[-1]:
            return turn(x, angles)
        return torch.cat([turn(x[..., :width], angles), x[..., width:]], dim=-1)

    def _rounded(self, angles: RotaryTable) -> RotaryTable:
        kept = _DTYPES[self.dtype]
        return angles if kept is None else RotaryTable(*(part.to(kept).float() for part in angles))
