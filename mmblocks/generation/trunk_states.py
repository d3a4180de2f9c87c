"""The states of a trunk that heads of whole spans are given: of the layers that they name, and of whole documents.

Shapes: B rows, L tokens, D width, K layers, N states of the documents of all spans, S spans.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmblocks.layers.attention.attend import Hook
from mmblocks.sequence.spans import SpanLayout, Spans
from mmblocks.sequence.tokens import TokenTable
from mmblocks.trunks.hooks import Observable, TrunkHooks


class TrunkStates(NamedTuple):
    """States of some tokens.

    Attributes:
        output: those after the final norm.
        by_layer: after so many layers, as far as they were kept.
    """

    output: Float[Tensor, "B L D"]
    by_layer: dict[int, Tensor]

    def of(self, layers: tuple[int, ...]) -> Float[Tensor, "B L _"]:
        """The states after each of these numbers of layers side by side; the output where none is named."""
        return torch.cat([self.by_layer[layer] for layer in layers], dim=-1) if layers else self.output


class Watch:
    """Keeps the states of some layers in one call of a trunk.

    Args:
        trunk: the trunk.
        layers: after how many layers, as ``trunks.hidden_states`` counts.
    """

    def __init__(self, trunk: object, layers: Iterable[int]) -> None:
        self.layers = sorted(set(layers))
        self._num_layers = cast(Observable, trunk).num_layers if self.layers else 0
        self._found: dict[int, Tensor] = {}

    @property
    def options(self) -> dict[str, Any]:
        """What the trunk is called with."""
        hooks = {layer: self._keep(layer) for layer in self.layers if layer < self._num_layers}
        return {"hooks": TrunkHooks(hidden=hooks)} if hooks else {}

    def _keep(self, layer: int) -> Hook:
        return lambda x: self._found.update({layer: x})

    def states(self, output: Float[Tensor, "B L D"]) -> TrunkStates:
        """What was kept, beside what the trunk has given back.

        Raises:
            ValueError: layers that have read other tokens than the trunk was given.
        """
        if self._num_layers in self.layers:
            self._found[self._num_layers] = output
        for layer, found in self._found.items():
            if found.shape != output.shape:
                raise ValueError(f"layer {layer} has read {tuple(found.shape)} of {tuple(output.shape)}; accepted: all tokens")
        return TrunkStates(output, self._found)


def check_layers(name: str, layout: SpanLayout, trunk: object) -> None:
    """Refuses a head that wants states of layers which the trunk does not have, or does not show.

    Raises:
        TypeError: a trunk that shows none.
        ValueError: layers that are not there.
    """
    if not layout.layers:
        return
    if not isinstance(trunk, Observable):
        found = f"outputs[{name!r}] is given states of layers {layout.layers}, and trunk is a {type(trunk).__name__}"
        raise TypeError(f"{found}; accepted: a trunk with hooks, such as a Decoder")
    if max(layout.layers) > trunk.num_layers:
        raise ValueError(f"outputs[{name!r}] is given states of layers {layout.layers}; accepted: 0 to {trunk.num_layers}")


def document_states(table: TokenTable, spans: Spans, lead: int) -> tuple[Int[Tensor, " N"], tuple[int, ...]]:
    """Which tokens of the flattened rows are the documents that spans end, span by span; and how many they are of each.

    These are the clean tokens before the span, and the span's own.

    Args:
        table: of the rows in which ``spans.places`` count.
        spans: the spans.
        lead: tokens of the head's own before each span, which are none of them.
    """
    length = table.shape[1]
    found = []
    for own in spans.split(spans.places):
        row, column = divmod(int(own[0]), length)
        document = table.document[row]
        before = (document == document[column]) & ~table.noisy[row]
        before[column - lead :] = False
        found.append(torch.cat([row * length + before.nonzero()[:, 0], own]))
    return torch.cat(found), tuple(map(len, found))
