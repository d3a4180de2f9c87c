"""Lookup-free quantization, by vector-quantize-pytorch and by Open-MAGVIT2."""

import torch

from mmblocks.tokenizers.bottlenecks.lookup_free import LookupFreeQuantizer
from tests.parity.bottlenecks.fsq import built, run_residual
from tests.parity.bottlenecks.vq import channels_last, check_outputs, check_step, inverse_temperature, tokens
from tests.parity.cases import Case, ramp_mean


def run(case: Case) -> None:
    if "MAGVIT2" in case.description["upstream_class"]:
        run_open_magvit2(case)
        return
    if "Residual" in case.description["upstream_class"]:
        run_residual(case)
        return
    bottleneck = built(case, LookupFreeQuantizer, temperature=1 / inverse_temperature(case))
    last = channels_last(case)
    latents = check_outputs(case, bottleneck, last)
    names = ("sample_entropy", "codebook_entropy", "commitment")
    sample, codebook, commitment = (latents.loss[name] if latents.loss else torch.zeros(()) for name in names)
    weight = case.config.get("commitment_loss_weight", 0.0)
    if not weight:  # official code leaves the term out then
        commitment = torch.zeros(())
    for name, value in (("per_sample_entropy", sample), ("codebook_entropy", codebook), ("commitment", commitment)):
        if f"out.{name}" in case.io:
            case.check(f"out.{name}", value)
    entropy = sample - case.config.get("diversity_gamma", 1.0) * codebook
    aux = case.config.get("entropy_loss_weight", 0.1) * entropy + weight * commitment
    check_step(case, bottleneck, latents, aux, last)


def run_open_magvit2(case: Case) -> None:
    config = case.config
    bits = config["codebook_size"].bit_length() - 1
    factorized = tuple(config.get("factorized_bits", (9, 9))) if config.get("token_factorization") else (bits,)
    bottleneck = LookupFreeQuantizer(bits=factorized).train(case.is_training)
    x = case.io["in.x"].requires_grad_()
    latents = bottleneck(tokens(case, last=False))
    quantized = latents.z.movedim(-1, 1)
    case.check("out.quant", quantized)
    if "out.indices" in case.io:
        case.check("out.indices", latents.ids.flatten())
    for number, name in enumerate(("pre", "post")):
        if f"out.indices_{name}" in case.io:
            case.check(f"out.indices_{name}", latents.ids[..., number].flatten())
    names = ("sample_entropy", "codebook_entropy", "commitment")
    sample, codebook, commitment = (latents.loss[name] if latents.loss else torch.zeros(()) for name in names)
    entropy = config.get("sample_minimization_weight", 1.0) * sample - config.get("batch_maximization_weight", 1.0) * codebook
    results = {
        "loss.entropy_aux": entropy,
        "loss.commit": commitment,
        "out.per_sample_entropy": sample,
        "out.codebook_entropy": codebook,
        "loss.total": ramp_mean(quantized) + 0.1 * entropy + 0.25 * commitment,
    }
    for name in results.keys() & case.io.keys():
        case.check(name, results[name])
    if "grad.x" in case.io:
        results["loss.total"].backward()
        case.check("grad.x", x.grad)
