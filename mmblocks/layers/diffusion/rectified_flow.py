"""A straight line from noise at time 0 to data at time 1, whose network is told the time itself and predicts data minus noise.

Shapes: N rows, C channels.
"""

from typing import ClassVar

import torch
from jaxtyping import Float, Real
from torch import Generator, Tensor

from mmblocks.block import Block
from mmblocks.layers.diffusion.denoising_samplers import DiffusersSampler
from mmblocks.support.checks import is_readable


class RectifiedFlow(Block):
    """``t * x + (1 - t) * noise`` with real times; they are sampled as the sigmoid of a normal variable.

    Source: rectified flow (arXiv 2209.03003) as in OmniGen (arXiv 2409.11340; VectorSpaceLab/OmniGen).

    Examples:
        >>> import torch
        >>> from mmblocks.layers import RectifiedFlow
        >>> path = RectifiedFlow()
        >>> path.corrupt(torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([0.25])).tolist()
        [[0.25, 0.25]]
        >>> path.sampler(num_steps=4).times(path).tolist()
        [0.0, 0.25, 0.5, 0.75]
    """

    num_outputs: ClassVar[int] = 1

    @property
    def ends(self) -> tuple[int, int]:
        """The cleanest time and the noisiest."""
        return 1, 0

    @staticmethod
    def sampler(num_steps: int = 50, shift: float = 1.0) -> DiffusersSampler:
        """Euler's steps along this path; with a ``shift`` above 1 more of them are near noise, below 1 near data."""
        options = {"invert_sigmas": True, "num_train_timesteps": 1, "shift": shift}
        return DiffusersSampler(scheduler="FlowMatchEulerDiscreteScheduler", options=options, num_steps=num_steps, even=True)

    def sample_times(self, count: int, device: torch.device, generator: Generator | None = None) -> Float[Tensor, " N"]:
        """Times in (0, 1)."""
        return torch.randn(count, device=device, generator=generator).sigmoid()

    def check_times(self, t: Tensor) -> None:
        """Raises ``ValueError`` for times out of range (on CPU)."""
        if is_readable(t) and not bool(((t >= 0) & (t <= 1)).all()):
            raise ValueError(f"t lies in [{float(t.min()):g}, {float(t.max()):g}]; accepted: [0, 1], 0 is noise")

    def net_time(self, t: Real[Tensor, " N"]) -> Float[Tensor, " N"]:
        """The time itself."""
        return t.float()

    def corrupt(self, x: Float[Tensor, "N C"], noise: Float[Tensor, "N C"], t: Float[Tensor, " N"]) -> Float[Tensor, "N C"]:
        """Data with the noise of its time."""
        return t[:, None] * x + (1 - t[:, None]) * noise

    def losses(
        self, output: Float[Tensor, "N C"], x: Float[Tensor, "N C"], noise: Float[Tensor, "N C"], t: Float[Tensor, " N"]
    ) -> Float[Tensor, " N"]:
        """Mean squared error of the velocity over the channels."""
        return (output.float() - (x - noise)).square().mean(dim=-1)
