"""URSA's metric path: probabilities, velocities, jumps."""

import torch

from mmblocks.layers.diffusion.metric_path import KineticSampler, MetricPath
from tests.parity.cases import Case


def run(case: Case) -> None:
    config = case.config
    path = MetricPath(
        num_codes=config["codebook_size"], code_dim=config["dim"], alpha=config["alpha"], c=config["c"], shift=config["shift"]
    )
    path.codes.copy_(case.io["in.codebook"])
    case.check("out.normalized_codebook", path.unit_codes)
    case.check("out.prob_t", path.probabilities(case.io["in.x1"], case.io["in.t"]))
    draws = case.io["in.u_train"]
    case.check("out.train_t", path.sample_times(len(draws), uniform=draws))

    sampler = KineticSampler(num_steps=config["steps"])
    times = sampler.times(path)
    case.check("out.t_grid", times)
    trajectory: list[torch.Tensor] = []
    data, uniform = case.io["in.draw_x1"], case.io["in.u_jump"]
    start, jumps = case.io["in.x_init"], case.io["in.draw_jump"]
    sampler.sample(
        lambda _, step: case.io["in.logits"][step], start, path, data=data, uniform=uniform, jumps=jumps, trajectory=trajectory
    )
    case.check("out.x_after_step", torch.stack(trajectory))

    velocities, chances = [], []
    for number, now in enumerate([start, *trajectory][: config["steps"] - 1]):
        velocities.append(path.velocity(now, data[number], float(times[number])))
        chances.append(sampler.jump_chance(velocities[-1], now, float(times[number + 1] - times[number])))
    case.check("out.velocity", torch.stack(velocities))
    case.check("out.jump_threshold", torch.stack(chances))
