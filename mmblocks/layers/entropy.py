"""How sure single choices among codes are, and how evenly all codes are used."""

from jaxtyping import Float
from torch import Tensor


def choice_entropies(logits: Float[Tensor, "N K"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Entropies, in nats, of soft choices among K codes.

    Returns:
        The mean entropy of one choice (to be made small), and the entropy of the average choice (to be made large).

    Source: MaskGIT (arXiv 2202.04200), with the 1e-5 that the published code adds inside the second logarithm.
    """
    log_weights = logits.float().log_softmax(dim=-1)
    weights = log_weights.exp()
    average = weights.mean(dim=0)
    return -(weights * log_weights).sum(-1).mean(), -(average * (average + 1e-5).log()).sum()
