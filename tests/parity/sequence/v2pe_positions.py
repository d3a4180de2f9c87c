"""V2PE's float positions and their rotary angles."""

import torch

from mmblocks import TokenTable
from mmblocks.sequence.positions import rotary_table, v2pe
from mmblocks.sequence.tokens import NO_SPAN
from tests.parity.cases import Case

IMAGE_CONTEXT = 2


def run(case: Case) -> None:
    ids = case.io["in.input_ids"]
    is_image = ids == IMAGE_CONTEXT
    table = TokenTable.text(*ids.shape)
    table = table._replace(span=torch.where(is_image, 0, NO_SPAN))
    positions = v2pe(table, case.config["stride"] / 256)
    case.check("out.position_ids", positions[0])

    angles = rotary_table(positions[:, ::16], case.config["dim"], case.config["base"])
    case.check("out.cos", torch.cat([angles.cos[0]] * 2, dim=-1))
    case.check("out.sin", torch.cat([angles.sin[0]] * 2, dim=-1))
