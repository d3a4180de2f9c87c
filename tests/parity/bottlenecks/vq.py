"""vector-quantize-pytorch's VectorQuantize and SimVQ; what its other quantizers have in common with them."""

import re

import torch
from torch import Tensor

from mmblocks import Block
from mmblocks.sequence.tokens import Latents
from mmblocks.tokenizers.bottlenecks.ema import EMAVectorQuantizer
from mmblocks.tokenizers.bottlenecks.multi_head import MultiHeadVectorQuantizer
from mmblocks.tokenizers.bottlenecks.sim_vq import SimVQ
from tests.parity.cases import Case, ramp_mean

LAYOUT = "vector_quantize_pytorch"


def run(case: Case) -> None:
    if case.description["upstream_class"].endswith("SimVQ"):
        run_sim_vq(case)
        return
    plain = EMAVectorQuantizer.layouts[0].fits(case.weights, case.config)
    bottleneck = case.load(EMAVectorQuantizer if plain else MultiHeadVectorQuantizer)
    last = channels_last(case)
    latents = check_outputs(case, bottleneck, last)
    weights = {
        "commitment": case.config.get("commitment_weight", 1.0),
        "codebook_diversity": case.config.get("codebook_diversity_loss_weight", 0.0),
        "orthogonality": case.config.get("orthogonal_reg_weight", 0.0),
    }
    aux = sum((weights[name] * loss for name, loss in (latents.loss or {}).items()), torch.zeros(()))
    check_step(case, bottleneck, latents, aux, last)


def run_sim_vq(case: Case) -> None:
    bottleneck = case.load(SimVQ)
    last = channels_last(case)
    latents = check_outputs(case, bottleneck, last)
    # Official code returns the loss in evaluation too.
    losses = latents.loss or bottleneck.train()(tokens(case, last)).loss
    share = case.config.get("input_to_quantize_commit_loss_weight", 0.25)
    weight = case.config.get("commitment_weight", 1.0)
    check_step(case, bottleneck, latents, weight * (losses["codebook"] + share * losses["commitment"]), last)


def channels_last(case: Case) -> bool:
    """Whether the case's tensors have their channels last."""
    x = case.io["in.x"]
    maps = any(case.config.get(name) for name in ("accept_image_fmap", "accept_3d_fmap", "channel_first", "is_channel_first"))
    return not (maps or not case.config.get("channel_last", True) or x.ndim > 3)


def tokens(case: Case, last: bool = True) -> Tensor:
    """The case's features as ours: (B, *grid, D)."""
    x = case.io["in.x"]
    return x if last else x.movedim(1, -1)


def inverse_temperature(case: Case) -> float:
    """Of the soft choices in LFQ's entropies: an argument of the official forward, which the config or the notes tell."""
    noted = re.search(r"inv_temperature\s*=\s*([0-9.]*[0-9])", case.description["notes"])
    return float(case.config.get("inv_temperature", noted[1] if noted else 100.0))


def check_outputs(case: Case, bottleneck: Block, last: bool) -> Latents:
    """In the mode of the case: codes, vectors, and vectors looked up again."""
    bottleneck.train(case.is_training)
    case.io["in.x"].requires_grad_()
    latents = bottleneck(tokens(case, last))
    if "out.indices" in case.io:
        case.check("out.indices", latents.ids.reshape(case.io["out.indices"].shape))
    case.check("out.quant", latents.z if last else latents.z.movedim(-1, 1))
    if "out.from_ids" in case.io:
        vectors = bottleneck.lookup(latents.ids)
        case.check("out.from_ids", vectors if last else vectors.movedim(-1, 1))
    return latents


def check_step(case: Case, bottleneck: Block, latents: Latents, aux: Tensor, last: bool) -> None:
    """The losses, where there are some; the gradients of their sum with the outputs'; buffers after the step."""
    if "loss.aux" in case.io:
        case.check("loss.aux", aux)
    if "loss.total" in case.io:
        total = ramp_mean(latents.z if last else latents.z.movedim(-1, 1)) + aux.sum()
        case.check("loss.total", total)
        if case.named("grad."):
            total.backward()
    case.check_gradients(bottleneck, LAYOUT, x=case.io["in.x"])
    (table,) = (known for known in bottleneck.layouts if known.name == LAYOUT)
    after = dict(table.convert(bottleneck.state_dict(), bottleneck.config, to="theirs"))
    for name in case.named("state."):
        case.check(f"state.{name}", after[name])
