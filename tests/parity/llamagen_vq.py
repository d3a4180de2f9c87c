"""LlamaGen's tokenizer. Cases of its language model and of its sampling belong to other parts."""

import pytest
from torch import Tensor

from mmblocks import LlamaGenVQ
from mmblocks.layers.conv import channels_first
from tests.parity.cases import Case

MANIFESTS = {"llamagen_vq16": [(LlamaGenVQ, "llamagen")], "llamagen_vq8": [(LlamaGenVQ, "llamagen")]}


def run(case: Case) -> None:
    if "in.img" not in case.io:
        pytest.skip(f"llamagen_vq/{case.folder.name}: no tokenizer in it; language model and sampling have no adapter yet")
    tokenizer = case.load(LlamaGenVQ, entropy_temperature=0.01)
    check_evaluation(case, tokenizer.eval())
    check_training(case, tokenizer.train())


def check_evaluation(case: Case, tokenizer: LlamaGenVQ) -> None:
    features = tokenizer.encoder(case.io["in.img"])
    latents = tokenizer.bottleneck(features)
    case.check("out.pre_quant", channels_first(features))
    case.check("out.quant", channels_first(latents.z))
    case.check("out.indices", latents.ids.flatten())
    case.check("out.recon", tokenizer.decoder(latents.z))
    vectors = tokenizer.lookup(case.io["in.codes"].view(latents.ids.shape))
    case.check("out.codebook_entry_channel_last", vectors)
    case.check("out.recon_from_code", tokenizer.decoder(vectors))


def check_training(case: Case, tokenizer: LlamaGenVQ) -> None:
    latents = tokenizer.bottleneck(tokenizer.encoder(case.io["in.img"]))
    rebuilt = tokenizer.decoder(latents.z)
    losses = published_losses(case, latents.loss)
    case.check("out.train_recon", rebuilt)
    for name, loss in losses.items():
        case.check(f"loss.{name}", loss)
    ((rebuilt * case.io["in.w"]).mean() + sum(losses.values())).backward()
    case.check_gradients(tokenizer, "llamagen")


def published_losses(case: Case, losses: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        "vq": losses["codebook"],
        "commit": case.config["commit_loss_beta"] * losses["commitment"],
        "entropy": case.config["entropy_loss_ratio"] * (losses["sample_entropy"] - losses["codebook_entropy"]),
    }
