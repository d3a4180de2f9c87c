"""Emu2's way of an image into the trunk and back: tower, averages, projections."""

import torch

from mmblocks.connectors.emu2 import Emu2DownProjection, Emu2UpProjection
from mmblocks.tokenizers.emu2_latents import Emu2Latents
from tests.parity.cases import Case

PARTS = (Emu2Latents, Emu2UpProjection, Emu2DownProjection)
MANIFESTS = {
    **{name: [(part, "emu2") for part in PARTS] for name in ("emu2_native", "emu2_chat_native", "emu2_visual_projections")},
    "emu2_hf": [(part, "emu2-hub") for part in PARTS],
}


def run(case: Case) -> None:
    latents, up, down = (case.load(part, layout="emu2") for part in PARTS)
    tokens = latents.encoder(case.io["in.image"])  # after the tokenizer's own normalisation
    patches = tokens[:, 1:].unflatten(1, latents.grid)
    for name in case.named("out."):
        if name == "visual_tokens":
            case.check("out.visual_tokens", tokens)
            continue
        kind, _, count = name.rpartition("_")
        num_tokens = None if count == "default" else int(count)
        pooled = up.pool(patches, num_tokens=num_tokens)
        torch.testing.assert_close(pooled, latents.pool(tokens, num_tokens=num_tokens))
        projected = up.projection(pooled)
        if num_tokens in (None, latents.num_tokens):
            torch.testing.assert_close(projected, up(patches))
        results = {"pooled": pooled, "projected": projected, "roundtrip": down(projected)}
        case.check(f"out.{name}", results[kind].flatten(1, 2))
