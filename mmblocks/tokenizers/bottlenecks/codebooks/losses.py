"""Losses of bottlenecks: those of published code, and 0 where there is no feature, rather than the mean of nothing.

Shapes: N features, K codes.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import mse_loss


def squared_distance(left: Float[Tensor, "*N"], right: Float[Tensor, "*N"]) -> Float[Tensor, ""]:
    """The mean of the squared differences, with gradients to both."""
    if not left.numel():
        return (left - right).square().sum()
    return mse_loss(left, right)


def entropies(logits: Float[Tensor, "N K"], epsilon: float = 1e-5) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Entropies, in nats, of soft choices among K codes: how sure single choices are, and how evenly all codes are used.

    Args:
        logits: of N choices.
        epsilon: what published code adds inside the logarithm of the average choice.

    Returns:
        The mean entropy of one choice (to be made small), and the entropy of the average choice (to be made large).

    Source: MaskGIT (arXiv 2202.04200), whose code has this epsilon.
    """
    if not len(logits):
        return logits.sum(), logits.sum()
    log_weights = logits.float().log_softmax(dim=-1)
    weights = log_weights.exp()
    average = weights.mean(dim=0)
    return -(weights * log_weights).sum(-1).mean(), -(average * (average + epsilon).log()).sum()
