"""MingTok: latents, semantic features and pixels."""

from torch import Tensor

from mmblocks.tokenizers.ming_tok.tokenizer import MingTok
from tests.parity.cases import Case, ramp_mean

MANIFESTS = {"mingtok": [(MingTok, "mingtok")]}


def run(case: Case) -> None:
    tokenizer = load(case)
    tokenizer.train(not case.description["notes"].startswith("eval"))
    pixels = case.io["in.x"].requires_grad_()
    tokens = tokenizer.encoder.tokens(pixels)
    latents = tokenizer.bottleneck(tokenizer.encoder(pixels))
    features = tokenizer.semantic(latents)
    results: dict[str, Tensor] = {
        "latent": tokenizer.bottleneck(tokens).z,  # with the class token's
        "features": features.flatten(1, 2),
        "features_from_latent": tokenizer.semantic(latents.z.flatten(1, 2)),
        "recon": tokenizer.decoder(latents.z).clamp(-1, 1),
    }
    for name in case.named("out."):
        case.check(f"out.{name}", results[name])
    case.check("out.recon", 2 * tokenizer.eval().decode(latents) - 1)
    if case.named("grad."):
        total = ramp_mean(results["recon"])
        if "loss.total" in case.io:
            case.check("loss.total", total)
        total.backward()
        case.check_gradients(tokenizer, "mingtok", x=pixels)


def load(case: Case) -> MingTok:
    """A config may leave out the semantic decoder's feed-forward layer, although it is not the default one."""
    semantic = dict(case.config["semantic_decoder"])
    if "semantic_decoder.blocks.0.0.mlp.w12.weight" in case.weights:
        semantic.setdefault("ffn_layer", "swiglufused")
    return case.load(MingTok, {**case.config, "semantic_decoder": semantic})
