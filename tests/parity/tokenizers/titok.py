"""TiTok and TA-TiTok in all their forms."""

import json
import re
from typing import Any

from torch import Tensor

from mmblocks import Latents
from mmblocks.tokenizers.bottlenecks.gaussian import divergence
from mmblocks.tokenizers.titok.first_stage import FirstStageTiTok
from mmblocks.tokenizers.titok.tokenizer import OneDimensionalTokenizer, OneStageTiTok, TATiTok, TiTok
from tests.parity.cases import Case, ramp_mean

MANIFESTS = {
    "titok_l32": [(TiTok, "titok")],
    "titok_b64": [(TiTok, "titok")],
    "titok_ll32_vae_c16": [(OneStageTiTok, "titok")],
    "tatitok_bl32_vq": [(TATiTok, "tatitok")],
}


def run(case: Case) -> None:
    tokenizer = load(case)
    tokenizer.train("eval mode" not in case.description["notes"])
    pixels = case.io["in.x"].requires_grad_()
    features = tokenizer.encoder(pixels)
    latents = tokenizer.bottleneck(features, **draws(case, tokenizer))
    results = {"z": rows_last(features), "quant": rows_last(latents.z)}
    if latents.ids is not None:
        results |= {"indices": latents.ids[:, None], "dec_tokens": decode(case, tokenizer, tokenizer.lookup(latents.ids))}
    else:
        results |= gaussian_results(case, tokenizer, latents)
    results["dec"] = decode(case, tokenizer, latents.z)
    if isinstance(tokenizer, TiTok):
        results["pixel_code_logits"] = tokenizer.decoder.logits(latents.z).permute(0, 3, 1, 2)
    for name in case.named("out."):
        case.check(f"out.{name}", results[name])

    losses = published_losses(case, tokenizer, latents.loss or losses_of(case, tokenizer, features))
    for name in case.named("loss."):
        if name != "total":
            case.check(f"loss.{name}", losses[name])
    if case.named("grad."):
        total = ramp_mean(results["dec"]) + sum(losses[name] for name in ("quantizer", "kl") if name in losses)
        if "loss.total" in case.io:
            case.check("loss.total", total)
        total.backward()
        (layout,) = tokenizer.layouts
        case.check_gradients(tokenizer, layout.name, x=pixels)
    state = dict(tokenizer.layouts[0].convert(tokenizer.state_dict(), tokenizer.config, to="theirs"))
    for name in case.named("state."):
        case.check(f"state.{name}", state[name])


def load(case: Case) -> OneDimensionalTokenizer:
    """The cases are made with smaller size tables, which are told in words."""
    model, words = case.config["model"]["vq_model"], case.config.get("override", "")
    cls = TATiTok if "decoder.text_guidance_proj.weight" in case.weights else OneStageTiTok
    numbers = re.findall(r"(small|base|large) = width (\d+), (\d+) layers, (\d+) heads", words)
    sizes = {name: tuple(map(int, size)) for name, *size in numbers}
    options: dict[str, Any] = {
        f"{half}coder_size": sizes[model[f"vit_{half}c_model_size"]]
        for half in ("en", "de")
        if model[f"vit_{half}c_model_size"] in sizes
    }
    if model.get("finetune_decoder", True):
        cls = TiTok
        options |= pixel_decoder_options(words)
    elif model.get("is_legacy", True):
        cls = FirstStageTiTok
        options |= {name: value for name, value in pixel_decoder_options(words).items() if name == "num_pixel_codes"}
    return case.load(cls, **options)


def pixel_decoder_options(words: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if codebook := re.search(r"pixel codebook \S+ -> (\d+)x(\d+)", words):
        options |= {"num_pixel_codes": int(codebook[1]), "pixel_code_dim": int(codebook[2])}
    if found := re.search(r"pixel decoder (\{.*\})", words):
        network = json.loads(found[1])
        options["pixel_channels"] = network["hidden_channels"]
        options["pixel_multipliers"] = tuple(network["channel_mult"])
        options["pixel_blocks"] = network["num_res_blocks"]
    return options


def draws(case: Case, tokenizer: OneDimensionalTokenizer) -> dict[str, Any]:
    """What the bottleneck drew; the mean where nothing is recorded."""
    if tokenizer.codebook_sizes:
        return {}
    return {"noise": columns_last(case.io["in.noise"])} if "in.noise" in case.io else {"sample": False}


def text(case: Case) -> list[Tensor]:
    """The embeddings that guide the decoder, where there are some."""
    return [values for name, values in case.named("in.").items() if name not in ("x", "noise")]


def decode(case: Case, tokenizer: OneDimensionalTokenizer, z: Tensor) -> Tensor:
    decoded = tokenizer.decoder(z, *text(case))
    return decoded.permute(0, 3, 1, 2) if isinstance(tokenizer, FirstStageTiTok) else decoded


def gaussian_results(case: Case, tokenizer: OneDimensionalTokenizer, latents: Latents) -> dict[str, Tensor]:
    mean, logvar = latents.mean, latents.logvar
    dec_mean = decode(case, tokenizer, mean)
    kl = divergence(mean, logvar).sum(-1)
    values = {"mean": mean, "mode": mean, "logvar": logvar, "std": (logvar / 2).exp(), "var": logvar.exp(), "sample": latents.z}
    results = {name: rows_last(value) for name, value in values.items()}
    return {**results, "kl": kl, "dec_mean": dec_mean, "dec_mode": dec_mean, "dec_tokens": decode(case, tokenizer, latents.z)}


def losses_of(case: Case, tokenizer: OneDimensionalTokenizer, features: Tensor) -> dict[str, Tensor]:
    """Upstream gives losses in evaluation too."""
    losses = tokenizer.bottleneck.train()(features, **draws(case, tokenizer)).loss
    tokenizer.bottleneck.eval()
    return losses


def published_losses(case: Case, tokenizer: OneDimensionalTokenizer, losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weighted as upstream gives them; none of them while only the decoder learns."""
    if "kl" in losses:
        return losses
    scale = 0.0 if isinstance(tokenizer, TiTok) else 1.0
    codebook = scale * losses["codebook"]
    commitment = scale * case.config["model"]["vq_model"]["commitment_cost"] * losses["commitment"]
    return {"codebook": codebook, "commitment": commitment, "quantizer": codebook + commitment}


def rows_last(tokens: Tensor) -> Tensor:
    """(B, K, D) to upstream's (B, D, 1, K)."""
    return tokens.transpose(1, 2)[:, :, None]


def columns_last(maps: Tensor) -> Tensor:
    """(B, D, 1, K) to (B, K, D)."""
    return maps[:, :, 0].transpose(1, 2)
