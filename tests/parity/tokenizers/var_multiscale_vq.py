"""VAR's quantiser from coarse to fine, its tokenizer, and its transformer."""

from typing import Any

import torch
from torch import Tensor

from mmblocks.layers.categorical import Sampling, truncate
from mmblocks.models.var.transformer import VAR
from mmblocks.sequence.masks import visible
from mmblocks.tokenizers.bottlenecks.multi_scale import MultiScaleQuantizer
from mmblocks.tokenizers.conv.blocks import channels_first, channels_last
from mmblocks.tokenizers.var.tokenizer import VARVQ
from tests.parity.cases import Case

MANIFESTS = {
    "var_vqvae_ch160v4096z32": [(VARVQ, "var")],
    **{f"var_d{layers}": [(VAR, "var")] for layers in (16, 20, 24, 30)},
}


def run(case: Case) -> None:
    if "in.f" in case.io:
        check_quantizer(case)
    elif "in.img" in case.io:
        check_tokenizer(case)
    else:
        check_transformer(case)


def scales_of(case: Case) -> list | None:
    """The scales that the official encoder was given in place of its own: some are rows and columns."""
    return next((value for name, value in case.config.items() if "override" in name or _has_pairs(value)), None)


def _has_pairs(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, list) for item in value)


def own_arguments(case: Case) -> dict[str, Any]:
    """The config without what the official forward was given."""
    return {name: value for name, value in case.config.items() if "override" not in name and not _has_pairs(value)}


def check_quantizer(case: Case) -> None:
    scales = scales_of(case)
    bottleneck = case.load(MultiScaleQuantizer, own_arguments(case))
    f = case.io["in.f"].requires_grad_()
    latents = bottleneck(channels_last(f), scales=scales)
    ids = latents.ids
    for number, part in enumerate(bottleneck.split(ids, scales=scales)):
        case.check(f"out.idx{number}", part.flatten(1))
    totals = bottleneck.cumulative(ids, scales=scales)
    for number, total in enumerate(totals):
        case.check(f"out.fhat{number}", channels_first(total))
    if "out.embed_to_fhat_last" in case.io:
        case.check("out.embed_to_fhat_last", channels_first(bottleneck.lookup(ids, scales=scales)))
    if "out.var_input" in case.io:
        case.check("out.var_input", bottleneck.next_scale_inputs(ids, scales=scales))
    total = None
    for number, part in enumerate(bottleneck.split(ids, scales=scales)):
        total, following = bottleneck.add_scale(total, bottleneck.vectors(part), number, scales=scales)
        if f"out.ar_next{number}" in case.io:
            case.check(f"out.ar_next{number}", channels_first(following))
    if "out.train_fhat" in case.io:
        check_training(case, bottleneck, f)


def check_training(case: Case, bottleneck: MultiScaleQuantizer, f: Tensor) -> None:
    """Losses and gradients; the official forward knows no other scales than its own."""
    latents = bottleneck.train()(channels_last(f))
    out = channels_first(latents.z)
    loss = latents.loss["codebook"] + case.config.get("beta", 0.25) * latents.loss["commitment"]
    case.check("out.train_fhat", out)
    case.check("loss.vq", loss)
    (loss + 0.01 * (out * case.io["in.w"]).sum()).backward()
    (layout,) = (known for known in bottleneck.layouts if known.fits(case.weights, own_arguments(case)))
    case.check_gradients(bottleneck, layout.name, f=f)
    state = dict(layout.convert(bottleneck.state_dict(), bottleneck.config, to="theirs"))
    for name in case.named("state."):
        case.check(f"state.{name}", state[name])


def check_tokenizer(case: Case) -> None:
    tokenizer = case.load(VARVQ)
    features = tokenizer.encoder(case.io["in.img"])
    case.check("out.latent", channels_first(features))
    scales = scales_of(case)
    latents = tokenizer.bottleneck(features, scales=scales)
    for number, part in enumerate(tokenizer.bottleneck.split(latents.ids, scales=scales)):
        case.check(f"out.idx{number}", part.flatten(1))
    case.check("out.recon", tokenizer.decoder(latents.z).clamp(-1, 1))
    if "out.recon_from_idx" in case.io:
        z = tokenizer.bottleneck.lookup(latents.ids, scales=scales)
        case.check("out.recon_from_idx", tokenizer.decoder(z).clamp(-1, 1))


def check_transformer(case: Case) -> None:
    model = case.load(VAR, {name: value for name, value in case.config.items() if name != "sampling"})
    labels, inputs = case.io["in.label"], case.io["in.x"]
    case.check("out.attn_bias_visible", visible(model.row.table)[0])
    case.check("out.logits", model(labels, inputs))

    settings = case.config["sampling"]
    sampling = Sampling(top_k=settings.get("top_k") or None, top_p=settings.get("top_p") or None)
    ids = torch.cat([case.io[f"in.draw{number}"].flatten(1) for number in range(len(model.scales))], dim=1)
    logits: list[Tensor] = []
    made = model.sample(labels, quantizer_of(case), guidance=settings["cfg"], sampling=sampling, ids=ids, logits=logits)
    for number, values in enumerate(logits):
        case.check(f"out.probs{number}", truncate(values.flatten(0, 1), sampling).softmax(dim=-1))
    case.check("out.f_hat_final", channels_first(made.z))


def quantizer_of(case: Case) -> MultiScaleQuantizer:
    """The tokenizer's bottleneck, which the case stores beside the transformer."""
    weights = {name.removeprefix("vae_quant."): value for name, value in case.weights.items() if name.startswith("vae_quant.")}
    (layout,) = (known for known in MultiScaleQuantizer.layouts if known.fits(weights, case.config["quant"]))
    quantizer = MultiScaleQuantizer(**layout.arguments(case.config["quant"])).eval()
    quantizer.load_state_dict(dict(layout.convert(weights, quantizer.config)))
    return quantizer
