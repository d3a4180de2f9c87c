"""Janus's tokenizer, from the official layout and from that of transformers' port."""

from mmblocks.tokenizers import LlamaGenVQ
from mmblocks.tokenizers.conv.blocks import channels_first
from tests.parity.cases import Case
from tests.parity.tokenizers.vqgan_taming import check_vqgan

MANIFESTS = {"janus_vq16": [(LlamaGenVQ, "llamagen")], "janus_vq16_hf": [(LlamaGenVQ, "janus-transformers")]}


def run(case: Case) -> None:
    if "transformers" in case.description["upstream"]:
        check_port(case)
        return
    temperature = 0.01 if case.config.get("entropy_loss_ratio") else None
    check_vqgan(case, case.load(LlamaGenVQ, entropy_temperature=temperature), "llamagen")


def check_port(case: Case) -> None:
    """The port searches codes by plain distance, but decodes them at length one; its loss has beta at the codebook term."""
    tokenizer = case.load(LlamaGenVQ, layout="janus-transformers", search="l2-as-transformers").train()
    features = tokenizer.encoder(case.io["in.x"])
    latents = tokenizer.bottleneck(features)
    # The last state is what the encoder's own projection is given.
    states: list = []
    tokenizer.encoder.project.register_forward_pre_hook(lambda module, given: states.append(given[0]))
    tokenizer.encoder(case.io["in.x"])
    case.check("out.last_hidden_state", states[0])
    case.check("out.quant", channels_first(tokenizer.bottleneck.rows(latents.ids)))
    case.check("out.indices", latents.ids.flatten(1))
    case.check("out.emb_loss", latents.loss["commitment"] + 0.25 * latents.loss["codebook"])
    case.check("out.dec", tokenizer.decoder(tokenizer.lookup(latents.ids)))
    case.check("out.dec", tokenizer.decoder(latents.z))
