"""What a head of whole spans has written, as a grid of codes.

Shapes: N tokens of a span, Q levels of a place.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from mmblocks.vocabulary.grid_format import ANY_CODE, GridFormat


def written_grid(form: GridFormat, size: tuple[int, ...], ids: Int[Tensor, " N"]) -> Int[Tensor, "*size_and_q"]:
    """The codes among ids that end with the last code of an image; -1 where an id is no code yet."""
    is_code = form.expected(torch.arange(form.length(*size)), *size) == ANY_CODE
    is_code = is_code[: int(is_code.nonzero().max()) + 1]
    shape = size if form.num_levels == 1 else (*size, form.num_levels)
    codes = ids[-len(is_code) :][is_code.to(ids.device)].reshape(shape)
    found = form.codes.is_code(codes)
    firsts = [form.codes.ranges_of(level)[0][0] for level in range(form.num_levels)]
    return form.codes.from_vocabulary(codes.where(found, torch.tensor(firsts, device=ids.device))).where(found, -1)
