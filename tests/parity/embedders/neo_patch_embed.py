"""NEO's patch stem, on normalised images."""

import torch
from einops import rearrange

from mmblocks.embedders.neo import NEOPatchEmbedding
from tests.parity.cases import Case

MANIFESTS = {"neo1_0_2b": [(NEOPatchEmbedding, "neo")], "neo1_0_9b": [(NEOPatchEmbedding, "neo")]}


def run(case: Case) -> None:
    stem = case.load(NEOPatchEmbedding, {name: value for name, value in case.config.items() if name != "real"})
    size = stem.patch_size
    grids = case.io["in.grid_hw"].tolist()
    packed = case.io["in.pixel_values"].split([rows * columns for rows, columns in grids])
    images = [
        rearrange(patches, "(h w) (c p q) -> c (h p) (w q)", h=rows, w=columns, p=size, q=size)
        for patches, (rows, columns) in zip(packed, grids, strict=True)
    ]
    for number, image in enumerate(images):
        assert torch.equal(image, case.io.get(f"in.image_{number}", image))
    tokens = stem.embed(images)
    case.check("out.embeddings", tokens.embeds)
    for number, (rows, columns) in enumerate(grids):
        counts = (tokens.grid[tokens.image == number].amax(0) + 1).tolist()
        assert counts == [1, rows // stem.merge_size, columns // stem.merge_size]
