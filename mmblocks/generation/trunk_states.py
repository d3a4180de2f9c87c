"""The states of a trunk that heads of whole spans are given: of the layers that they name, and of whole documents.

Shapes: S streams, B rows, SB rows of all streams, L tokens, T tokens read before, D width, N states of the documents of all spans.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

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


class Documents(NamedTuple):
    """What spans of a head are the end of.

    Attributes:
        before: states of all tokens read before them.
        places: by stream, which tokens of the flattened rows, those of the spans included, they are.
        counts: by stream, how many of each span.
    """

    before: Float[Tensor, "SB T _"]
    places: list[Int[Tensor, " M"]]
    counts: tuple[tuple[int, ...], ...]

    def states(self, own: Float[Tensor, "SB L _"]) -> Float[Tensor, "S _ _"]:
        """Their states, with those of the spans' own tokens; zeros after those of shorter streams."""
        everything = torch.cat([self.before, own], dim=1).flatten(0, 1)
        return pad_sequence([everything[places] for places in self.places], batch_first=True)


def documents_of(
    before: tuple[TokenTable, Float[Tensor, "SB T _"]], spans: Spans, block: TokenTable, num_rows: int, lead: int
) -> Documents:
    """What spans are the end of that are about to be read, in each of G streams.

    Args:
        before: table and states of all tokens read before them.
        spans: as tokens of the first stream's rows of ``block``.
        block: the table (SB, L) of the spans' own tokens, for all streams.
        num_rows: B.
        lead: see ``document_states``.
    """
    read, states = before
    table = TokenTable(*(torch.cat(columns, dim=1) for columns in zip(read, block, strict=True)))
    rows, columns = spans.places // block.shape[1], spans.places % block.shape[1] + read.shape[1]
    found = []
    for first_row in range(0, len(block.document), num_rows):
        places = (rows + first_row) * table.shape[1] + columns
        found.append(document_states(table, spans._replace(places=places), lead))
    return Documents(states, [own for own, _ in found], tuple(counts for _, counts in found))
