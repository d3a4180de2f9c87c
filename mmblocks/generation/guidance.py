"""Guidance: predictions with and without the condition, combined."""

from jaxtyping import Float
from torch import Tensor


def classifier_free(conditional: Float[Tensor, "N V"], unconditional: Float[Tensor, "N V"], scale: float) -> Float[Tensor, "N V"]:
    """``u + scale * (c - u)`` on log probabilities: 1 is the condition alone, more exaggerates it.

    Logits of some ids only may be given: the missing normaliser shifts all of a row alike, which no draw sees.
    Source: classifier-free guidance (arXiv 2207.12598) as Emu3 applies it to logits.
    """
    c, u = conditional.log_softmax(dim=-1), unconditional.log_softmax(dim=-1)
    return u + scale * (c - u)
