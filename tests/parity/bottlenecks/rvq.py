"""vector-quantize-pytorch's ResidualVQ and GroupedResidualVQ."""

from copy import deepcopy

import torch
from einops import rearrange
from torch import Tensor

from mmblocks.tokenizers.bottlenecks.residual.quantizer import ResidualQuantizer
from tests.parity.bottlenecks.fsq import dropout_seed, run_residual
from tests.parity.bottlenecks.vq import channels_last, tokens
from tests.parity.cases import Case, ramp_mean


def run(case: Case) -> None:
    if case.description["upstream_class"].endswith(("FSQ", "LFQ")):
        run_residual(case)
        return
    bottleneck = case.load(ResidualQuantizer).train(case.is_training)
    grouped = case.description["upstream_class"].endswith("GroupedResidualVQ")
    last = channels_last(case)
    x = case.io["in.x"].requires_grad_()
    fresh = deepcopy(bottleneck)
    seed = dropout_seed(case) if case.config.get("quantize_dropout") and case.is_training else None
    latents = bottleneck(tokens(case, last), dropout_seed=seed)
    ids = rearrange(latents.ids, "... (g q) -> g ... q", g=len(bottleneck.groups))
    case.check("out.indices", ids if grouped else ids[0])
    case.check("out.quant", latents.z if last else latents.z.movedim(-1, 1))
    if "out.from_ids" in case.io:
        vectors = bottleneck.lookup(latents.ids)
        case.check("out.from_ids", vectors if last else vectors.movedim(-1, 1))
    aux = each_loss(case, fresh, tokens(case, last), seed)
    if "loss.aux" in case.io:
        case.check("loss.aux", aux if grouped else aux[0])
    if "loss.total" in case.io:
        # Ours is the mean of what the case sums up.
        weight = case.config.get("commitment_weight", 1.0) * aux.numel()
        total = ramp_mean(latents.z if last else latents.z.movedim(-1, 1)) + weight * latents.loss["commitment"]
        case.check("loss.total", total)
        if case.named("grad."):
            total.backward()
    layout = "vector_quantize_pytorch_grouped" if grouped else "vector_quantize_pytorch"
    case.check_gradients(bottleneck, layout, x=x)
    (table,) = (known for known in bottleneck.layouts if known.name == layout)
    after = dict(table.convert(bottleneck.state_dict(), bottleneck.config, to="theirs"))
    for name in case.named("state."):
        case.check(f"state.{name}", after[name])


def each_loss(case: Case, bottleneck: ResidualQuantizer, features: Tensor, seed: int | None) -> Tensor:
    """The weighted loss of each quantizer of each group, whose mean alone a forward returns."""
    pieces = features.detach().flatten(1, -2).chunk(len(bottleneck.groups), dim=-1)
    pairs = zip(bottleneck.groups, pieces, strict=True)
    losses = torch.stack([group(piece, rand_quantize_dropout_fixed_seed=seed)[2] for group, piece in pairs])
    return case.config.get("commitment_weight", 1.0) * losses
