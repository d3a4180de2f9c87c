"""The hooks of ``TrunkHooks`` inside a model of transformers.

States are read and changed at the edges of the model's layers. Attention goes through a function that transformers knows by the
name ``mmblocks``: its own sdpa, and where a hook asks for weights or heads, ours.

Shapes: B batch, L new tokens, T all tokens, H query heads, K key/value heads, C and V widths of a head's keys and values, D width.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import dropout as drop

from mmblocks.layers.attention.attend import Observed, attend, changed
from mmblocks.sequence.masks import Dense
from mmblocks.trunks.hooks import TrunkHooks

ATTENTION = "mmblocks"
"""The name of our attention among those of transformers."""

PreTrained = Any
"""A ``PreTrainedModel``: what it has differs from model to model, and its type says nothing of it."""

_UNKNOWN = ("softcap", "s_aux", "position_bias", "head_mask")
"""What some models hand to their attention and ours does not know."""


@dataclass
class _Call:
    """One forward pass under hooks.

    Attributes:
        hooks: what is asked for.
        seen: layers whose attention ran through ours.
    """

    hooks: TrunkHooks
    seen: set[int] = field(default_factory=set)


_CALL: ContextVar[_Call | None] = ContextVar("mmblocks_hooks", default=None)
"""The pass that is running, in this thread."""


def register() -> None:
    """Makes our attention known to transformers."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, partial(_attention, plain))
    ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


@contextmanager
def watched(model: PreTrained, hooks: TrunkHooks) -> Iterator[None]:
    """While open, a forward pass of the model calls the hooks.

    Other passes of the same model, in other threads, do not notice.

    Raises:
        ValueError: layers that are not there; a model that recomputes its layers; or, at the end, attention that was asked for and
            did not come by.
    """
    layers = _layers(model)
    hooks.check(len(layers))
    if hooks != TrunkHooks() and model.training and any(getattr(layer, "gradient_checkpointing", False) for layer in layers):
        raise ValueError(
            "hooks would be called again where layers are recomputed; accepted: a model without gradient checkpointing"
        )
    call = _Call(hooks)
    token = _CALL.set(call)
    try:
        with ExitStack() as registered:
            for number, layer in enumerate(layers):
                if number in hooks.hidden:
                    before = partial(_before, call, number)
                    registered.callback(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
            if len(layers) in hooks.hidden:
                registered.callback(layers[-1].register_forward_hook(partial(_after, call, len(layers))).remove)
            yield
    finally:
        _CALL.reset(token)
    missed = sorted({*hooks.attention, *hooks.heads} - call.seen)
    if missed:
        raise ValueError(
            f"the attention of layers {missed} of {type(model).__name__} was not seen; accepted: a model that lets others compute "
            f"its attention, and whose set_attn_implementation({ATTENTION!r}) was called if it was handed to around()"
        )


def _layers(model: PreTrained) -> nn.ModuleList:
    count = model.config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ValueError(f"{type(model).__name__} has no list of {count} layers, so that its states cannot be read")


def _before(
    call: _Call, number: int, layer: nn.Module, args: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """In front of a layer: its states are the first argument, or one with a name."""
    if _CALL.get() is not call:
        return None
    state = call.hooks.state(number, args[0] if args else options["hidden_states"])
    return ((state, *args[1:]), options) if args else (args, {**options, "hidden_states": state})


def _after(call: _Call, number: int, layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:  # whatever layers give
    """After the last layer, whose output is the states or begins with them."""
    if _CALL.get() is not call:
        return output
    if isinstance(output, tuple):
        return (call.hooks.state(number, output[0]), *output[1:])
    return call.hooks.state(number, output)


def _attention(
    plain: Callable[..., tuple[Tensor, Tensor | None]],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: object,
) -> tuple[Tensor, Tensor | None]:
    """transformers' own attention; ours for a layer that a hook looks at. Gives (B, L, H, V)."""
    call = _CALL.get()
    number = getattr(module, "layer_idx", None)
    if call is None or number is None or not (number in call.hooks.attention or number in call.hooks.heads):
        return plain(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **options)
    call.seen.add(number)
    if number not in call.hooks.attention:
        found, weights = plain(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **options)
        return changed(call.hooks.heads[number], found.transpose(1, 2)).transpose(1, 2), weights
    unknown = [name for name in _UNKNOWN if options.get(name) is not None]
    if unknown or attention_mask is None:
        raise ValueError(f"{type(module).__name__} has {unknown or 'no mask'}; accepted for attention weights: plain attention")

    def seen(weights: Tensor) -> Tensor:
        return drop(changed(call.hooks.attention[number], weights), dropout)

    mask = Observed(Dense(attention_mask[:, 0]), seen, call.hooks.heads.get(number))
    return attend(query, key, value, mask, scaling).transpose(1, 2).contiguous(), None
