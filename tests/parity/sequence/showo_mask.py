"""Show-o: its masks as instances of the visibility rule, its schedules, its masked training and sampling."""

import re

import torch
from torch import Tensor

from mmblocks import TokenTable
from mmblocks.layers.diffusion.denoising_guidance import LinearGuidance
from mmblocks.layers.diffusion.masked_tokens import ConfidenceSampler, MaskedTokens, masked_share
from mmblocks.sequence.masks import visible
from tests.parity.cases import Case


def run(case: Case) -> None:
    if "soi_id" in case.config:
        check_masks(case)
    elif "in.logits" in case.io:
        check_sampling(case)
    elif "in.tokens" in case.io:
        check_training(case)
    else:
        check_schedules(case)


def table_of(case: Case, ids: Tensor, *, pads_apart: bool, up_to: int = 0) -> TokenTable:
    """Each image, its marks included, is one step; so are the first ``up_to`` tokens. Pads may be a document of their own."""
    inside = torch.zeros_like(ids, dtype=torch.bool)
    inside[:, :up_to] = True
    if not up_to:
        begins, ends = (ids == case.config["soi_id"]).cumsum(1), (ids == case.config["eoi_id"]).cumsum(1)
        inside = (begins > ends) | (ids == case.config["eoi_id"])
    starts = (ids == case.config["soi_id"]) if not up_to else torch.zeros_like(inside)
    order = (~inside | starts).long().cumsum(1)
    document = (ids != case.config["pad_id"]).long() if pads_apart else torch.zeros_like(ids)
    return TokenTable.text(*ids.shape)._replace(order=order, document=document)


def check_masks(case: Case) -> None:
    for name in case.named("out."):
        kind = name.removesuffix("_keep_pad").removesuffix("_inverse_is_masked")
        ids = case.io[f"in.{kind}"]
        if kind == "mmu":  # upstream looks for the image's end in the first row alone
            up_to = int((ids[0] == case.config["eoi_id"]).nonzero()[0]) + 1
            seen = visible(table_of(case, ids, pads_apart=False, up_to=up_to))
        elif kind == "lm":
            seen = visible(TokenTable.text(*ids.shape))
        elif kind == "lvg":  # here text sees pads, and images do not
            apart, together = (visible(table_of(case, ids, pads_apart=apart)) for apart in (True, False))
            begins, ends = (ids == case.config["soi_id"]).cumsum(1), (ids == case.config["eoi_id"]).cumsum(1)
            in_image = (begins > ends) | (ids == case.config["eoi_id"])
            seen = torch.where(in_image[:, :, None], apart, together)
        else:
            seen = visible(table_of(case, ids, pads_apart=not name.endswith("_keep_pad")))
        case.check(f"out.{name}", (~seen if name.endswith("_is_masked") else seen)[:, None])


def check_schedules(case: Case) -> None:
    t = case.io["in.t"]
    for name in case.named("out."):
        given = re.fullmatch(r"sigmoid_s(.+)_e(.+)_tau(.+)", name)
        bounds = dict(zip(("start", "stop", "tau"), map(float, given.groups()), strict=True)) if given else {}
        case.check(f"out.{name}", masked_share(name.partition("_")[0], t, **bounds))


def check_training(case: Case) -> None:
    tokens = case.io["in.tokens"]
    schedule = case.config.get("mask_schedule", case.config.get("schedule", "cosine"))
    path = MaskedTokens(mask_id=case.config["mask_id"], schedule=schedule, least=case.config["min_masking_rate"])
    masked = path.corrupt(tokens, t=case.io["in.u_t"], order=case.io["in.u_perm"])
    results = {
        "input_ids": masked.ids,
        "labels": tokens.where(masked.mask, -100),
        "mask_prob": masked.share,
        "loss_weight_predict_all": masked.weight_of_all(),
        "labels_predict_all": tokens,
    }
    for name in case.named("out."):
        case.check(f"out.{name}", results[name])


def check_sampling(case: Case) -> None:
    config = case.config
    count, first = config["num_vq_tokens"], config["llm_vocab_size"] + config["num_new_special_tokens"]
    scale, prompt, mask_id = config["guidance_scale"], case.io["in.input_ids"], config["mask_token_id"]
    fed, guidance = [], LinearGuidance()

    def predict(ids: Tensor, step: int) -> Tensor:
        whole = prompt.clone()
        whole[:, -(count + 1) : -1] = torch.where(ids == mask_id, ids, ids + first)
        rows = [whole]
        if scale > 0:
            kept = config["max_seq_length"] + 1
            rows.append(torch.cat([case.io["in.uncond_ids"][:, :kept], whole[:, kept:]], dim=1))
        fed.append(torch.cat(rows))
        logits = case.io["in.logits"][step][:, -(count + 1) : -1, first:-1].chunk(len(rows))
        return guidance(logits, (1 + scale,)) if scale > 0 else logits[0]

    sampler = ConfidenceSampler(
        num_steps=config["timesteps"],
        schedule=config["noise_schedule"],
        temperature=config["temperature"],
        cooling="cumulative",
    )
    ids = prompt[:, -(count + 1) : -1]
    uniform = case.io["in.uniform"]
    gumbel = -(-uniform.clamp(min=1e-20).log()).clamp(min=1e-20).log()
    found = sampler.sample(
        predict,
        torch.where(ids == mask_id, ids, ids - first),
        mask_id,
        sampled=case.io["in.sampled_ids"],
        gumbel=gumbel,
    )
    case.check("out.model_inputs", torch.stack(fed))
    case.check("out.final_ids", found)
