"""LaVIT's dynamic tokenizer, from the features of its image tower on."""

from itertools import combinations

import torch
from torch import Tensor

from mmblocks.sequence.tokens import PADDING
from mmblocks.tokenizers.lavit.tokenizer import LaVITTokenizer, language_ids
from tests.parity.cases import Case, ramp_mean
from tests.parity.tokenizers.seed_tokenizer import GivenFeatures, check_gradients, nearest

MANIFESTS = {"lavit_dynamic_tokenizer": [(LaVITTokenizer, "lavit")]}


def run(case: Case) -> None:
    tokenizer = case.load(LaVITTokenizer, encoder=GivenFeatures())
    features = case.io["in.features"].requires_grad_()
    results = outputs(tokenizer, features, case.io["in.gumbel"])
    for name in case.named("out."):
        case.check(f"out.{name}", results[name])
    # Cases with gradients start from the mean of one or several outputs, each times a ramp.
    ramps = [ramp_mean(value) for value in results.values() if value.is_floating_point()]
    totals = [sum(chosen) for count in range(1, len(ramps) + 1) for chosen in combinations(ramps, count)]
    for name, wanted in case.named("loss.").items():
        totals = [nearest(wanted, totals)]
        case.check(f"loss.{name}", totals[0])
    check_gradients(case, tokenizer, "lavit", totals, features=features)


def outputs(tokenizer: LaVITTokenizer, features: Tensor, gumbel: Tensor) -> dict[str, Tensor]:
    bottleneck = tokenizer.bottleneck
    latents = bottleneck(features, gumbel=gumbel)
    real = latents.ids != PADDING
    patches = features[:, 1:]
    keep = torch.zeros(patches.shape[:2], dtype=torch.long)
    image = torch.arange(len(keep))[:, None].expand_as(real)
    keep[image[real], latents.positions[real]] = 1
    decision = bottleneck.decide(patches, gumbel=gumbel)
    assert torch.equal(decision.long(), keep)
    updated = bottleneck.merger(patches, decision)
    torch.testing.assert_close(updated[keep.bool()], latents.features[real])
    rows = bottleneck.lookup(latents.ids)
    torch.testing.assert_close(rows, latents.z)
    return {
        "pred_score": bottleneck.selector(patches),
        "keep": keep,
        "updated": updated,
        "understanding": tokenizer.llm_embeds(latents)[real],
        "token_nums": latents.lengths,
        "quant": rows[real],
        "ids": torch.cat(language_ids(latents.ids, special=False)),
        "ids_special": torch.cat(language_ids(latents.ids)),
    }
