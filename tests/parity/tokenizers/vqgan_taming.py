"""taming's VQGAN."""

from torch import Tensor

from mmblocks.tokenizers import VQGAN, VisualTokenizer
from mmblocks.tokenizers.conv.blocks import channels_first
from tests.parity.cases import Case, ramp_mean

MANIFESTS = {"vqgan_imagenet_f16_1024": [(VQGAN, "taming")]}


def run(case: Case) -> None:
    check_vqgan(case, case.load(VQGAN), "taming")


def check_vqgan(case: Case, tokenizer: VisualTokenizer, layout: str) -> None:
    """Features, codes, loss, pixels and gradients: the cases of taming, Chameleon and Janus have one form."""
    tokenizer.train()  # official code returns the loss in evaluation too; nothing else depends on the mode
    pixels = case.io["in.x"].requires_grad_()
    features = tokenizer.encoder(pixels)
    latents = tokenizer.bottleneck(features)
    decoded = tokenizer.decoder(latents.z)
    case.check("out.h", channels_first(features))
    case.check("out.quant", channels_first(latents.z))
    case.check("out.indices", latents.ids.flatten())
    case.check("out.dec", decoded)
    if "out.dec_from_ids" in case.io:
        case.check("out.dec_from_ids", tokenizer.decoder(tokenizer.lookup(latents.ids)))
    loss = weighted(case, latents.loss)
    for name in {"out.emb_loss", "loss.emb", "loss.quant", "loss.emb_loss"} & set(case.io):
        case.check(name, loss)
    if case.named("grad."):
        total = ramp_mean(decoded) + loss
        case.check("loss.total", total)
        total.backward()
        case.check_gradients(tokenizer, layout, x=pixels)


def weighted(case: Case, losses: dict[str, Tensor]) -> Tensor:
    """taming's sum of the two terms. In its "legacy" form, with which the published models were trained, beta is the codebook's."""
    beta = case.config.get("beta", case.config.get("commit_loss_beta", 0.25))
    if case.config.get("legacy"):
        total = losses["commitment"] + beta * losses["codebook"]
    else:
        total = losses["codebook"] + beta * losses["commitment"]
    if "sample_entropy" in losses:
        total = total + case.config["entropy_loss_ratio"] * (losses["sample_entropy"] - losses["codebook_entropy"])
    return total
