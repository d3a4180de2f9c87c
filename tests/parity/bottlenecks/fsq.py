"""vector-quantize-pytorch's FSQ, and its residual quantizers without codebooks: ResidualFSQ, ResidualLFQ, and both in groups."""

import re
from random import Random

import torch
from einops import rearrange
from torch import Tensor

from mmblocks.tokenizers.bottlenecks.finite_scalar import FiniteScalarQuantizer
from mmblocks.tokenizers.bottlenecks.residual.finite_scalar import ResidualFiniteScalarQuantizer
from mmblocks.tokenizers.bottlenecks.residual.lookup_free import ResidualLookupFreeQuantizer
from mmblocks.tokenizers.bottlenecks.residual.scales import ResidualScales
from tests.parity.bottlenecks.vq import channels_last, check_outputs, inverse_temperature, tokens
from tests.parity.cases import AnyBlock, Case, ramp_mean


def run(case: Case) -> None:
    if "Residual" in case.description["upstream_class"]:
        run_residual(case)
        return
    bottleneck = built(case, FiniteScalarQuantizer)
    last = channels_last(case)
    latents = check_outputs(case, bottleneck, last)
    if "loss.total" in case.io or case.named("grad."):
        total = ramp_mean(latents.z if last else latents.z.movedim(-1, 1))
        if "loss.total" in case.io:
            case.check("loss.total", total)
        total.backward()
    case.check_gradients(bottleneck, "vector_quantize_pytorch", x=case.io["in.x"])


def built(case: Case, cls: type[AnyBlock], **options: float) -> AnyBlock:
    """From the weights; where no layer projects anything, there are none, or buffers alone."""
    if case.has_weights and any(layout.fits(case.weights, case.config) for layout in cls.layouts):
        return case.load(cls, **options)
    return cls(**{**cls.layouts[0].arguments(case.config), **options}).eval()


def run_residual(case: Case) -> None:
    grouped, bits = (name in case.description["upstream_class"] for name in ("Grouped", "LFQ"))
    cls: type[ResidualScales] = ResidualLookupFreeQuantizer if bits else ResidualFiniteScalarQuantizer
    bottleneck = built(case, cls, **({"temperature": 1 / inverse_temperature(case)} if bits else {})).train(case.is_training)
    last, x = channels_last(case), case.io["in.x"].requires_grad_()
    kept = num_kept(case, bottleneck)
    latents = bottleneck(tokens(case, last), num_kept=kept)
    case.check("out.indices", as_published(case, latents.ids, len(bottleneck.groups), grouped))
    quantized = latents.z if last else latents.z.movedim(-1, 1)
    case.check("out.quant", quantized)
    if "out.from_ids" in case.io:
        vectors = looked_up(case, bottleneck, latents.ids)
        case.check("out.from_ids", vectors if last else vectors.movedim(-1, 1))
    total = ramp_mean(quantized)
    if bits:
        aux = each_loss(case, bottleneck, tokens(case, last), kept or bottleneck.num_quantizers)
        if "loss.aux" in case.io:
            case.check("loss.aux", aux if grouped else aux[0])
        total = total + aux.sum()
    if "loss.total" in case.io:
        case.check("loss.total", total)
    if case.named("grad."):
        total.backward()
        name = "vector_quantize_pytorch_grouped" if grouped else "vector_quantize_pytorch"
        case.check_gradients(bottleneck, name, x=x)


def as_published(case: Case, ids: Tensor, num_groups: int, grouped: bool) -> Tensor:
    """Groups come first there, and numbers before places where channels come first."""
    numbers = rearrange(ids, "b ... (g q) -> g b ... q", g=num_groups)
    numbers = numbers.movedim(-1, 2) if case.config.get("is_channel_first") else numbers
    return numbers if grouped else numbers[0]


def num_kept(case: Case, bottleneck: ResidualScales) -> int | None:
    """How many quantizers the recorded seed leaves, an argument of the official forward; None where none are left out."""
    if not (case.is_training and bottleneck.dropout):
        return None
    last = Random(dropout_seed(case)).randrange(bottleneck.dropout_first, bottleneck.num_quantizers)
    multiple = bottleneck.dropout_multiple
    return min(-(-(last + 1) // multiple) * multiple, bottleneck.num_quantizers)


def dropout_seed(case: Case) -> int:
    """What decides which quantizers were left out."""
    given = case.config.get("rand_quantize_dropout_fixed_seed")
    noted = re.search(r"rand_quantize_dropout_fixed_seed\s*=\s*(\d+)", case.description["notes"])
    assert given is not None or noted is not None, "which quantizers were left out is not recorded"
    return int(given) if noted is None else int(noted[1])


def looked_up(case: Case, bottleneck: ResidualScales, ids: Tensor) -> Tensor:
    """Vectors by number. The library's own lookup of spherical residual codes leaves out that they have length one."""
    if not case.config.get("spherical"):
        return bottleneck.lookup(ids)
    plain = ResidualLookupFreeQuantizer(**{**bottleneck.config, "spherical": False})
    plain.load_state_dict(bottleneck.state_dict())
    return plain.lookup(ids)


def each_loss(case: Case, bottleneck: ResidualScales, features: Tensor, kept: int) -> Tensor:
    """The weighted loss of each quantizer of each group (G, Q); those left out, and all in evaluation, have none."""
    entropy, gamma = case.config.get("entropy_loss_weight", 0.1), case.config.get("diversity_gamma", 1.0)
    weights = {
        "sample_entropy": entropy,
        "codebook_entropy": -entropy * gamma,
        "commitment": case.config.get("commitment_loss_weight", 0.0),
    }
    losses = torch.zeros(len(bottleneck.groups), bottleneck.num_quantizers)
    pieces = features.flatten(1, -2).chunk(len(bottleneck.groups), dim=-1)
    for group, (ways, piece) in enumerate(zip(bottleneck.groups, pieces, strict=True)):
        left = bottleneck.prepared(ways.project_in(piece))
        for number in range(kept):
            level = bottleneck.quantise(left, number)
            left = left - level.z.detach()
            losses[group, number] = sum((weights[name] * loss for name, loss in level.loss.items()), torch.zeros(()))
    return losses
