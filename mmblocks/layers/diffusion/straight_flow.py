"""A straight line from data at time 0 to noise at time 1, whose network is told the time itself and predicts noise minus data.

Shapes: N rows, C channels.
"""

from typing import ClassVar

import torch
from jaxtyping import Float, Real
from torch import Generator, Tensor

from mmblocks.block import Block
from mmblocks.layers.diffusion.denoising_samplers import DiffusersSampler
from mmblocks.support.checks import is_readable


class StraightFlow(Block):
    """``(1 - t) * x + t * noise`` with real times: the sigmoid of a normal variable, then moved by a shift.

    ``RectifiedFlow`` is the same line, walked from the other end; ``FlowPath`` the same again, with times in a table.

    Args:
        shift: how much nearer to noise times are: t becomes ``shift * t / (1 + (shift - 1) * t)``.

    Raises:
        ValueError: a shift of 0 or less.

    Source: BAGEL (arXiv 2505.14683; ByteDance-Seed/Bagel).

    Examples:
        >>> import torch
        >>> from mmblocks.layers import StraightFlow
        >>> path = StraightFlow(shift=3.0)
        >>> path.corrupt(torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([0.25])).tolist()
        [[0.25, 0.25]]
        >>> [round(t, 4) for t in StraightFlow.sampler(num_steps=2, shift=3.0).times(path).tolist()]
        [1.0, 0.75]
    """

    num_outputs: ClassVar[int] = 1

    def __init__(self, *, shift: float = 1.0) -> None:
        super().__init__()
        if not shift > 0:
            raise ValueError(f"shift is {shift}; accepted: above 0")
        self.shift = shift

    @property
    def ends(self) -> tuple[int, int]:
        """The cleanest time and the noisiest."""
        return 0, 1

    @staticmethod
    def sampler(num_steps: int = 49, shift: float = 3.0) -> DiffusersSampler:
        """Euler's steps along this path, from 1 to 0. What BAGEL counts as 50 times are the ends of 49 steps."""
        options = {"num_train_timesteps": 1, "shift": shift}
        return DiffusersSampler(scheduler="FlowMatchEulerDiscreteScheduler", options=options, num_steps=num_steps, even=True)

    def sample_times(self, count: int, device: torch.device, generator: Generator | None = None) -> Float[Tensor, " N"]:
        """Times in (0, 1)."""
        t = torch.randn(count, device=device, generator=generator).sigmoid()
        return self.shift * t / (1 + (self.shift - 1) * t)

    def check_times(self, t: Tensor) -> None:
        """Raises ``ValueError`` for times out of range (on CPU)."""
        if is_readable(t) and not bool(((t >= 0) & (t <= 1)).all()):
            raise ValueError(f"t lies in [{float(t.min()):g}, {float(t.max()):g}]; accepted: [0, 1], 1 is noise")

    def net_time(self, t: Real[Tensor, " N"]) -> Float[Tensor, " N"]:
        """The time itself."""
        return t.float()

    def corrupt(self, x: Float[Tensor, "N C"], noise: Float[Tensor, "N C"], t: Float[Tensor, " N"]) -> Float[Tensor, "N C"]:
        """Data with the noise of its time."""
        return (1 - t[:, None]) * x + t[:, None] * noise

    def losses(
        self, output: Float[Tensor, "N C"], x: Float[Tensor, "N C"], noise: Float[Tensor, "N C"], t: Float[Tensor, " N"]
    ) -> Float[Tensor, " N"]:
        """Mean squared error of the velocity over the channels."""
        return (output.float() - (noise - x)).square().mean(dim=-1)
