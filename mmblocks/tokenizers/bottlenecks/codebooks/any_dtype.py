"""Features of any dtype: a bottleneck that is kept in float32 takes those of an encoder in half precision, and gives them back so.

What is multiplied is brought to one dtype, the weights' or the wider one; no code is chosen in less than float32.

Shapes: D and E widths, K codes.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


def mapped(layers: nn.Module, x: Float[Tensor, "*N D"]) -> Float[Tensor, "*N E"]:
    """What linear layers make of vectors, in the dtype of their weights; vectors as they are where there are none."""
    dtype = next((parameter.dtype for parameter in layers.parameters()), x.dtype)
    made: Tensor = layers(x.to(dtype))
    return made


def product(left: Float[Tensor, "*N D"], right: Float[Tensor, "D K"]) -> Float[Tensor, "*N K"]:
    """The matrix product, in the wider dtype of the two."""
    dtype = torch.promote_types(left.dtype, right.dtype)
    return left.to(dtype) @ right.to(dtype)
