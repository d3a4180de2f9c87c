"""One layer of NEO's trunk: positions, mask, attention, gradients."""

import torch

from mmblocks.sequence.masks import visible
from mmblocks.sequence.positions import time_height_width
from mmblocks.trunks.neo.trunk import NEOTrunk
from tests.parity.cases import Case
from tests.parity.models.neo_model import table_of

PREFIX = "language_model.model.layers.0."


def run(case: Case) -> None:
    trunk = load(case)
    table = table_of(case.io["in.input_ids"][None], case.io["in.grid_hw"])
    assert torch.equal(time_height_width(table)[0].T, case.io["in.indexes"])
    case.check("out.mask_allowed", visible(table)[:, None])

    states = case.io["in.hidden_states"].clone().requires_grad_()
    seen = {}
    hook = trunk.layers[0].attention.register_forward_hook(lambda module, inputs, output: seen.update(attended=output))
    trunk.norm = torch.nn.Identity()  # the layer alone is stored
    hidden = trunk(states, table)
    hook.remove()
    case.check("out.hidden_states", hidden)
    case.check("out.self_attn_output", seen["attended"])
    if "in.grad_output" in case.io:
        hidden.backward(case.io["in.grad_output"])
        (layout,) = (known for known in NEOTrunk.layouts if known.name == "neo")
        parameters = dict(trunk.named_parameters())
        for name in case.named("grad."):
            if name == "hidden_states":
                case.check("grad.hidden_states", states.grad)
            else:
                (ours,) = layout.to_ours(PREFIX + name)
                case.check(f"grad.{name}", parameters[ours].grad)


def load(case: Case) -> NEOTrunk:
    """A trunk of that layer alone, through the loader."""
    case.weights = {PREFIX + name: value for name, value in case.weights.items()}
    case.weights["language_model.model.norm.weight"] = torch.ones(case.config["hidden_size"])
    return case.load(NEOTrunk, {**case.config, "num_hidden_layers": 1})
