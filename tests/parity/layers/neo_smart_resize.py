"""NEO's rule for the size of an image."""

import torch

from mmblocks.layers.images.resizing import smart_resize
from tests.parity.cases import Case


def run(case: Case) -> None:
    sizes = [
        smart_resize(height, width, multiple=multiple, min_pixels=least, max_pixels=most)
        for height, width, multiple, least, most in case.io["in.args"].tolist()
    ]
    case.check("out.hw", torch.tensor(sizes))
