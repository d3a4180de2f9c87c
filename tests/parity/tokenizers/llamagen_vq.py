"""LlamaGen: its tokenizer, its language model, its filters, and generation with injected draws."""

import re

import torch
from torch import Tensor

from mmblocks import Generation, GridGrammar, Sampling, TokenTable
from mmblocks.generation.autoregressive import generate_ids
from mmblocks.generation.choosing import Scores
from mmblocks.generation.guidance import ClassifierFree
from mmblocks.layers.categorical import truncate
from mmblocks.models.llamagen import Condition, LlamaGen, LlamaGenT2I, caption, label
from mmblocks.tokenizers import LlamaGenVQ
from mmblocks.tokenizers.conv.blocks import channels_first
from mmblocks.trunks.llamagen import grid_rotary
from mmblocks.vocabulary.grid_format import raster_format
from tests.parity.cases import Case

MANIFESTS = {
    "llamagen_vq16": [(LlamaGenVQ, "llamagen")],
    "llamagen_vq8": [(LlamaGenVQ, "llamagen")],
    "llamagen_gpt_b_c2i": [(LlamaGen, "llamagen-c2i")],
    "llamagen_gpt_l_c2i": [(LlamaGen, "llamagen-c2i")],
    "llamagen_gpt_xl_c2i": [(LlamaGen, "llamagen-c2i")],
}


def run(case: Case) -> None:
    if "in.img" in case.io:
        tokenizer = case.load(LlamaGenVQ, entropy_temperature=0.01)
        check_evaluation(case, tokenizer.eval())
        check_training(case, tokenizer.train())
    elif "model_type" in case.config:
        check_language_model(case)
    else:
        check_filters(case)


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


def sampling_of(top_k: int, top_p: float, temperature: float) -> Sampling:
    """Upstream counts a top-k of 0 and a top-p of 1 as "all"."""
    return Sampling(temperature=temperature, top_k=top_k or None, top_p=top_p if top_p < 1 else None)


def check_filters(case: Case) -> None:
    logits = case.io["in.logits"]
    for name in case.named("out."):
        filtered = re.fullmatch(r"k(\d+)_p([\d.]+)_t([\d.]+)", name)
        if filtered is not None:
            top_k, top_p, temperature = int(filtered[1]), float(filtered[2]), float(filtered[3])
            probabilities = truncate(logits[:, -1], sampling_of(top_k, top_p, temperature)).softmax(-1)
            case.check(f"out.{name}", probabilities)
        else:
            scale = float(name.removeprefix("cfg_"))
            guidance = ClassifierFree(scale=scale, normalise=False)
            streams = logits.chunk(2)
            both = torch.stack([stream.flatten(0, 1) for stream in streams])
            case.check(f"out.{name}", guidance.combine(both, 0).view_as(streams[0]))


def check_language_model(case: Case) -> None:
    published = {name: value for name, value in case.config.items() if name != "sampling"}  # which says how images are drawn
    model = case.load(LlamaGen if case.config["model_type"] == "c2i" else LlamaGenT2I, published)
    conditions = case.config["cls_token_num"]
    side = int(case.config["block_size"] ** 0.5)

    attention = model.trunk.layers[0].attention
    rotary = grid_rotary(table_of(1, conditions, side, side * side), attention.head_dim, attention.rotary.theta)
    case.check("out.rope_table", torch.stack(rotary, dim=-1)[0])
    if "out.logits_full" in case.io:
        ids = case.io["in.idx"]
        condition = case.io["in.cond"]
        embedded = model.inputs["label"](condition)[:, None] if "label" in model.inputs else model.inputs["caption"](condition)
        embeds = torch.cat([embedded[:, :conditions], model.inputs["code"](ids)], dim=1)
        hidden = model.trunk(embeds, table_of(len(ids), conditions, side, ids.shape[1]))
        case.check("out.logits_full", model.outputs["code"].logits(hidden))
    if "out.sequence" in case.io:
        check_generation(case, model, side)


def table_of(batch: int, conditions: int, side: int, num_codes: int) -> TokenTable:
    """A condition, then codes of a square image, as many as there are yet."""
    table = TokenTable.text(batch, conditions + num_codes)
    raster = torch.arange(num_codes)
    table.span[:, conditions:] = 0
    table.grid[:, conditions:] = torch.stack([torch.zeros_like(raster), raster // side, raster % side], dim=-1)
    return table


def prompts_of(case: Case, model: LlamaGen | LlamaGenT2I) -> tuple[list[list[Condition]], list[list[Condition]]]:
    """With the condition, and without it."""
    condition = case.io["in.cond"]
    if "label" in model.inputs:
        return [[label(int(c))] for c in condition], [[label(model.inputs["label"].unconditional)] for _ in condition]
    masks = case.io.get("in.emb_masks", torch.ones(condition.shape[:2]))
    nothing = model.inputs["caption"].unconditional
    kept = [mask.bool() for mask in masks]
    return [[caption(c[k])] for c, k in zip(condition, kept, strict=True)], [[caption(nothing[k])] for k in kept]


def check_generation(case: Case, model: LlamaGen | LlamaGenT2I, side: int) -> None:
    """The case's draws replace ours; what they were drawn from is compared."""
    options, draws = case.config["sampling"], case.io["in.draws"]
    sampling = sampling_of(options["top_k"], options["top_p"], options["temp"])
    last_step = options["interval"] + 1 if options["interval"] > -1 else None
    guided = options["cfg"] > 1
    probabilities = []

    def follow(scores: Scores) -> Tensor:
        probabilities.append(truncate(scores.logits, sampling).softmax(-1))
        chosen = torch.full_like(scores.logits, float("-inf"))
        return chosen.scatter(1, draws[scores.step].view(-1, 1), 0.0)

    conditional, unconditional = prompts_of(case, model)
    batch = model.batch_builder()([*conditional, *(unconditional if guided else [])], padding="left")
    guidance = ClassifierFree(scale=options["cfg"], last_step=last_step, normalise=False) if guided else None
    steps = generate_ids(
        model,
        batch,
        GridGrammar(raster_format(side, side, case.config["vocab_size"])),
        Generation(max_tokens=options["n_new"], sampling=sampling, guidance=guidance, hooks=[follow], input="code"),
    )
    case.check("out.sequence", torch.stack([step.ids for step in steps], dim=1))
    case.check("out.probs", torch.stack(probabilities))
