"""Former names of methods and keywords work, with a warning that says the new one."""

import pytest
import torch

from mmblocks.connectors import TokenFlexProjector
from mmblocks.heads import DenoisingHead
from mmblocks.layers import DiffusersSampler
from mmblocks.layers.diffusion.adaln_mlp import AdaLNMLP
from mmblocks.layers.diffusion.masked_tokens import ConfidenceSampler
from mmblocks.layers.diffusion.metric_path import KineticSampler, MetricPath
from mmblocks.layers.diffusion.noise_paths import DiffusionPath, FlowPath
from mmblocks.support.deprecation import former_keywords, former_method


class Sampler:
    def sample(self, start: int, *, steps: int = 1) -> int:
        return start + steps

    walk = former_method("walk", "sample")


class Other(Sampler):
    def sample(self, start: int, *, steps: int = 1) -> int:
        return -super().sample(start, steps=steps)


@former_keywords(taps="trajectory", drawn="sampled")
def run(x: int, *, trajectory: int = 0, sampled: int = 0) -> tuple[int, int, int]:
    return x, trajectory, sampled


def test_a_former_method_calls_the_one_that_the_class_has() -> None:
    with pytest.warns(FutureWarning, match=r"Other\.walk is sample now; the former name goes with version 0\.3"):
        assert Other().walk(2, steps=3) == -5


def test_former_keywords() -> None:
    assert run(1, trajectory=2) == (1, 2, 0)
    with pytest.warns(FutureWarning, match=r"taps of run is trajectory now; the former name goes with version 0\.3"):
        assert run(1, taps=2) == (1, 2, 0)
    with pytest.raises(TypeError, match="run was given taps and trajectory; accepted: trajectory"):
        run(1, taps=2, trajectory=3)
    with pytest.raises(TypeError, match="other"):
        run(1, other=2)


def codes(_: torch.Tensor, step: int) -> torch.Tensor:
    return torch.eye(4)[None, :3] * 50


def test_samplers_of_layers_keep_theirs() -> None:
    hidden, path = torch.full((1, 3), 4), MetricPath(num_codes=4, code_dim=2)
    head = DenoisingHead(
        net=AdaLNMLP(dim=4, condition_dim=8, width=8, num_blocks=1),
        path=FlowPath(),
        sampler=DiffusersSampler(scheduler="FlowMatchEulerDiscreteScheduler", num_steps=2),
    )
    seen: list[torch.Tensor] = []
    with pytest.warns(FutureWarning, match="walk is sample now"):
        assert ConfidenceSampler(num_steps=2).walk(codes, hidden, 4).tolist() == [[0, 1, 2]]
    with pytest.warns(FutureWarning, match="walk is sample now"):
        assert KineticSampler(num_steps=2).walk(codes, hidden * 0, path).tolist() == [[0, 1, 2]]
    with pytest.warns(FutureWarning, match="taps of sample is trajectory now"):
        last = head.sample(torch.randn(2, 8), taps=seen)
    assert len(seen) == 2 and torch.equal(seen[-1], last)
    for one in (FlowPath(), DiffusionPath(), MetricPath(num_codes=3, code_dim=2)):
        with pytest.warns(FutureWarning, match="draw_times is sample_times now"):
            assert one.draw_times(5, device=torch.device("cpu")).shape == (5,)
    with pytest.warns(FutureWarning, match="draw is sample_num_tokens now"):
        assert TokenFlexProjector(in_dim=4, dim=4, choices=(9,)).draw() == 9
