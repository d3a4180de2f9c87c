"""The bottleneck of Tar's text-aligned tokenizer."""

import torch

from mmblocks.tokenizers.bottlenecks.text_aligned import TextAlignedQuantizer
from tests.parity.cases import Case, ramp_mean


def run(case: Case) -> None:
    bottleneck = case.load(TextAlignedQuantizer)
    x = case.io["in.x"].requires_grad_()
    latents = bottleneck(x)
    case.check("out", latents.z)
    case.check("out.ids", latents.ids)
    case.check("out.projected", bottleneck.project_in(x))
    case.check("out.quant", torch.nn.functional.embedding(latents.ids, bottleneck.vectors))
    case.check("out.emb", bottleneck.vectors)
    case.check("out.from_ids", bottleneck.lookup(latents.ids))
    if case.named("grad."):
        ramp_mean(latents.z).backward()
        case.check_gradients(bottleneck, "tar", x=x)
