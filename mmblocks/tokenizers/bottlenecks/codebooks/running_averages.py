"""The running averages that some codebooks learn from: kept in float32, and never mixed with what is not finite."""

import warnings
from collections.abc import Callable
from typing import ClassVar, Self

import torch
from jaxtyping import Bool
from torch import Tensor, nn


class RunningAverages(nn.Module):
    """A module that moves its averages with it, but never casts them: in half precision they would stand still.

    Attributes:
        averages: names of the buffers that stay float32.
        learns_together: whether processes tell each other what they saw while training; see ``all_processes``.
    """

    averages: ClassVar[tuple[str, ...]] = ()
    learns_together: ClassVar[bool] = True

    def reset_buffers(self, device: torch.device) -> None:
        """The averages in float32, whatever dtype the module was loaded in."""
        for name in self.averages:
            setattr(self, name, self.get_buffer(name).to(device, torch.float32))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = {name: self.get_buffer(name) for name in self.averages}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, tensor in before.items():
            now = self.get_buffer(name)
            if now.dtype != tensor.dtype:
                setattr(self, name, now.to(tensor.dtype) if tensor.is_meta else tensor.to(now.device))
        return self


def finite_or_warned(values: Tensor) -> Bool[Tensor, ""]:
    """Whether all values are finite; if not, warns that nothing is learned from them. Works inside a compiled graph too.

    What comes back decides, by ``torch.where``, whether averages take in the values: a compiled graph cannot branch, and a
    factor of zero would not do, since zero times NaN is NaN.
    """
    finite: Tensor = _warned_of(values.isfinite().all())
    return finite


# Not to be captured in a CUDA graph: it reads the value.
@torch.library.custom_op("mmblocks::warned_of_not_finite", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def _warned_of(finite: Tensor) -> Tensor:
    if not finite:
        warnings.warn("the features to quantise hold NaN or infinity; nothing was learned from them", stacklevel=2)
    return finite.clone()


@_warned_of.register_fake
def _(finite: Tensor) -> Tensor:
    return torch.empty_like(finite)
