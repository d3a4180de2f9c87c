"""NOVA's flow head: training targets, loss and gradients, guided Euler steps."""

from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor

from mmblocks.heads.nova import NOVAFlowHead
from mmblocks.layers.losses.row_losses import weighted_mean
from tests.parity.cases import Case

ARGUMENTS = ("cond_dim", "depth", "embed_dim", "image_dim", "patch_size", "renorm", "shift", "steps", "trunc")
"""Of the official classes; how far predictions are guided is an argument of ours."""


def run(case: Case) -> None:
    head = case.load(NOVAFlowHead, {name: value for name, value in case.config.items() if name in ARGUMENTS})
    check_training(case, head)
    check_sampling(case, head)


def patches(case: Case, latents: Tensor) -> Tensor:
    side = case.config["patch_size"]
    return rearrange(latents, "b c (h p) (w q) -> b (h w) (p q c)", p=side, q=side)


def check_training(case: Case, head: NOVAFlowHead) -> None:
    x, noise, t = patches(case, case.io["in.x"]), case.io["in.noise"], case.io["in.t"]
    case.check("out.sigma", head.path.sigma(t)[..., None])
    case.check("out.timestep", head.path.net_time(t))
    rows = [value.flatten(0, 1) for value in (x, noise, t, case.io["in.z"])]
    x_t = head.path.corrupt(*rows[:3])
    case.check("out.x_t_tokens", x_t.view_as(x))
    hidden = rows[3]
    pred = head.net(x_t, head.net.embed_time(head.path.net_time(rows[2])), head.net.embed_condition(hidden))
    case.check("out.pred", pred.view_as(x))

    mask = case.io["in.mask"].flatten()
    loss = weighted_mean(head.loss(hidden, rows[0], mask, t=rows[2], noise=rows[1]), mask)
    case.check("loss.total", loss * mask.sum() / (mask.sum() + 1e-5))
    loss.backward()
    case.check_gradients(head, "nova")


@torch.no_grad()
def check_sampling(case: Case, head: NOVAFlowHead) -> None:
    config = case.config
    times = head.sampler.times(head.path)
    case.check("out.timesteps", times)
    sigmas = torch.cat([times / 1000, torch.zeros(1)])
    case.check("out.sigmas", sigmas)

    wanted = case.io["in.pred_ids"]
    z, unconditional = (case.io[f"in.{name}"] for name in ("z", "z_uncond"))
    x = patches(case, case.io["in.init_noise"])

    def chosen(values: Tensor) -> Tensor:
        return values.take_along_dim(wanted, dim=1)

    # Upstream carries all tokens, and takes what it does not predict for its own velocity.
    after_steps = []
    given = {"unconditional": chosen(unconditional), "guidance": config["gs"]} if config["gs"] > 1 else {}
    sampled = head.sample(chosen(z), noise=chosen(x), trajectory=after_steps, **given)
    for number, (now, after) in enumerate(pairwise(sigmas)):
        streams = []
        for states in (z, unconditional)[: 1 + (config["gs"] > 1)]:
            predicted = head.net(chosen(x), head.net.embed_time(times[number]), head.net.embed_condition(chosen(states)))
            streams.append(x.scatter(1, wanted.expand_as(predicted), predicted))
        velocity = streams[0] if len(streams) == 1 else head.guidance(streams, (config["gs"],), float(times[number]))
        x = x + (after - now) * velocity
        side = case.config["patch_size"]
        height, width = (size // side for size in case.io["in.init_noise"].shape[-2:])
        all_tokens = rearrange(x, "b (h w) (p q c) -> b c (h p) (w q)", h=height, w=width, p=side, q=side)
        trajectory = [all_tokens] if number == 0 else [*trajectory, all_tokens]
        if head.guidance.renorm == 1:  # else the length upstream takes is that of all tokens
            torch.testing.assert_close(after_steps[number], chosen(x), atol=1e-4, rtol=1e-4)
    case.check("out.sample_traj", torch.stack(trajectory))
    if head.guidance.renorm == 1:
        torch.testing.assert_close(sampled, chosen(x), atol=1e-4, rtol=1e-4)
