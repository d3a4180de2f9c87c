"""How a gradient passes from a chosen code to the feature that chose it."""

from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

Estimator = Literal["straight_through", "rotation"]
"""straight_through: unchanged. rotation: turned and scaled as the code is against the feature (arXiv 2410.06424)."""


def pass_gradients(
    features: Float[Tensor, "*N D"], chosen: Float[Tensor, "*N D"], estimator: Estimator = "straight_through"
) -> Float[Tensor, "*N D"]:
    """The chosen codes, with gradients to the features alone."""
    if estimator == "rotation":
        return _rotated(features, chosen.detach())
    return features + (chosen - features).detach()


def in_evaluation(features: Float[Tensor, "*N D"], chosen: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
    """The chosen codes bit by bit, with gradients to them and, unchanged, to the features that chose them."""
    if not features.requires_grad:
        return chosen
    return chosen + (features - features.detach())


def check_estimator(estimator: str) -> None:
    """Refuses a name that is none.

    Raises:
        ValueError: another name.
    """
    if estimator not in get_args(Estimator):
        raise ValueError(f"estimator is {estimator!r}; accepted: {', '.join(get_args(Estimator))}")


def _rotated(features: Tensor, chosen: Tensor) -> Tensor:
    """The features, turned in the plane of both and scaled so that they are the codes; the turn itself is a constant."""
    origin = features.detach()
    length, wanted = (vectors.norm(dim=-1, keepdim=True).clamp(min=1e-6) for vectors in (origin, chosen))
    source, target = origin / length, chosen / wanted
    between = normalize(source + target, dim=-1, eps=1e-6)
    reflected = features - 2 * (features * between).sum(-1, keepdim=True) * between
    return (reflected + 2 * (features * source).sum(-1, keepdim=True) * target) * (wanted / length)
