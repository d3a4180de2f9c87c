"""Orthus: soft codes, trunk and logits; the diffusion head's loss and gradients; image tokens one after the other."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmblocks import TokenTable
from mmblocks.models.orthus import Orthus
from mmblocks.sequence.tokens import PADDING
from mmblocks.tokenizers.vqgan import ChameleonVQ
from tests.parity.cases import Case


class PublishedVQ(ChameleonVQ):
    """With its default sizes: the manifest tells Orthus's config in words."""

    layouts = tuple(replace(layout, config=None, harmless=("chameleon", "mlp_head.*")) for layout in ChameleonVQ.layouts)


MANIFESTS = {"orthus_7b": [(Orthus, "orthus"), (PublishedVQ, "chameleon-transformers-whole")]}


def run(case: Case) -> None:
    model = case.load(Orthus, published_config(case))
    if "in.prompt_ids" in case.io:
        check_loop(case, model)
    elif "in.noise" in case.io:
        check_loss(case, model)
    else:
        check_states(case, model)


def published_config(case: Case) -> dict[str, Any]:
    notes = ("chameleon", "constants", "production_constants", "cfg_scale")
    return {**case.config["chameleon"], **{name: value for name, value in case.config.items() if name not in notes}}


def table_of(mask: Tensor) -> TokenTable:
    """Plain text, padded at the left."""
    table = TokenTable.text(*mask.shape)
    padding = mask == 0
    return table._replace(
        document=torch.where(padding, PADDING, table.document),
        modality=torch.where(padding, PADDING, table.modality),
        order=torch.where(padding, 0, mask.cumsum(1) - 1),
    )


def read(case: Case, model: Orthus) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, states, and which tokens are latents."""
    ids, latents = case.io["in.input_ids"], case.io["in.image_latents"]
    is_latent = ids == case.config["constants"]["image_token_id"]
    embeds = model.inputs["text"](ids).masked_scatter(is_latent[..., None], model.inputs["latents"](latents))
    return embeds, model.trunk(embeds, table_of(case.io["in.attention_mask"])), is_latent


def check_states(case: Case, model: Orthus) -> None:
    real = case.io["in.attention_mask"] == 1
    case.check("out.soft_weights", model.inputs["latents"].weights(case.io["in.image_latents"]).flatten(0, -2))
    embeds, hidden, _ = read(case, model)
    logits = model.outputs["text"].logits(hidden)
    case.check("out.inputs_embeds", embeds)
    case.check("out.last_hidden", hidden, where=real)
    case.check("out.logits", logits, where=real)
    check_gradients(case, model)


def check_gradients(case: Case, model: Orthus) -> None:
    """The case does not say which loss its gradients are of, but what of it reaches the soft codes can be solved for.

    Rows of codes in the embedding's gradient are the weights times the gradient of the mixtures, which are fewer than codes.
    From the mixtures' gradient follow both: the rows, which must lie in the span of the weights, and the gradient of the codes.
    """
    soft, first = model.inputs["latents"], case.config["constants"]["image_code_slice"][0]
    rows = slice(first, first + len(soft.codes))
    stored = case.io["grad.model.embed_tokens.weight"]
    latents = case.io["in.image_latents"].flatten(0, 1)
    solved = torch.linalg.lstsq(soft.weights(latents).detach().double().T, stored[rows].double(), driver="gelsd").solution
    soft(latents).backward(solved.float())
    of_codes = torch.zeros_like(stored, dtype=torch.bool)
    of_codes[rows] = True
    case.check("grad.model.embed_tokens.weight", model.inputs["text"].weight.grad, where=of_codes)
    case.check("grad.model.codebook_in.weight", soft.codes.grad)


def check_loss(case: Case, model: Orthus) -> None:
    head = model.outputs["latents"]
    _, hidden, is_latent = read(case, model)
    target, t, noise = case.io["in.image_latents"].flatten(0, 1), case.io["in.timesteps"], case.io["in.noise"]
    scaled = (target * head.scale).repeat(head.repeats, 1)
    case.check("out.alphas_cumprod", head.path.alphas_cumprod)
    case.check("out.noisy_latents", head.path.corrupt(scaled, noise, t))
    case.check("out.velocity_target", head.path.target(scaled, noise, t))
    asked = hidden[:, :-1][is_latent[:, 1:]]
    loss = head.loss(asked, target, t=t, noise=noise).mean()
    case.check("loss.total", loss)
    loss.backward()
    case.check_gradients(model, "orthus")


@torch.no_grad()
def check_loop(case: Case, model: Orthus) -> None:
    """Conditional and unconditional rows share one latent; the head sees the state before it.

    Each step follows the stored past: latents are long, and the squares in the soft codes' distances round so coarsely that a
    difference in a latent's last bits shows in all that come after.
    """
    head = model.outputs["latents"]
    ids, mask, noises = (case.io[f"in.{name}"] for name in ("prompt_ids", "attention_mask", "init_noise"))
    scale, (batch, length) = case.config["cfg_scale"], ids.shape
    streams = batch if scale != 1 else 1
    table = table_of(torch.cat([mask, mask.new_ones(batch, len(noises))], dim=1))
    cache = model.trunk.new_cache(batch, length + len(noises))
    hidden = model.trunk(model.inputs["text"](ids), table.slice(0, length), cache)[:, -1]
    states, latents = [hidden], []
    for number, noise in enumerate(noises):
        rows = case.io["out.z"][:, number].chunk(streams)
        given = {"unconditional": rows[1:], "guidance": (scale,) * (streams - 1)} if streams > 1 else {}
        latents.append(head.sample(rows[0], noise=noise.expand(batch // streams, -1), **given).repeat(streams, 1))
        embeds = model.inputs["latents"](case.io["out.latents"][:, number])[:, None]
        hidden = model.trunk(embeds, table.slice(length + number, length + number + 1), cache)[:, -1]
        states.append(hidden)
    case.check("out.timesteps", head.sampler.times(head.path))
    case.check("out.alphas_cumprod", head.path.alphas_cumprod)
    case.check("out.latents", torch.stack(latents, dim=1))
    case.check("out.z", torch.stack(states, dim=1))
    case.check("out.text_logits_after_image", model.outputs["text"].logits(hidden))
