"""Emu3's and Emu3.5's language model: states, logits, loss, gradients, cached steps."""

import torch
from torch import Tensor

from mmblocks import Decoder, LMHead, TextEmbedding, TokenTable
from mmblocks.models import Emu3
from mmblocks.sequence.positions import PositionScheme
from mmblocks.sequence.tokens import PADDING
from mmblocks.trunks import hidden_states
from tests.parity.cases import Case

MANIFESTS = {
    "emu3_lm_8b": [(Emu3, "emu3"), (Decoder, "llama"), (TextEmbedding, "llama"), (LMHead, "llama")],
    "emu35_lm_34b": [(Emu3, "emu3.5"), (Decoder, "llama-qk-norm")],
}


def run(case: Case) -> None:
    model = load(case)
    ids = case.io["in.input_ids"]
    table = table_of(ids, case.io.get("in.attention_mask"))
    if "in.attention_mask" in case.io:
        model.trunk.positions = positions_of(case)
    real = ~table.is_padding

    layers = [int(name) for name in case.named("out.hidden.")]
    *states, hidden = hidden_states(model.trunk, model.inputs["text"](ids), table, [*layers, model.trunk.num_layers])
    logits = model.outputs["text"].logits(hidden)
    for number, state in zip(layers, states, strict=True):
        case.check(f"out.hidden.{number}", state, where=real)
    if "out.logits" in case.io:
        case.check("out.logits", logits, where=real)
    if "in.labels" in case.io:
        check_loss_and_gradients(case, model, hidden, case.io["in.labels"])
    if "out.cached_logits" in case.io:
        check_cached_steps(case, model, ids, table)


def load(case: Case) -> Emu3:
    """Through the loader, as a person would: the published config and weights in a folder."""
    return case.load(Emu3, {name: value for name, value in case.config.items() if name != "special_ids"})


def table_of(ids: Tensor, attention_mask: Tensor | None) -> TokenTable:
    """Plain text; a token whose attention mask is 0 is padding."""
    table = TokenTable.text(*ids.shape)
    if attention_mask is None:
        return table
    padding = attention_mask == 0
    order = attention_mask.cumsum(1) - 1
    return table._replace(
        document=torch.where(padding, PADDING, table.document),
        modality=torch.where(padding, PADDING, table.modality),
        order=torch.where(padding, 0, order),
    )


def positions_of(case: Case) -> PositionScheme:
    """Those that were handed to upstream; if none were, it counts padding too. Cached keys show which."""
    batch, length = case.io["in.input_ids"].shape
    given = case.io.get("in.position_ids", torch.arange(length).expand(batch, length))
    return lambda table: given[:, : table.shape[1]]


def check_loss_and_gradients(case: Case, model: Emu3, hidden: Tensor, labels: Tensor) -> None:
    asked = labels[:, 1:] != -100
    loss = model.outputs["text"].loss(hidden[:, :-1][asked], labels[:, 1:][asked]).mean()
    case.check("loss.lm", loss)
    loss.backward()
    layout = {True: Emu3.layouts[1], False: Emu3.layouts[0]}[model.config["qk_norm"]]
    parameters = dict(model.named_parameters())
    for name in case.named("grad."):
        (ours,) = layout.to_ours(name)
        case.check(f"grad.{name}", parameters[ours].grad)


@torch.no_grad()
def check_cached_steps(case: Case, model: Emu3, ids: Tensor, table: TokenTable) -> None:
    batch, length = ids.shape
    wanted = case.io["out.cached_logits"]
    # Whether the module that took these steps had read the whole row before is told by nothing but the numbers.
    prefill = length - wanted.shape[1] + 1
    # Upstream's rotary tables of dynamic scaling only grow: after a full pass, its steps use the angles of the whole row.
    grown = "out.logits" in case.io and torch.allclose(case.io["out.logits"][:, prefill - 1 :], wanted, atol=1e-3, rtol=1e-3)
    cache = model.trunk.new_cache(batch, length)
    got = []
    for start, stop in [(0, prefill), *((i, i + 1) for i in range(prefill, length))]:
        embeds = model.inputs["text"](ids[:, start:stop])
        hidden = model.trunk(embeds, table.slice(start, stop), cache, total_length=length if grown else None)
        got.append(model.outputs["text"].logits(hidden[:, -1]))
    real = ~table.is_padding
    case.check("out.cached_logits", torch.stack(got, dim=1), where=real[:, prefill - 1 :])
    for name in ("key", "value"):
        for layer, _ in case.named(f"out.past_{name}.").items():
            stored = getattr(cache, f"{name}s")[int(layer)][:, :, :length]
            case.check(f"out.past_{name}.{layer}", stored, where=real[:, None, :].expand(stored.shape[:3]))
