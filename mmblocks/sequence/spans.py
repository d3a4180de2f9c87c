"""Spans: runs of tokens that a head writes as wholes, and what passes between such a head, the batch and the trunk.

A head that writes spans says how they stand in a row (``SpanLayout``), which is all that a batch builder needs to know. Before the
trunk it makes of the true values what the trunk reads (``Reading``); after it, it makes losses of the states. While a span is
written, the head says what the trunk reads in each pass (``Pass``). The role is ``roles.SpanHead``.

Shapes: N tokens of all spans, S spans, D width of the trunk, C width of its conditions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, Shaped
from torch import Generator, Tensor

from mmblocks.sequence.masks import MaskRule

Guide = Callable[..., Tensor]
"""(predictions of all streams (G, N, X), strength=1.0) -> the guided prediction (N, X); strength 0 is that of the first stream."""


@dataclass(frozen=True, kw_only=True)
class SpanLayout:
    """How the spans of a head stand in a row.

    Args:
        writes: what the head writes: "ids", "vectors", or "pixels" of one image a span.
        predicts: whether a state predicts the value of its "own" token or of the "next" one.
        attends: whether a token of a span attends to all of the "span", or to those before it alone, "causal". The head's own
            tokens come before both; with "all" they are one with the span.
        context: what the tokens after a span attend to: a "clean" copy of it, laid out after what was read while it is learned; or
            what was "read" itself, as where queries or scales stay in the row.
        num_tokens: how many tokens a span takes, such as those of queries; as many as values if None.
        lead: how many tokens of the head's own come before each span, such as one for the time.
        lead_modality: what these stand for, where that is not what the span does: text, where they are ids that open and close it.
        scales: rows and columns of the grids that a span consists of, coarse first; a token attends to its own scale and to those
            before it.
        whole: whether the head is given the values of a span as the sample has them, such as pixels; one row a token otherwise.
        patch: rows and columns of values that a token takes together, such as 2 for 2 x 2 latents.
        mixed: whether spans of several sizes are written together; otherwise those of each size on their own.
        structure: whether ids that are no values, such as row ends, may stand in a span: they are given, as ``Spans.ids`` says.
        opening: how many of the tokens just before a span are read once more as part of it; with 1 the "next" value is predicted by
            a state that attends to the span, for the first value too.
        learner: a head that learns the clean copy token by token, which is causal then and always laid out; None for one that is
            read alone.
        states: which states the head is given: those of its "own" tokens, or of the whole "document" so far, which they end.
        layers: after how many layers of the trunk each of these is taken, as ``trunks.hidden_states`` counts; the head is given
            all of a token's side by side. Empty for the trunk's output alone.

    Raises:
        ValueError: options that do not go together.

    Examples:
        >>> from mmblocks.sequence import SpanLayout
        >>> flow = SpanLayout(writes="vectors", lead=1)  # a token for the time, then the span, which attends within itself
        >>> flow.count((4, 6)), SpanLayout(writes="pixels", context="read", num_tokens=16, whole=True).count((64, 48))
        (24, 16)
    """

    writes: Literal["ids", "vectors", "pixels"] = "vectors"
    predicts: Literal["own", "next"] = "own"
    attends: Literal["span", "causal", "all"] = "span"
    context: Literal["clean", "read"] = "clean"
    num_tokens: int | None = None
    lead: int = 0
    scales: tuple[tuple[int, int], ...] | None = None
    whole: bool = False
    patch: int = 1
    mixed: bool = False
    structure: bool = False
    opening: int = 0
    learner: str | None = None
    states: Literal["own", "document"] = "own"
    layers: tuple[int, ...] = ()
    lead_modality: int | None = None

    def __post_init__(self) -> None:
        choices: dict[str, tuple[str, ...]] = {
            "writes": ("ids", "vectors", "pixels"),
            "predicts": ("own", "next"),
            "attends": ("span", "causal", "all"),
            "context": ("clean", "read"),
            "states": ("own", "document"),
        }
        for name, known in choices.items():
            if vars(self)[name] not in known:
                raise ValueError(f"{name} is {vars(self)[name]!r}; accepted: {', '.join(map(repr, known))}")
        if self.predicts == "next" and (self.states == "document" or self.layers):
            raise ValueError(f"predicts is 'next', states {self.states!r} and layers {self.layers}; accepted: 'own' and none")
        if any(layer < 0 for layer in self.layers):
            raise ValueError(f"layers is {self.layers}; accepted: 0 or more each")
        if self.lead < 0 or (self.num_tokens is not None and self.num_tokens < 1):
            raise ValueError(f"lead is {self.lead}, num_tokens {self.num_tokens}; accepted: 0 or more, and 1 or more or None")
        if self.scales is not None and (not self.scales or self.num_tokens is not None):
            raise ValueError(f"scales is {self.scales}, num_tokens {self.num_tokens}; accepted: at least one scale, and None")
        own = self.whole or self.scales is not None or self.num_tokens is not None
        if self.patch < 1 or (self.patch > 1 and (own or self.writes != "vectors")):
            raise ValueError(f"patch is {self.patch}; accepted: 1, or more where a token stands for vectors of its own place")
        if self.structure and (self.writes != "ids" or self.attends == "causal" or self.lead):
            accepted = "ids that attend to their whole span, without a lead"
            raise ValueError(
                f"structure is True, writes {self.writes!r}, attends {self.attends!r}, lead {self.lead}; accepted: {accepted}"
            )
        if self.opening < 0 or (self.opening and not self.structure):
            raise ValueError(f"opening is {self.opening}, structure {self.structure}; accepted: 0, or 1 or more with structure")
        if (self.opening or self.learner is not None) and self.context != "clean":
            raise ValueError(f"context is {self.context!r}, opening {self.opening}, learner {self.learner!r}; accepted: 'clean'")

    def modalities(self, modality: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """What each token stands for, the head's own first, of what the span does."""
        if self.lead_modality is None or not self.lead:
            return modality
        return torch.cat([torch.full_like(modality[: self.lead], self.lead_modality), modality[self.lead :]])

    def count(self, size: tuple[int, ...]) -> int:
        """Tokens of a span whose values have this size."""
        if self.scales is not None:
            return sum(rows * columns for rows, columns in self.scales)
        return math.prod(self.grid(size)) if self.num_tokens is None else self.num_tokens

    def grid(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Patches along each axis of values of this size.

        Raises:
            ValueError: rows or columns that are no multiple of the patch.
        """
        if self.patch == 1:
            return size
        if len(size) < 2 or any(side % self.patch for side in size[-2:]):
            raise ValueError(f"values have size {size}; accepted: rows and columns that are multiples of {self.patch}")
        return (*size[:-2], *(side // self.patch for side in size[-2:]))


def to_patches(values: Shaped[Tensor, "*grid C"], patch: int) -> Shaped[Tensor, "N C2"]:
    """Values as one row a token, each with all of its patch: row by row, channels last."""
    if patch == 1:
        return values.flatten(0, -2)
    return rearrange(values, "... (h p) (w q) c -> (... h w) (p q c)", p=patch, q=patch)


def from_patches(rows: Shaped[Tensor, "N C2"], size: tuple[int, ...], patch: int) -> Shaped[Tensor, "*grid C"]:
    """The way back, to values of that size."""
    if patch > 1:
        sides = {"h": size[-2] // patch, "w": size[-1] // patch, "p": patch, "q": patch}
        rows = rearrange(rows, "(t h w) (p q c) -> t (h p) (w q) c", **sides)
    return rows.reshape(*size, -1)


class Spans(NamedTuple):
    """The spans of one head in a batch, one after the other.

    Attributes:
        input: the embedder that reads their values.
        sizes: of each span, in values.
        counts: tokens of each span.
        grid: (t, h, w) of each token.
        places: where each token stands, ``row * L + column``.
        leads: where the head's own tokens stand, span by span.
        states: where the state stands that predicts each token.
        values: what is to be written: one row a token, or one tensor a span where they are whole; None while it is written.
        given: by name, what samples say of each span beside, (S, ...), such as a class.
        weight: of each span's losses; None for 1.
        generators: a source of randomness for each span while it is written, so that what a row gets does not depend on others.
        continues: the row of the prompt that each continues while it is written.
        patch: of the layout.
        ids: which ids ``first <= id < stop`` may stand at each token, where a format of codes says so; one where it is given, such
            as a row end. None where the head itself says.
        contexts: by stream, how many states the head is given of each span, where these are those of the whole document.

    Examples:
        >>> import torch
        >>> from mmblocks.sequence import Spans
        >>> places = torch.arange(5)
        >>> grid = torch.zeros(5, 3, dtype=torch.long)
        >>> spans = Spans("latents", ((2,), (3,)), (2, 3), grid, places, places[:0], places, None, {}, None)
        >>> spans.per_token(torch.tensor([0.1, 0.9])).tolist() == torch.tensor([0.1, 0.1, 0.9, 0.9, 0.9]).tolist()
        True
        >>> [len(part) for part in spans.split(places)]
        [2, 3]
    """

    input: str
    sizes: tuple[tuple[int, ...], ...]
    counts: tuple[int, ...]
    grid: Int[Tensor, "N 3"]
    places: Int[Tensor, " N"]
    leads: Int[Tensor, " M"]
    states: Int[Tensor, " N"]
    values: Tensor | list[Tensor] | None
    given: dict[str, Tensor]
    weight: Float[Tensor, " S"] | None
    generators: tuple[Generator, ...] = ()
    continues: tuple[int, ...] = ()
    patch: int = 1
    ids: Int[Tensor, "N 2"] | None = None
    contexts: tuple[tuple[int, ...], ...] = ()

    @property
    def num_spans(self) -> int:
        """S."""
        return len(self.counts)

    @property
    def num_tokens(self) -> int:
        """N."""
        return sum(self.counts)

    @property
    def device(self) -> torch.device:
        """Where the batch is."""
        return self.places.device

    @property
    def of(self) -> Int[Tensor, " N"]:
        """Which span each token belongs to."""
        counts = torch.tensor(self.counts, dtype=torch.long, device=self.device)
        return torch.arange(self.num_spans, device=self.device).repeat_interleave(counts, output_size=self.num_tokens)

    @property
    def written(self) -> Bool[Tensor, " N"]:
        """True where the head writes, False where an id is given."""
        if self.ids is None:
            return torch.ones(self.num_tokens, dtype=torch.bool, device=self.device)
        return self.ids[:, 1] - self.ids[:, 0] > 1

    def per_token(self, values: Shaped[Tensor, "S *rest"]) -> Shaped[Tensor, "N *rest"]:
        """What belongs to each span, for each of its tokens."""
        return values if len(set(self.counts)) == 1 and self.counts[0] == 1 else values[self.of]

    def split(self, values: Shaped[Tensor, "N *rest"]) -> list[Tensor]:
        """What belongs to each token, span by span."""
        return list(values.split(self.counts))

    def maps(self, rows: Shaped[Tensor, "N C2"]) -> list[Shaped[Tensor, "*grid C"]]:
        """Values at the tokens, span by span, as samples have them."""
        return [from_patches(own, size, self.patch) for own, size in zip(self.split(rows), self.sizes, strict=True)]

    def normal(self, *shape: int, generator: Generator | None = None) -> Float[Tensor, "N *shape"]:
        """Normal random numbers for each token, in float32: of each span from its own source, or all of them from ``generator``."""
        if not self.generators:
            return torch.randn(self.num_tokens, *shape, generator=generator, device=self.device)
        own = zip(self.counts, self.generators, strict=True)
        return torch.cat([torch.randn(count, *shape, generator=source, device=self.device) for count, source in own])

    def ranks(self, numbers: Float[Tensor, " N"]) -> Int[Tensor, " N"]:
        """How many tokens of its span have a smaller number than each token."""
        of = self.of
        by_number = torch.sort(numbers, stable=True).indices
        order = by_number[torch.sort(of[by_number], stable=True).indices]
        counts = torch.tensor(self.counts, dtype=torch.long, device=self.device)
        before = counts.cumsum(0) - counts
        ranks = torch.empty_like(of)
        ranks[order] = torch.arange(self.num_tokens, device=self.device) - before[of]
        return ranks

    def mean(self, losses: Float[Tensor, " K"], chosen: Bool[Tensor, " N"]) -> Float[Tensor, " S"]:
        """The mean over the chosen tokens of each span, of one number for each of them."""
        of = self.of[chosen]
        total = losses.new_zeros(self.num_spans).index_add(0, of, losses)
        return total / torch.bincount(of, minlength=self.num_spans)

    def fills(self, count: int) -> bool:
        """Whether the spans are all that stands in rows of so many tokens together."""
        return self.num_tokens == count

    def rows(self) -> Tensor:
        """The values, one row a token.

        Raises:
            ValueError: none, or whole ones.
        """
        if not isinstance(self.values, Tensor):
            raise ValueError("the spans hold no values row by row; accepted: spans that are learned, of a layout that is not whole")
        return self.values

    def repeated(self, count: int, length: int) -> "Spans":
        """The spans of a row of so many tokens in ``count`` such rows, without values and without what is given of them."""

        def places(places: Tensor) -> Tensor:
            return (places + torch.arange(count, device=places.device)[:, None] * length).flatten()

        return self._replace(
            sizes=self.sizes * count,
            counts=self.counts * count,
            grid=self.grid.repeat(count, 1),
            places=places(self.places),
            leads=places(self.leads),
            states=places(self.states),
            values=None,
            given={},
            weight=None,
            continues=tuple(row for row in range(count) for _ in self.counts),
        )

    def to(self, device: torch.device | str) -> "Spans":
        """The spans on another device."""
        values = self.values
        moved = (
            [value.to(device) for value in values] if isinstance(values, list) else None if values is None else values.to(device)
        )
        return self._replace(
            grid=self.grid.to(device),
            places=self.places.to(device),
            leads=self.leads.to(device),
            states=self.states.to(device),
            values=moved,
            given={name: value.to(device) for name, value in self.given.items()},
            weight=None if self.weight is None else self.weight.to(device),
            ids=None if self.ids is None else self.ids.to(device),
        )


NO_CONDITION = -1
"""Of a token that layers are told nothing of."""


class Conditions(NamedTuple):
    """What layers are told of some tokens beside their embeddings, such as a time or a class.

    Attributes:
        vectors: the conditions.
        of: which of them each token has; -1 for a token without one. Of K columns, where K divides L, each stands for a run of
            L / K tokens: (B, 1) is one for a whole row.

    Examples:
        >>> import torch
        >>> from mmblocks.sequence import Conditions
        >>> conditions = Conditions(torch.randn(1, 8), torch.tensor([[-1, 0, 0]]))  # two tokens of one span after a word
        >>> (conditions.of >= 0).tolist()
        [[False, True, True]]
    """

    vectors: Float[Tensor, "M C"]
    of: Int[Tensor, "B K"]

    def of_each(self, length: int) -> "Conditions":
        """The same with an entry for each of L tokens."""
        return self._replace(of=self.of.repeat_interleave(length // self.of.shape[1], dim=1))


class Reading(NamedTuple):
    """What the trunk reads at the tokens of some spans.

    Attributes:
        values: what the spans' embedder reads, one row a token: noised vectors, or ids with hidden ones; None for nothing. An
            embedder of images is handed each span's rows as one map of vectors.
        added: added to what the embedder makes of them, or all that is read where ``values`` is None.
        alone: True where ``added`` takes the place of what the embedder makes; None for nowhere.
        leads: what is read at the head's own tokens, span by span.
        condition: what layers are told, one vector a span.
        unknown: True where nothing is known of a token, for trunks that read what is known first.
        learned: what the head's ``loss`` needs beside; of the head's own kind.

    Examples:
        >>> import torch
        >>> from mmblocks.sequence import Reading
        >>> reading = Reading(values=torch.randn(6, 4), added=torch.randn(6, 16))  # noised latents, and their time
        >>> reading.condition is None
        True
    """

    values: Tensor | None = None
    added: Float[Tensor, "N D"] | None = None
    alone: Bool[Tensor, " N"] | None = None
    leads: Float[Tensor, "M D"] | None = None
    condition: Float[Tensor, "S C"] | None = None
    unknown: Bool[Tensor, " N"] | None = None
    learned: Any = None  # a head's own


class Pass(NamedTuple):
    """One pass of the trunk over spans that are being written.

    Attributes:
        reading: what it reads.
        keep: whether it stays in the cache; otherwise it is forgotten, and the finished span is read anew.
        part: which tokens of each span are read, (first, stop); all of them if None.
        shown: the values as they look now, for a picture of the progress; None where there is nothing to look at.
        mask: which tokens attend to which in this pass, in place of the model's rule.

    Examples:
        >>> import torch
        >>> from mmblocks.sequence import Pass, Reading
        >>> Pass(Reading(added=torch.zeros(4, 8))).keep
        False
    """

    reading: Reading
    keep: bool = False
    part: tuple[int, int] | None = None
    shown: Tensor | list[Tensor] | None = None
    mask: MaskRule | None = None
