"""Emu3.5's tokenizer: evaluation with the decoder's maps level by level, and its training loss."""

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from mmblocks.tokenizers import IBQ
from mmblocks.tokenizers.conv.blocks import channels_first
from tests.parity.cases import Case

MANIFESTS = {"emu35_vision_tokenizer": [(IBQ, "ibq")]}


def run(case: Case) -> None:
    tokenizer = case.load(IBQ)
    if "in.target" in case.io:
        check_training(case, tokenizer.train())
    else:
        check_evaluation(case, tokenizer)


@torch.no_grad()
def check_evaluation(case: Case, tokenizer: IBQ) -> None:
    before_projection: list[Tensor] = []
    tokenizer.encoder.project.register_forward_pre_hook(lambda module, given: before_projection.append(given[0]))
    features = tokenizer.encoder(case.io["in.pixels"])
    latents = tokenizer.bottleneck(features)
    case.check("out.encoder", before_projection[0])
    case.check("out.prequant", channels_first(features))
    sure = case.io.get("out.code_margin", torch.full(latents.ids.shape, torch.inf)) > 1e-3
    case.leave_out("out.code_margin")  # not an output: how sure each code is
    case.check("out.codes", latents.ids, where=sure)
    case.check("out.quant", channels_first(latents.z))

    if "in.random_codes" in case.io:
        case.check("out.decoded_from_random_codes", tokenizer.decoder(tokenizer.lookup(case.io["in.random_codes"])))
    maps: list[Tensor] = []
    for level in tokenizer.decoder.from_deepest():
        level.register_forward_hook(lambda module, given, made: maps.append(made))
    case.check("out.decoded", tokenizer.decoder(latents.z))
    for name in case.named("out.decoder_feat."):
        case.check(f"out.decoder_feat.{name}", maps[int(name)])


def check_training(case: Case, tokenizer: IBQ) -> None:
    latents = tokenizer.bottleneck(tokenizer.encoder(case.io["in.pixels"]))
    decoded = tokenizer.decoder(latents.z)
    case.check("out.codes", latents.ids)
    case.check("out.quant", channels_first(latents.z))
    case.check("out.decoded", decoded)
    losses = latents.loss
    quantizer_loss = losses["index"] + losses["commitment"] + case.config["beta"] * losses["codebook"]
    rebuilding = mse_loss(decoded, case.io["in.target"])
    total = rebuilding + quantizer_loss
    case.check("loss.quant", quantizer_loss)
    case.check("loss.rec", rebuilding)
    if case.config["use_entropy_loss"]:
        weights = case.config["sample_minimization_weight"], case.config["batch_maximization_weight"]
        entropy = weights[0] * losses["sample_entropy"] - weights[1] * losses["codebook_entropy"]
        terms = {"entropy": entropy, "sample_entropy": losses["sample_entropy"], "avg_entropy": losses["codebook_entropy"]}
        for name in set(terms) & set(case.named("loss.")):
            case.check(f"loss.{name}", terms[name])
        total = total + 0.1 * entropy
    case.check("loss.total", total)
    total.backward()
    case.check_gradients(tokenizer, "ibq")
