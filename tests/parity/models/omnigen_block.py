"""OmniGen: velocities, loss and gradients in padded batches of any sizes; guided sampling with and without a cache."""

from typing import Any

import torch
from torch import Tensor

from mmblocks.models.omnigen.model import OmniGen
from mmblocks.models.omnigen.prompt import output, segments
from mmblocks.sequence.masks import visible
from mmblocks.sequence.positions import sequential
from mmblocks.sequence.tokens import TokenTable
from tests.parity.cases import Case

MANIFESTS = {"omnigen_v1": [(OmniGen, "omnigen")], "omnigen_v1_diffusers": [(OmniGen, "omnigen-diffusers")]}


def run(case: Case) -> None:
    model = case.load(OmniGen, {name: value for name, value in case.config.items() if name in ("phi3", "omnigen")})
    if "in.z" in case.io:
        check_sampling(case, model)
    else:
        check_forward(case, model)


def images_of(case: Case) -> list[Tensor]:
    """Input images in the order in which rows read them."""
    count = len(case.named("in.img"))
    names = ["in.img"] if "in.img" in case.io else [f"in.img{number}" for number in range(count)]
    return [case.io[name][0] for name in names]


def prompt(ids: Tensor, mask: Tensor, spans: list[list[int]], images: list[Tensor]) -> list[Tensor]:
    """One row: what is not padding, with the images at their spans."""
    seen = mask[len(ids), : len(ids)].bool()  # by the time token, which comes next
    begin = int(seen.long().argmax())
    items: list[Tensor] = []
    for start, stop in spans:
        items += [ids[begin:start], images.pop(0)]
        begin = stop
    return [item for item in [*items, ids[begin:]] if item.numel()]


def series(case: Case, name: str, separator: str = "") -> list[Tensor]:
    """One tensor a row: of a batch, or stored row by row."""
    if f"in.{name}" in case.io:
        return list(case.io[f"in.{name}"])
    count = len(case.io["in.input_ids"])
    return [case.io[f"in.{name}{separator}{row}"][0] for row in range(count)]


def check_forward(case: Case, model: OmniGen) -> None:
    ids, mask, t = case.io["in.input_ids"], case.io["in.attention_mask"], case.io["in.timestep"]
    spans, images = case.description.get("input_image_sizes") or {}, images_of(case)
    prompts = [prompt(ids[row], mask[row], spans.get(str(row), []), images) for row in range(len(ids))]
    latents = series(case, "x")
    check_rows(case, model, prompts, latents)

    states: dict[int, Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda _module, _inputs, output, number=number: states.update({number: output}))
        for number, layer in enumerate(model.model.trunk.layers)
    ]
    predicted = model(prompts, latents, t)
    for hook in hooks:
        hook.remove()
    head = model.model.outputs["image"]
    case.check("out.time_token", head.time(t))
    case.check("out.t_emb", head.output.time(t))
    theirs, ours = real_tokens(mask, ids), ~row_table(model, prompts, latents).is_padding
    for number, state in states.items():
        if f"out.layer{number}_hidden" in case.io:
            placed = torch.zeros(*theirs.shape, state.shape[-1]).masked_scatter(theirs[..., None], state[ours])
            case.check(f"out.layer{number}_hidden", placed, where=theirs)
    if "out.pred" in case.io:
        case.check("out.pred", torch.stack(predicted))
    for row, made in enumerate(predicted):
        if f"out.pred{row}" in case.io:
            case.check(f"out.pred{row}", made[None])
    if "in.flow_t" in case.io:
        check_loss(case, model, prompts)


def real_tokens(mask: Tensor, ids: Tensor) -> Tensor:
    """What is not padding, on the left of prompts and on the right of images: what an image's first token attends to."""
    return mask[:, ids.shape[1] + 1].bool()


def row_table(model: OmniGen, prompts: list[list[Tensor]], latents: list[Tensor]) -> TokenTable:
    rows = [[*segments(prompt), output(x)] for prompt, x in zip(prompts, latents, strict=True)]
    return model.model.batch_builder()(rows).table


def check_rows(case: Case, model: OmniGen, prompts: list[list[Tensor]], latents: list[Tensor], number: str = "") -> None:
    """Our rule and our positions are the mask and the positions that were handed to upstream."""
    table = row_table(model, prompts, latents)
    mask = case.io.get(f"in.mask{number}", case.io.get("in.attention_mask"))
    positions = case.io.get(f"in.pos{number}", case.io.get("in.position_ids"))
    ids = case.io.get(f"in.ids{number}", case.io.get("in.input_ids"))
    assert mask is not None and positions is not None and ids is not None
    rows = zip(~table.is_padding, real_tokens(mask, ids), visible(table), mask.bool(), strict=True)
    assert all(torch.equal(seen[ours][:, ours], wanted[theirs][:, theirs]) for ours, theirs, seen, wanted in rows)
    assert torch.equal(sequential(table)[~table.is_padding], positions[real_tokens(mask, ids)])


def check_loss(case: Case, model: OmniGen, prompts: list[list[Tensor]]) -> None:
    data, noise = series(case, "flow_x1", "_"), series(case, "flow_x0", "_")
    losses = model.loss(prompts, data, t=case.io["in.flow_t"], noise=noise)
    case.check("loss.per_sample", losses)
    case.check("loss.total", losses.mean())
    losses.mean().backward()
    case.check_gradients(model, "omnigen")


def check_sampling(case: Case, model: OmniGen) -> None:
    sizes, noise = case.description.get("input_image_sizes_per_group") or [{}] * 3, list(case.io["in.z"])
    groups: dict[str, list[list[Tensor]]] = {}
    for number, name in enumerate(case.description["groups"]):
        ids, mask = case.io[f"in.ids{number}"], case.io[f"in.mask{number}"]
        images = images_of(case)
        groups[name] = [prompt(ids[row], mask[row], sizes[number].get(str(row), []), images) for row in range(len(ids))]
        check_rows(case, model, groups[name], noise, str(number))
    options: dict[str, Any] = {
        "unconditional": groups.get("uncond"),
        "images_only": groups.get("img_cond"),
        "guidance": case.config["cfg_scale"],
        "num_steps": case.config["num_steps"],
        "shift": float(case.io["in.shift"]),
        "noise": noise,
    }
    if "img_cfg_scale" in case.config:
        options["image_guidance"] = case.config["img_cfg_scale"]
    case.check("out.sigma", model.sigmas(options["num_steps"], options["shift"]))
    steps: list[tuple[list[Tensor], list[Tensor]]] = []
    final = model.sample(groups["cond"], trajectory=steps, **options)
    case.check("out.final", torch.stack(final))
    for name, part in (("traj_in", 0), ("guided_pred", 1)):
        if f"out.{name}" in case.io:
            values = torch.cat([torch.stack(step[part]) for step in steps])
            case.check(f"out.{name}", values.view(case.io[f"out.{name}"].shape))
    if "out.upstream_cache_final" in case.io:
        steps = []
        final = model.sample(groups["cond"], cache="upstream", trajectory=steps, **options)
        case.check("out.upstream_cache_final", torch.stack(final))
        case.check("out.upstream_cache_step0_pred", torch.stack(steps[0][1]))
