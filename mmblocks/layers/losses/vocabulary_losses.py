"""The loss of a linear map to a vocabulary, row by row.

Shapes: N rows, D width, V vocabulary.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmblocks.layers.losses.row_losses import weighted
from mmblocks.ops.linear_cross_entropy import linear_cross_entropy


def vocabulary_losses(
    hidden: Float[Tensor, "N D"],
    rows: Float[Tensor, "V D"],
    target: Int[Tensor, " N"],
    bias: Float[Tensor, " V"] | None = None,
    weight: Float[Tensor, " N"] | None = None,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Float[Tensor, " N"]:
    """Cross entropy of each row times its weight, in float32; a few rows' logits are held at a time, never all.

    Args:
        hidden: states.
        rows: what each id's logit is the product with; under autocast both are cast, as a linear layer casts them.
        target: the right ids.
        bias: added to the logits.
        weight: factor per row.
        scale: what the logits are multiplied by.
        softcap: c where c * tanh(logits / c) takes their place, after the scale; None for none.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, rows, bias = hidden.to(dtype), rows.to(dtype), None if bias is None else bias.to(dtype)
    # With the weights at hand the op can make gradients at once; none flows to them there.
    learned = weight is not None and weight.requires_grad
    inside = None if learned or weight is None else weight.float()
    losses = linear_cross_entropy(hidden, rows, target, bias, row_weight=inside, reduction="none", scale=scale, softcap=softcap)
    return weighted(losses, weight if learned else None)
