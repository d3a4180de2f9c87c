"""How sure single choices among codes are, and how evenly all codes are used."""

from jaxtyping import Float
from torch import Tensor


def choice_entropies(logits: Float[Tensor, "N K"], epsilon: float = 1e-5) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Entropies, in nats, of soft choices among K codes.

    Args:
        logits: of N choices.
        epsilon: what published code adds inside the logarithm of the average choice.

    Returns:
        The mean entropy of one choice (to be made small), and the entropy of the average choice (to be made large).

    Source: MaskGIT (arXiv 2202.04200), whose code has this epsilon.
    """
    log_weights = logits.float().log_softmax(dim=-1)
    weights = log_weights.exp()
    average = weights.mean(dim=0)
    return -(weights * log_weights).sum(-1).mean(), -(average * (average + epsilon).log()).sum()
