"""NEO as a whole: embedding, positions, logits, loss, one cached step."""

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import cross_entropy

from mmblocks import LMHead, TextEmbedding
from mmblocks.models.neo import NEO
from mmblocks.sequence.masks import changes
from mmblocks.sequence.positions import time_height_width
from mmblocks.sequence.tokens import NO_SPAN, Modality, TokenTable
from mmblocks.trunks.neo.trunk import NEOTrunk
from tests.parity.cases import Case

MANIFESTS = {
    name: [*((cls, "neo") for cls in (NEO, NEOTrunk, TextEmbedding)), (LMHead, head)]
    for name, head in (("neo1_0_2b", "neo-tied"), ("neo1_0_9b", "neo"))
}
IMAGE, BEGIN, END = 2, 3, 4
STEP = 9
"""The id of the one cached step; the case's notes name it."""


def run(case: Case) -> None:
    model = case.load(NEO)
    ids = case.io["in.input_ids"][None]
    begin, image = (case.config.get(f"img_{name}_token_id", usual) for name, usual in (("start", BEGIN), ("context", IMAGE)))
    table = table_of(ids, case.io["in.grid_hw"], begin=begin, image=image)
    case.check("out.indexes", time_height_width(table)[0].T)

    embeds = embeds_of(case, model, ids, image)
    case.check("out.inputs_embeds", embeds)
    cache = model.trunk.new_cache(1, ids.shape[1] + 1)
    logits = model.outputs["text"].logits(model.trunk(embeds, table, cache))
    case.check("out.logits", logits)
    torch.testing.assert_close(model.outputs["text"].logits(model.trunk(embeds, table)), logits)

    if "out.loss" in case.io:
        learned = ~torch.isin(ids[0, 1:], torch.tensor([image, begin, END]))
        case.check("out.loss", cross_entropy(logits[0, :-1][learned], ids[0, 1:][learned])[None])
    if "out.decode_logits" in case.io:
        step = TokenTable.text(1, 1)
        step.order[:] = table.order.max() + 1
        hidden = model.trunk(model.inputs["text"](torch.tensor([[STEP]])), step, cache)
        case.check("out.decode_logits", model.outputs["text"].logits(hidden))


def table_of(
    ids: Tensor, grid_hw: Tensor, boundaries: Tensor | None = None, *, begin: int = BEGIN, image: int = IMAGE
) -> TokenTable:
    """One row of documents: images attend within themselves, and each is a grid of half as many tokens a side as patches."""
    table = TokenTable.text(*ids.shape)
    is_image = ids == image
    table.modality[is_image] = Modality.VISION
    for number, start in enumerate([] if boundaries is None else boundaries[:-1].tolist()):
        table.document[:, start:] = number
    begins = is_image & ((ids.roll(1, 1) == begin) | changes(is_image.long()))
    table.span[:] = torch.where(is_image, begins.long().cumsum(1) - 1, NO_SPAN)
    steps = (~is_image | begins).long().cumsum(1)
    first = torch.where(changes(table.document), steps, 0).cummax(1).values
    table.order[:] = steps - first
    places = [torch.cartesian_prod(torch.arange(h), torch.arange(w)) for h, w in (grid_hw // 2).tolist()]
    if is_image.any():
        table.grid[..., 1:][is_image] = torch.cat(places)
    return table


def embeds_of(case: Case, model: NEO, ids: Tensor, image: int) -> Tensor:
    """Text and images, in place."""
    embeds = model.inputs["text"](ids)
    if (ids == image).any():
        stem = model.inputs["vision"]
        embeds = embeds.masked_scatter((ids == image)[..., None], stem.embed(images_of(case, stem.patch_size)).embeds)
    return embeds


def images_of(case: Case, size: int) -> list[Tensor]:
    """The images whose patches are stored."""
    grids = case.io["in.grid_hw"].tolist()
    packed = case.io["in.pixel_values"].split([rows * columns for rows, columns in grids])
    return [
        rearrange(patches, "(h w) (c p q) -> c (h p) (w q)", h=rows, w=columns, p=size, q=size)
        for patches, (rows, columns) in zip(packed, grids, strict=True)
    ]
