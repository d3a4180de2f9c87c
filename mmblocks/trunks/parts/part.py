"""What a part of a layer is, and where it stands: for parts of one's own.

Shapes: B batch, L new tokens, D width.
"""

from collections.abc import Callable
from typing import ClassVar, NamedTuple, Protocol, TypeVar, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from mmblocks.configurable import Description
from mmblocks.trunks.caches.kv_cache import Memory
from mmblocks.trunks.context import ForwardContext

T = TypeVar("T")


class Site(NamedTuple):
    """Where a part is built.

    Attributes:
        dim: D, the trunk's width.
        layer: index of its layer.
        num_layers: of the trunk.
        dropout: on what a layer adds, while training.

    Examples:
        >>> from mmblocks.trunks import GatedMLP, Site
        >>> GatedMLP(hidden_dim=48).build(Site(dim=32)).down
        Linear(in_features=48, out_features=32, bias=False)
    """

    dim: int
    layer: int = 0
    num_layers: int = 1
    dropout: float = 0.0


class Part(Description):
    """How a mixer or a feed-forward part is built.

    A part of one's own is a description and a module:

        class Shift(Part):
            amount: int = 1

            def build(self, site):
                return ShiftModule(site.dim, self.amount)

    The module is called with ``(x, context, layer)``: tokens (B, L, D), the ``ForwardContext``, and the index of its layer. It
    gives what is added to ``x``. It may have

    - ``prepare(context)``, called once per pass before any layer, for what several layers ``share``;
    - ``memory``, a ``Memory``: what it remembers of a row between calls. With a cache, ``context.cache.update(layer, key, value)``
      adds keys and values, ``context.cache.states[layer]`` is its state, and ``context.cache.keep_state`` replaces that;
      ``sequence.document_begins(context.keys)`` says where a recurrence begins anew, and padding should leave its state alone;
    - ``condition_dim``, the width of the conditions that it reads from ``context.conditions``, which is None where there are none;
    - ``static_step``, True if a step of one token neither reads values on the host nor copies any to the device.

    Fields called ``experts`` and ``names`` that hold strings name experts of the trunk, as those of ``Linear`` do.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from mmblocks import Decoder, TokenTable
        >>> from mmblocks.trunks import GatedMLP, Layer, Part
        >>> class Shift(Part):
        ...     amount: int = 1
        ...     def build(self, site):
        ...         return ShiftModule(self.amount)
        >>> class ShiftModule(nn.Module):
        ...     def __init__(self, amount):
        ...         super().__init__()
        ...         self.amount = amount
        ...     def forward(self, x, context, layer):
        ...         return nn.functional.pad(x, (0, 0, self.amount, 0))[:, : x.shape[1]]
        >>> trunk = Decoder(dim=32, num_layers=1, layers=Layer(mixer=Shift(), feed_forward=GatedMLP(hidden_dim=48)))
        >>> tuple(trunk(torch.randn(1, 5, 32), TokenTable.text(1, 5)).shape)
        (1, 5, 32)
    """

    def build(self, site: Site) -> nn.Module:
        """The module, with weights of its own."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it is built; accepted: a Part with build(self, site)")


@runtime_checkable
class PartModule(Protocol):
    """What ``Part.build`` gives, as layers call it."""

    def __call__(self, x: Float[Tensor, "B L D"], context: ForwardContext, layer: int) -> Float[Tensor, "B L D"]:
        """What is added to ``x``."""
        ...


def check_part(name: str, value: object) -> None:
    """Refuses what is no part, such as the class of one, or a module.

    Raises:
        TypeError: says what it is.
    """
    if not isinstance(value, Part):
        found = value.__name__ if isinstance(value, type) else f"a {type(value).__name__}"
        raise TypeError(f"{name} is {found}; accepted: a Part, such as Attention(num_heads=8)")


def prepare(module: nn.Module, context: ForwardContext) -> None:
    """Calls a part's ``prepare`` where it has one."""
    found: Callable[[ForwardContext], None] | None = said(module, "prepare", None)
    if found is not None:
        found(context)


def memory_of(module: nn.Module) -> Memory:
    """What a part remembers of a row; nothing where it does not say."""
    return said(module, "memory", Memory())


def condition_dim_of(*modules: nn.Module | None) -> int | None:
    """The width of the conditions that parts take; None where none says that it takes any.

    Raises:
        ValueError: several widths.
    """
    none: int | None = None
    widths = {said(module, "condition_dim", none) for module in modules if module is not None} - {None}
    if len(widths) > 1:
        raise ValueError(f"conditions are taken in several widths, {widths}; accepted: one for all layers of a trunk")
    return next(iter(widths), None)


def has_static_step(module: nn.Module) -> bool:
    """Whether a part says that its step can be recorded."""
    return said(module, "static_step", False)


def reads_rows(module: nn.Module) -> bool:
    """Whether a part says that it takes tokens as rows sorted by expert."""
    return said(module, "reads_rows", False)


def said(module: nn.Module, name: str, otherwise: T) -> T:
    """What a part says of itself; one of one's own need not say anything."""
    found: T = getattr(module, name, otherwise)  # see above
    return found


class TrunkPart(nn.Module):
    """A module of a layer with what parts may leave out, for those of mmblocks.

    Attributes:
        reads_rows: whether it takes tokens as rows sorted by expert, too; others are given (B, L, D) always.
        static_step: whether a step can be recorded as a CUDA graph.
        memory: what it remembers of a row.
        condition_dim: width of the conditions that it takes, or None for none.
    """

    reads_rows: ClassVar[bool] = True
    static_step: bool = True
    memory: Memory = Memory()
    condition_dim: int | None = None

    def prepare(self, context: ForwardContext) -> None:
        """Computes what several layers share."""
