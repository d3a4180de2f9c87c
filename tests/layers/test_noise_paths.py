"""Schedules next to those of diffusers."""

import pytest
import torch

from mmblocks.layers.diffusion.denoising_samplers import AncestralSampler
from mmblocks.layers.diffusion.learned_variance import LearnedVariancePath
from mmblocks.layers.diffusion.noise_paths import DiffusionPath, FlowPath
from mmblocks.layers.diffusion.noise_schedules import spaced_steps
from mmblocks.layers.diffusion.rectified_flow import RectifiedFlow


def test_orthus_schedule_is_that_of_diffusers() -> None:
    from diffusers import DDPMScheduler

    betas = {"beta_start": 0.00085, "beta_end": 0.012}
    theirs = DDPMScheduler(
        **betas, beta_schedule="scaled_linear", rescale_betas_zero_snr=True, prediction_type="v_prediction", clip_sample=False
    )
    ours = DiffusionPath(**betas, schedule="scaled_linear", zero_terminal_snr=True, prediction="velocity")
    torch.testing.assert_close(ours.alphas_cumprod.float(), theirs.alphas_cumprod, atol=1e-5, rtol=1e-4)
    x, noise, t = torch.randn(6, 3), torch.randn(6, 3), torch.tensor([0, 1, 250, 500, 998, 999])
    torch.testing.assert_close(ours.corrupt(x, noise, t), theirs.add_noise(x, noise, t), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(ours.target(x, noise, t), theirs.get_velocity(x, noise, t), atol=1e-4, rtol=1e-3)


def test_flow_table_is_that_of_diffusers() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    for shift in (1.0, 3.0):
        theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
        torch.testing.assert_close(FlowPath(shift=shift).sigmas.float(), theirs.sigmas)


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
def test_a_rectified_flow_leads_to_the_data_in_steps_that_may_be_shifted(shift: float) -> None:
    path = RectifiedFlow()
    sampler = path.sampler(num_steps=5, shift=shift)
    even = torch.linspace(0, 1, 6)[:5]
    torch.testing.assert_close(sampler.times(path), even / (even + shift - shift * even))
    x, noise, t = torch.randn(5, 2), torch.randn(5, 2), torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0])
    noised = path.corrupt(x, noise, t)
    torch.testing.assert_close((noised[0], noised[4]), (noise[0], x[4]))
    assert path.losses(x - noise, x, noise, t).tolist() == [0.0] * 5
    torch.testing.assert_close(sampler.sample(lambda noised, step: x - noise, noise, path), x)
    with pytest.raises(ValueError, match=r"t lies in \[-0.5, 0.5\]; accepted: \[0, 1\], 0 is noise"):
        path.check_times(torch.tensor([-0.5, 0.5]))


def test_noise_prediction_leads_back_to_the_data() -> None:
    path, sampler = LearnedVariancePath(), AncestralSampler(steps=7)
    x, noise = torch.rand(5, 2) * 2 - 1, torch.randn(5, 2)
    times = sampler.times(path)

    def perfect(noised: torch.Tensor, number: int) -> torch.Tensor:
        data, amount = path._roots(times[number : number + 1])
        return torch.cat([(noised - data * x) / amount, -torch.ones_like(x)], dim=-1)

    found = sampler.sample(perfect, path.corrupt(x, noise, times[:1].expand(5)), path)
    torch.testing.assert_close(found, x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("spacing", "wanted"), [("3", [0, 4, 9]), (3, [0, 4, 9]), ("ddim5", [0, 2, 4, 6, 8]), ((2, 1), [0, 4, 5])])
def test_spacing(spacing, wanted) -> None:
    assert spaced_steps(10, spacing).tolist() == wanted


@pytest.mark.unchecked
def test_spacing_that_cannot_be_is_refused() -> None:
    for wrong, message in ((11, "accepted: 1 to 10"), (0, "accepted: 1 to 10"), ("ddim7", "no whole stride")):
        with pytest.raises(ValueError, match=message):
            spaced_steps(10, wrong)
    with pytest.raises(ValueError, match="schedule is 'quadratic'"):
        DiffusionPath(schedule="quadratic")
