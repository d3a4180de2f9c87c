"""Heads that denoise one token at a time: a small network, given a token's state, turns noise into that token.

Shapes: N rows, D width of the states, C channels of a token, R repeats, S steps.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from mmblocks.block import Block
from mmblocks.layers.diffusion.adaln_mlp import TokenDenoiser
from mmblocks.layers.diffusion.denoising_guidance import DenoisingGuidance, LinearGuidance, check_scales
from mmblocks.layers.diffusion.denoising_samplers import TokenSampler
from mmblocks.layers.diffusion.noise_paths import NoisePath
from mmblocks.layers.losses.row_losses import check_rows, check_shape, weighted
from mmblocks.ops.arithmetic import lacks_arithmetic
from mmblocks.ops.cuda_graphs import repeated
from mmblocks.roles import check_role
from mmblocks.support.checks import check_finite
from mmblocks.support.deprecation import former_keywords

_ROWS = 8
"""Rows from which products in float32 pay for copies of the weights, where those in half precision are emulated."""


class DenoisingHead(Block):
    """Diffusion or flow over single tokens; network, path, sampler and guidance can each be replaced.

    Args:
        net: a ``layers.diffusion.adaln_mlp.TokenDenoiser``, such as ``AdaLNMLP``.
        path: a ``layers.diffusion.noise_paths.NoisePath``: what noise does to a token, and what the network predicts.
        sampler: a ``layers.diffusion.denoising_samplers.TokenSampler``.
        guidance: how predictions with and without a condition are combined; ``LinearGuidance()`` if None.
        repeats: R, times and noises that each token is learned at in one step: the network is cheap beside the trunk.
        scale: tokens are multiplied by this before they are noised, and divided by it after the sampler.

    Raises:
        TypeError: a part that lacks a method; the message names it.
        ValueError: fewer than one repeat, or a scale of zero.

    Source: MAR (arXiv 2406.11838), Orthus (arXiv 2412.00127), NOVA (arXiv 2412.14169).

    Examples:
        >>> import torch
        >>> from mmblocks.heads import DenoisingHead
        >>> from mmblocks.layers import DiffusersSampler
        >>> from mmblocks.layers.diffusion.adaln_mlp import AdaLNMLP
        >>> from mmblocks.layers.diffusion.noise_paths import FlowPath
        >>> net = AdaLNMLP(dim=4, condition_dim=16, width=8, num_blocks=1)
        >>> sampler = DiffusersSampler(scheduler="FlowMatchEulerDiscreteScheduler", num_steps=2)
        >>> head = DenoisingHead(net=net, path=FlowPath(), sampler=sampler)
        >>> hidden = torch.randn(3, 16)
        >>> tuple(head.loss(hidden, torch.randn(3, 4)).shape), tuple(head.sample(hidden).shape)
        ((3,), (3, 4))
    """

    net: TokenDenoiser
    path: NoisePath
    sampler: TokenSampler
    guidance: DenoisingGuidance

    def __init__(
        self, *, net: Block, path: Block, sampler: Block, guidance: Block | None = None, repeats: int = 1, scale: float = 1.0
    ) -> None:
        super().__init__()
        if repeats < 1 or scale == 0:
            raise ValueError(f"repeats is {repeats}, scale {scale}; accepted: 1 or more repeats, a scale other than 0")
        guidance = guidance or LinearGuidance()
        check_role(net, TokenDenoiser, "net")
        check_role(path, NoisePath, "path")
        check_role(sampler, TokenSampler, "sampler")
        check_role(guidance, DenoisingGuidance, "guidance")
        self.net, self.path = cast(TokenDenoiser, net), cast(NoisePath, path)
        self.sampler, self.guidance = cast(TokenSampler, sampler), cast(DenoisingGuidance, guidance)
        self.repeats, self.scale = repeats, scale

    def loss(
        self,
        hidden: Float[Tensor, "N D"],
        target: Float[Tensor, "N C"],
        weight: Float[Tensor, " N"] | None = None,
        *,
        t: Int[Tensor, " RN"] | None = None,
        noise: Float[Tensor, "RN C"] | None = None,
        generator: Generator | None = None,
    ) -> Float[Tensor, " N"]:
        """The path's loss of each row, the mean over its repeats, in float32.

        Args:
            hidden: states from which the tokens are predicted.
            target: the tokens.
            weight: factor per row; 0 leaves a row out.
            t: times, in place of random ones; for all rows once, then for all again, R times.
            noise: what is added, in place of random noise; in the same order.
            generator: source of randomness.

        Raises:
            ValueError: shapes that do not fit, times out of range, or values that are not finite (checked on CPU).
        """
        check_rows(hidden, target, weight, self.net.dim)
        check_finite("target", target)
        count = self.repeats * len(target)
        x = (target.float() * self.scale).repeat(self.repeats, 1)
        if t is None:
            t = self.path.sample_times(count, x.device, generator)
        check_shape("t", t, (count,))
        self.path.check_times(t)
        if noise is None:
            noise = torch.empty_like(x).normal_(generator=generator)
        check_shape("noise", noise, tuple(x.shape))

        noised = self.path.corrupt(x, noise, t).to(hidden.dtype)
        time = self.net.embed_time(self.path.net_time(t))
        condition = self.net.embed_condition(hidden).repeat(self.repeats, 1)
        losses = self.path.losses(self.net(noised, time, condition), x, noise, t)
        return weighted(losses.view(self.repeats, -1).mean(dim=0), weight)

    @former_keywords(taps="trajectory")
    @torch.no_grad()
    def sample(
        self,
        hidden: Float[Tensor, "*N D"],
        *,
        unconditional: Float[Tensor, "*N D"] | Sequence[Float[Tensor, "*N D"]] | None = None,
        guidance: float | Sequence[float] | None = None,
        temperature: float = 1.0,
        sampler: Block | None = None,
        noise: Float[Tensor, "*N C"] | None = None,
        step_noise: Float[Tensor, "S *N C"] | None = None,
        generator: Generator | None = None,
        trajectory: list[Tensor] | None = None,
    ) -> Float[Tensor, "*N C"]:
        """One token per state, in float32. Inside ``ops.cuda_graphs.replaying()`` a GPU replays the network's recording.

        Args:
            hidden: states from which tokens are predicted.
            unconditional: the same states without the condition; several for guidance by several conditions, from more of
                them to none.
            guidance: the scale, or one scale for each of ``unconditional``; 1 is no guidance.
            temperature: how much noise the sampler uses; see the sampler.
            sampler: another one for this call.
            noise: what the sampler begins with, in place of random noise.
            step_noise: what it adds in its steps, in place of random noise.
            generator: source of randomness.
            trajectory: a list that the tokens after each step are appended to, before they are divided by ``scale``.

        Raises:
            ValueError: shapes that do not fit, guidance without unconditional states or the other way round, a scale below 1.
        """
        others, scales = _streams(hidden, unconditional, guidance)
        chosen = self.sampler if sampler is None else cast(TokenSampler, sampler)
        shape = (*hidden.shape[:-1], self.net.dim)
        if noise is None:
            noise = torch.empty(shape, device=hidden.device).normal_(generator=generator)
        check_shape("noise", noise, shape)

        times = chosen.times(self.path)
        told = times.tolist()
        net, states = self._fastest(torch.stack([hidden, *others]))
        run = repeated(cast(nn.Module, net))
        # All times and all streams at once: over the steps, only the tokens change.
        time = net.embed_time(times.to(hidden.device))
        condition = net.embed_condition(states)

        def predict(x: Tensor, step: int) -> Tensor:
            x = x.to(states.dtype).expand(len(states), *x.shape)
            outputs = run(x, time[step], condition).unbind(0)
            if len(outputs) == 1:
                return outputs[0]
            # What the network gives beside the prediction, such as a variance, is the first stream's.
            channels = shape[-1]
            guided = self.guidance([output[..., :channels].float() for output in outputs], scales, told[step])
            return torch.cat([guided, outputs[0][..., channels:].float()], dim=-1)

        x = chosen.sample(
            predict,
            noise.float(),
            self.path,
            temperature=temperature,
            step_noise=step_noise,
            generator=generator,
            trajectory=trajectory,
        )
        return x / self.scale

    def _fastest(self, states: Float[Tensor, "S *N D"]) -> tuple[TokenDenoiser, Float[Tensor, "S *N D"]]:
        """Network and states as this device samples with them fastest: in float32 where products of half precision are emulated.

        Sampling is then that of the same weights without rounding on the way.
        """
        if lacks_arithmetic(states) and states[..., 0].numel() >= _ROWS:
            return cast(TokenDenoiser, deepcopy(cast(nn.Module, self.net)).float()), states.float()
        return self.net, states


def _streams(
    hidden: Tensor, unconditional: Tensor | Sequence[Tensor] | None, guidance: float | Sequence[float] | None
) -> tuple[list[Tensor], tuple[float, ...]]:
    """The states beside the first stream's, and a scale for each; none where every scale is 1."""
    if unconditional is None and guidance is None:
        return [], ()
    if unconditional is None or guidance is None:
        raise ValueError("guidance and unconditional go together: states without the condition, and a scale")
    others = [unconditional] if isinstance(unconditional, Tensor) else list(unconditional)
    scales = (guidance,) if isinstance(guidance, int | float) else tuple(guidance)
    check_scales(scales, len(others) + 1)
    for other in others:
        check_shape("unconditional", other, tuple(hidden.shape))
    return ([], ()) if all(scale == 1 for scale in scales) else (others, scales)
