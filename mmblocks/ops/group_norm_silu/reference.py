"""Group norm and SiLU in plain PyTorch.

Shapes: B batch, C channels, *S places of a map.
"""

from torch import Tensor
from torch.nn.functional import group_norm, silu


def group_norm_silu_reference(x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """``silu(group_norm(x))``."""
    return silu(group_norm(x, num_groups, weight, bias, eps))
