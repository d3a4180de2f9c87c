"""OmniGen: velocities, loss and gradients in padded batches of any sizes; guided sampling with and without a cache."""

from typing import Any

import torch
from torch import Tensor

from mmblocks.models.omnigen.model import OmniGen
from mmblocks.models.omnigen.prompt import join, output_table, prompt_rows
from mmblocks.sequence.masks import visible
from mmblocks.sequence.positions import sequential
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
        for number, layer in enumerate(model.trunk.layers)
    ]
    predicted = model(prompts, latents, t)
    for hook in hooks:
        hook.remove()
    case.check("out.time_token", model.time_token(t))
    case.check("out.t_emb", model.head.time(t))
    real = mask[:, -1].bool() if len({x.shape for x in latents}) == 1 else real_tokens(model, prompts, latents)
    for number, state in states.items():
        if f"out.layer{number}_hidden" in case.io:
            case.check(f"out.layer{number}_hidden", state, where=real)
    if "out.pred" in case.io:
        case.check("out.pred", torch.stack(predicted))
    for row, made in enumerate(predicted):
        if f"out.pred{row}" in case.io:
            case.check(f"out.pred{row}", made[None])
    if "in.flow_t" in case.io:
        check_loss(case, model, prompts)


def real_tokens(model: OmniGen, prompts: list[list[Tensor]], latents: list[Tensor]) -> Tensor:
    return ~row_table(model, prompts, latents).is_padding


def row_table(model: OmniGen, prompts: list[list[Tensor]], latents: list[Tensor]) -> Any:
    before = prompt_rows(prompts, model.patch_size, torch.device("cpu")).table
    return join(before, output_table(before, [(x.shape[1], x.shape[2]) for x in latents], model.patch_size))


def check_rows(case: Case, model: OmniGen, prompts: list[list[Tensor]], latents: list[Tensor], number: str = "") -> None:
    """Our rule and our positions are the mask and the positions that were handed to upstream."""
    table = row_table(model, prompts, latents)
    mask = case.io.get(f"in.mask{number}", case.io.get("in.attention_mask"))
    positions = case.io.get(f"in.pos{number}", case.io.get("in.position_ids"))
    real = ~table.is_padding
    assert torch.equal(visible(table)[real], mask.bool()[real])
    assert torch.equal(sequential(table)[real], positions[real])


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
    for cache in ("none", "prompt"):
        steps: list[tuple[list[Tensor], list[Tensor]]] = []
        final = model.sample(groups["cond"], cache=cache, trajectory=steps, **options)
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
