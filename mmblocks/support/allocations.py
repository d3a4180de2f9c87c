"""How much memory a computation would take, found on the meta device, where tensors have sizes and no values."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Called = Callable[..., Any]


class Allocations:
    """Counts the meta tensors that are made while it is open: those that are there at once.

    Views and changes in place take nothing. Attention counts as the fused kernels of CPUs and GPUs have it: what it gives, and none
    of the weights in between.

    Attributes:
        live: bytes of tensors that were made since it was opened, and are still there.
        peak: the most at once, since it was opened or since the last ``restart``.

    Examples:
        >>> import torch
        >>> from mmblocks.support.allocations import Allocations
        >>> x = torch.empty(1000, device="meta")
        >>> with Allocations() as memory:
        ...     y = (x + 1).relu()[:10]
        >>> memory.live, memory.peak
        (4000, 8000)
    """

    def __init__(self) -> None:
        self.live = 0
        self.peak = 0
        self._seen: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self._open.enter_context(_Counting(self))
        self._open.enter_context(_FusedAttention())
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def restart(self) -> None:
        """What was there at once before counts no more."""
        self.peak = self.live

    def see(self, tensor: Tensor, *, is_new: bool) -> None:
        """Notes a tensor that an operation reads, or gives."""
        if not tensor.is_meta:
            return
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._seen:
            return
        size = storage.nbytes() if is_new else 0
        self._seen[key] = weakref.ref(storage, lambda _: self._forget(key, size))
        self.live += size
        self.peak = max(self.peak, self.live)

    def _forget(self, key: int, size: int) -> None:
        del self._seen[key]
        self.live -= size


class _Counting(TorchDispatchMode):
    def __init__(self, memory: Allocations) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.memory = memory

    def __torch_dispatch__(
        self, func: Called, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self.memory.see(leaf, is_new=False)
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self.memory.see(leaf, is_new=True)
        return found


class _FusedAttention(TorchFunctionMode):
    """On the meta device torch would write attention out, with a weight for each pair."""

    def __torch_function__(
        self, func: Called, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is scaled_dot_product_attention and args[0].is_meta:
            query, _, value = args[:3]
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return func(*args, **(kwargs or {}))
