"""What connectors say of features that do not fit them."""

from torch import Tensor

Grid = tuple[int, ...]
"""The axes between the batch and the width: (rows, columns), (frames, rows, columns), or (tokens,)."""


def check_axes(features: Tensor, *names: str) -> None:
    """Refuses features without the axes that ``names`` lists between the batch and the width.

    Raises:
        ValueError: says what came and what is accepted.
    """
    if features.ndim != 2 + len(names):
        raise ValueError(f"features have shape {tuple(features.shape)}; accepted: (B, {', '.join(names)}, D)")


def check_width(features: Tensor, dim: int) -> None:
    """Refuses features of another width than ``dim``.

    Raises:
        ValueError: says what came and what is accepted.
    """
    if features.shape[-1] != dim:
        raise ValueError(f"features are {features.shape[-1]} wide; accepted: in_dim, {dim}")
