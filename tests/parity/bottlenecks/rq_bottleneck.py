"""Residual quantisation of RQ-VAE, as DualToken uses it."""

import torch

from mmblocks.tokenizers.bottlenecks.residual.rq import RQBottleneck
from tests.parity.cases import Case, ramp_mean


def run(case: Case) -> None:
    bottleneck = case.load(RQBottleneck)
    x = case.io["in.x"].requires_grad_()
    if "eval mode" in case.description["notes"]:
        latents = bottleneck(x)
        depths = bottleneck.depths(latents.ids)
        commitment = bottleneck.commitment(x, depths)
        case.check("out.depth", depths)
        torch.testing.assert_close(bottleneck.lookup(latents.ids), latents.z, atol=1e-5, rtol=1e-5)
    else:
        torch.manual_seed(case.description["seed"])
        latents = bottleneck.train()(x)
        commitment = latents.loss["commitment"]
    case.check("out.quant", latents.z)
    case.check("out.codes", latents.ids)
    case.check("loss.commit", commitment)
    if case.named("grad."):
        (ramp_mean(latents.z) + commitment).backward()
        case.check_gradients(bottleneck, "rq", x=x)
    state = dict(bottleneck.layouts[0].convert(bottleneck.state_dict(), bottleneck.config, to="theirs"))
    for name in case.named("state."):
        case.check(f"state.{name}", state[name])
