"""Losses of bottlenecks: those of published code, and 0 where there is no feature, rather than the mean of nothing.

Shapes: N features, K codes.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import mse_loss

from mmblocks.layers.losses.entropy import choice_entropies


def squared_distance(left: Float[Tensor, "*N"], right: Float[Tensor, "*N"]) -> Float[Tensor, ""]:
    """The mean of the squared differences, with gradients to both."""
    if not left.numel():
        return (left - right).square().sum()
    return mse_loss(left, right)


def entropies(logits: Float[Tensor, "N K"], epsilon: float = 1e-5) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """As ``choice_entropies``."""
    if not len(logits):
        return logits.sum(), logits.sum()
    return choice_entropies(logits, epsilon)
