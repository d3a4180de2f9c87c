"""One layer of EVEv2's trunk: mixed tokens, text alone, one token alone, and gradients."""

import torch
from torch import Tensor, nn

from mmblocks import TokenTable
from mmblocks.sequence.masks import Dense
from mmblocks.trunks import RoutedDecoder
from mmblocks.trunks.routing import text_when_alone
from tests.parity.cases import Case

PREFIX = "model.layers.0."


def run(case: Case) -> None:
    trunk = load(case)
    embeds = case.io["in.hidden_states"].requires_grad_()
    vision = case.io["in.visual_token_mask"][..., 0] > 0.5
    positions = case.io["in.position_ids"].expand(vision.shape)
    trunk.positions = lambda table: positions[:, : table.shape[1]]
    mask = Dense(seen(case.io["in.attention_mask_4d"][:, 0]))

    out = trunk(embeds, table_of(vision), mask=mask)
    case.check("out.hidden_states", out)
    if "in.grad_output" in case.io:
        (out * case.io["in.grad_output"]).sum().backward()
        check_gradients(case, trunk, embeds)
    case.check("out.hidden_states_all_text", trunk(embeds, table_of(torch.zeros_like(vision)), mask=mask))
    if "out.single_token_hidden_states" in case.io:
        # Upstream takes the text weights for a token that comes alone, whatever it is; ours does so by a rule with that name.
        trunk.route = text_when_alone
        alone = trunk(embeds[:, :1], table_of(torch.ones_like(vision[:, :1])))
        case.check("out.single_token_hidden_states", alone)
        trunk.route = None
        assert not torch.allclose(alone, trunk(embeds[:, :1], table_of(torch.ones_like(vision[:, :1]))), atol=1e-3)


def load(case: Case) -> RoutedDecoder:
    """A trunk of this one layer, with nothing after it."""
    width = case.config["hidden_size"]
    case.weights = {f"{PREFIX}{name}": value for name, value in case.weights.items()} | {"model.norm.weight": torch.ones(width)}
    trunk = case.load(RoutedDecoder, {**case.config, "num_hidden_layers": 1})
    trunk.norm = nn.Identity()
    return trunk


def table_of(vision: Tensor) -> TokenTable:
    table = TokenTable.text(*vision.shape)
    return table._replace(modality=vision.long())


def seen(additive: Tensor) -> Tensor:
    """What an additive mask lets through; all where it lets nothing through, for softmax knows differences only."""
    seen = additive == 0
    return seen | ~seen.any(dim=-1, keepdim=True)


def check_gradients(case: Case, trunk: RoutedDecoder, embeds: Tensor) -> None:
    parameters = dict(trunk.named_parameters())
    for name in case.named("grad."):
        if name == "hidden_states":
            case.check("grad.hidden_states", embeds.grad)
        else:
            (ours,) = RoutedDecoder.layouts[0].to_ours(f"{PREFIX}{name}")
            case.check(f"grad.{name}", parameters[ours].grad)
