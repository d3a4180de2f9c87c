"""Group norm followed by SiLU, the step that every convolutional tokenizer repeats."""

import torch
from torch import Tensor

from mmblocks.ops.dispatch import Impl, chosen, kernel_of, why_not_on
from mmblocks.ops.group_norm_silu.reference import group_norm_silu_reference

__all__ = ["group_norm_silu"]


def group_norm_silu(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    impl: Impl = "auto",
) -> Tensor:
    """``silu(group_norm(x))``.

    Args:
        x: (B, C, *S), of any floating dtype.
        num_groups: groups of neighbouring channels; divides C.
        weight: (C,) factors.
        bias: (C,) added after them.
        eps: added to a group's variance.
        impl: "eager", "triton", or "auto"; see ``mmblocks.ops.which``.

    Raises:
        ValueError: groups that do not divide the channels, or parameters of another length.
        RuntimeError: ``impl="triton"`` where the kernel cannot run.
    """
    channels = x.shape[1] if x.ndim > 1 else 0
    if num_groups < 1 or channels % num_groups or not channels:
        raise ValueError(f"x has {channels} channels, num_groups is {num_groups}; accepted: groups that divide the channels")
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and value.shape != (channels,):
            raise ValueError(f"{name} has shape {tuple(value.shape)}; accepted: ({channels},)")
    if chosen("group_norm_silu", impl, x, num_groups, weight, bias, eps):
        from mmblocks.ops.group_norm_silu.triton import group_norm_silu_triton

        return group_norm_silu_triton(x, num_groups, weight, bias, eps)
    return group_norm_silu_reference(x, num_groups, weight, bias, eps)


@kernel_of("group_norm_silu")
def _why_not(x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> str:
    if place := why_not_on(x):
        return place
    if x.ndim not in (4, 5):
        return f"x has {x.ndim} axes; it takes maps and clips"
    if x.shape[1] > 4096 or x.numel() == 0:
        return f"x has shape {tuple(x.shape)}; it takes 1 to 4096 channels of a map that is not empty"
    if torch.is_grad_enabled() and any(value is not None and value.requires_grad for value in (x, weight, bias)):
        return "a gradient is needed; it has none"
    return ""
