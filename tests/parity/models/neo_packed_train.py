"""NEO's training pass on one row of packed documents."""

import torch

from mmblocks.models.neo import NEO, loss_weights
from mmblocks.sequence.masks import visible
from mmblocks.sequence.positions import time_height_width
from mmblocks.sequence.tokens import NO_SPAN
from tests.parity.cases import Case
from tests.parity.models.neo_model import BEGIN, IMAGE, embeds_of, table_of

IGNORED = -100


def run(case: Case) -> None:
    model = case.load(NEO).train()
    ids, labels = case.io["in.input_ids"], case.io["in.labels"]
    begin, image = (case.config.get(f"img_{name}_token_id", usual) for name, usual in (("start", BEGIN), ("context", IMAGE)))
    table = table_of(ids, case.io["in.grid_hw"], case.io["in.seq_boundaries"], begin=begin, image=image)
    case.check("out.document_ids", table.document[0])
    case.check("out.modality_indicators", torch.where(table.span[0] == NO_SPAN, NO_SPAN, table.span[0] + 1))
    case.check("out.mask_allowed", visible(table)[0])
    assert torch.equal(time_height_width(table)[0, :, 0], case.io["in.indexes_t"])

    embeds = embeds_of(case, model, ids, image)
    hidden = model.trunk(embeds, table)
    case.check("out.logits", model.outputs["text"].logits(hidden))

    learned = labels[:, 1:] != IGNORED
    weight = case.io["in.loss_weight"][:, 1:][learned]
    if "loss_reduction" in case.config:
        counted = labels[0] != IGNORED
        ours = loss_weights(table.document[0][counted], case.config["loss_reduction"])
        torch.testing.assert_close(ours, case.io["in.loss_weight"][0][counted])
    losses = model.outputs["text"].loss(hidden[:, :-1][learned], labels[:, 1:][learned], weight)
    loss = losses.sum() / case.io["in.loss_weight"][:, 1:].sum()
    case.check("out.loss", loss[None])
    if case.named("grad."):
        loss.backward()
        case.check_gradients(model, "neo")
