"""Index backpropagation, the bottleneck of IBQ and of Emu3.5's tokenizer."""

from mmblocks.tokenizers import IBQ
from mmblocks.tokenizers.bottlenecks import IndexBackpropagation
from mmblocks.tokenizers.conv.blocks import channels_first, channels_last
from tests.parity.cases import Case, ramp_mean

MANIFESTS = {"ibq_imagenet_16384": [(IBQ, "ibq")], "ibq_pretrain_262144": [(IBQ, "ibq")]}


def run(case: Case) -> None:
    uses_entropy = case.config.get("use_entropy_loss", "loss.entropy" in case.io)
    temperature = case.config.get("entropy_temperature", 0.01) if uses_entropy else None
    bottleneck = case.load(IndexBackpropagation, entropy_temperature=temperature).train()
    features = case.io["in.z"].requires_grad_()
    latents = bottleneck(channels_last(features))
    quantized, losses = channels_first(latents.z), latents.loss
    case.check("out.quant", quantized)
    case.check("out.indices", latents.ids.flatten())
    loss = losses["index"] + losses["commitment"] + case.config["beta"] * losses["codebook"]
    case.check("loss.quant", loss)
    total = ramp_mean(quantized) + loss
    if uses_entropy:
        surer, wider = (case.config.get(name, 1.0) for name in ("sample_minimization_weight", "batch_maximization_weight"))
        entropy = surer * losses["sample_entropy"] - wider * losses["codebook_entropy"]
        for name, value in (
            ("loss.entropy", entropy),
            ("out.sample_entropy", losses["sample_entropy"]),
            ("out.avg_entropy", losses["codebook_entropy"]),
        ):
            if name in case.io:
                case.check(name, value)
        total = total + 0.05 * entropy
    case.check("loss.total", total)
    total.backward()
    case.check_gradients(bottleneck, "ibq", z=features)
