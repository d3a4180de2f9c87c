"""MAR's diffusion head: schedules, loss and gradients, guided ancestral sampling; and MAR around it."""

import torch
from torch import Tensor

from mmblocks.heads.mar import MARDiffusionHead
from mmblocks.layers.diffusion.denoising_samplers import AncestralSampler
from mmblocks.layers.diffusion.learned_variance import LearnedVariancePath
from mmblocks.layers.diffusion.noise_paths import DiffusionPath
from mmblocks.layers.losses.row_losses import weighted_mean
from tests.parity.cases import Case
from tests.parity.models.mar_trunk import run_trunk

MANIFESTS = {f"mar_{size}_diffloss": [(MARDiffusionHead, "diffloss")] for size in ("base", "large", "huge")}


DIFF_LOSS = ("target_channels", "z_channels", "depth", "width", "num_sampling_steps", "diffusion_batch_mul")
"""Arguments of the official class; the other entries of the cases' configs say how they were made."""

SAMPLING = ("cfg", "cfg_schedule", "num_iter")
"""Of ``sample_tokens``."""


def run(case: Case) -> None:
    if "class_num" in case.config:
        config = {name: value for name, value in case.config.items() if name not in SAMPLING}
        run_trunk(case, case.load(MARDiffusionHead, config, layout="mar"))
    elif "in.z" not in case.io:
        check_schedules(case)
    else:
        head = case.load(MARDiffusionHead, {name: case.config[name] for name in DIFF_LOSS if name in case.config})
        (check_training if "in.t" in case.io else check_sampling)(case, head)


def check_schedules(case: Case) -> None:
    """Names say what is kept: ``s100``, ``sections_10_15_20``, ``ddim25``, ``full``; "linear_" begins those of another schedule."""
    for name in case.named("out."):
        kind, _, column = name.partition("_timestep_map")[0].partition("_betas")[0].partition("_alphas_cumprod")
        path = DiffusionPath(schedule="linear") if kind.startswith("linear_") else LearnedVariancePath()
        kept = kind.removeprefix("linear_")
        steps = {"full": ""}.get(kept, kept.removeprefix("sections_").removeprefix("s").replace("_", ","))
        posterior = AncestralSampler(steps=steps).posterior(path)
        columns = {
            "timestep_map": posterior.times,
            "betas": posterior.betas,
            "alphas_cumprod": path.alphas_cumprod[posterior.times],
        }
        (column,) = (column for column in columns if name == f"{kind}_{column}")
        case.check(f"out.{name}", columns[column])


def check_training(case: Case, head: MARDiffusionHead) -> None:
    z, target, noise, t = (case.io[f"in.{name}"] for name in ("z", "target", "noise", "t"))
    x_t = head.path.corrupt(target, noise, t)
    output = head.net(x_t, head.net.embed_time(t), head.net.embed_condition(z))
    error, bound = head.path.terms(output, target, noise, t)
    results = {"x_t": x_t, "net_output": output, "term_mse": error, "term_vb": bound, "term_loss": error + bound}
    for name in case.named("out."):
        case.check(f"out.{name}", results[name])

    mask = case.io.get("in.mask", torch.ones(len(target)))
    losses = head.loss(z, target, mask, t=t, noise=noise)
    torch.testing.assert_close(losses, (error + bound) * mask)
    loss = weighted_mean(losses, mask)
    case.check("loss.total", loss)
    loss.backward()
    case.check_gradients(head, "diffloss")


@torch.no_grad()
def check_sampling(case: Case, head: MARDiffusionHead) -> None:
    posterior = head.sampler.posterior(head.path)
    case.check("out.timestep_map", posterior.times)
    case.check("out.betas", posterior.betas)
    case.check("out.posterior_log_variance_clipped", posterior.small)

    scale, temperature = case.config.get("cfg_scale", 1.0), case.config.get("temperature", 1.0)
    z, noise, step_noise = (case.io[f"in.{name}"] for name in ("z", "init_noise", "step_noise"))
    guided = scale != 1.0
    rows = len(z) // 2 if guided else len(z)
    given = {"unconditional": z[rows:], "guidance": scale} if guided else {}
    states: list[Tensor] = []
    final = head.sample(z[:rows], noise=noise, step_noise=step_noise[:, :rows], temperature=temperature, trajectory=states, **given)

    # Upstream samples the unconditional rows too: with the guided noise and their own variance and draws. Nobody reads them.
    trajectory, found = [], []
    x = torch.cat([noise, noise]) if guided else noise
    for number, time in enumerate(head.sampler.times(head.path)):
        read = x[:rows].repeat(len(z) // rows, 1)
        output = head.net(read, head.net.embed_time(time), head.net.embed_condition(z))
        if guided:
            channels = noise.shape[-1]
            both = head.guidance(output[:, :channels].chunk(2), (scale,))
            output = torch.cat([torch.cat([both, both]), output[:, channels:]], dim=-1)
        place = len(posterior.times) - 1 - number
        x, clean = head.sampler.step(head.path, x, output, place, step_noise[number], temperature)
        torch.testing.assert_close(
            x[:rows], states[number], rtol=1e-4, atol=case.description["tolerance"]["atol_per_output"]["final"]
        )
        trajectory.append(x)
        found.append(clean)
    case.check("out.traj_sample", torch.stack(trajectory))
    case.check("out.traj_pred_xstart", torch.stack(found))
    case.check("out.final", torch.cat([final, x[rows:]]))
