"""Samples to batches: rows of tokens with their table, what is to be embedded where, and what is to be learned where.

Shapes: B rows, L tokens of the longest row, N tokens (of one input or target) in all.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from PIL.Image import Image as PILImage
from torch import Tensor

from mmblocks.sequence.masks import Dense, Intervals, Mask, lower
from mmblocks.sequence.pieces import Piece, span_pieces
from mmblocks.sequence.rows import Laid, Placed, Pooled, fill_rows, lay_out, placed_inputs, placed_labels, placed_spans, table_of
from mmblocks.sequence.segments import Image, Label, Segment, Vectors
from mmblocks.sequence.spans import SpanLayout, Spans
from mmblocks.sequence.tokens import ImageLayout, ImageLayoutRule, TokenTable
from mmblocks.support.named import Named
from mmblocks.support.pickling import weightless
from mmblocks.vocabulary.text_tokenizers import TextTokenizer

Sample = Sequence[Segment]
"""One document: segments in reading order."""

NOTHING: dict[Any, Any] = {}
"""What a batch has none of; never written to. A batch goes from worker to model, and a read-only mapping could not."""

NUM_REMEMBERED = 128
"""Sizes of images of which a builder remembers the layouts."""


class Batch(NamedTuple):
    """What ``MultimodalModel`` reads.

    Attributes:
        ids: token ids, ``NO_ID`` where a token has none.
        table: what each token is.
        inputs: by embedder name, what it embeds and where the result goes.
        targets: by head name, labels, and the hidden states they supervise.
        mask: which tokens attend to which, lowered on the host; None to let the trunk decide.
        weights: by head name, a factor of the loss of each label; heads whose labels all count alike are left out.
        pooled: by head name, labels, and the tokens whose mean state they supervise.
        spans: by name of a head of whole spans, those that are learned.
        copies: likewise, spans that are read clean.
        beside: by keyword, what the trunk takes beside its tokens, such as images for cross-attention.

    Examples:
        >>> from mmblocks import BatchBuilder, text
        >>> batch = BatchBuilder(heads=("lm",))([[text([1, 2]), text([3, 4], target="lm")]])
        >>> batch.ids.tolist(), batch.targets["lm"].values.tolist()
        ([[1, 2, 3, 4]], [3, 4])
    """

    ids: Int[Tensor, "B L"]
    table: TokenTable
    inputs: dict[str, Placed]
    targets: dict[str, Placed]
    mask: Mask | None
    weights: Mapping[str, Tensor] = NOTHING
    pooled: Mapping[str, Pooled] = NOTHING
    spans: Mapping[str, Spans] = NOTHING
    copies: Mapping[str, Spans] = NOTHING
    beside: Mapping[str, Tensor] = NOTHING

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on another device."""
        return self._replace(
            ids=self.ids.to(device),
            table=self.table.to(device),
            inputs={name: placed.to(device) for name, placed in self.inputs.items()},
            targets={name: placed.to(device) for name, placed in self.targets.items()},
            weights={name: weight.to(device) for name, weight in self.weights.items()},
            pooled={name: pooled.to(device) for name, pooled in self.pooled.items()},
            spans={name: spans.to(device) for name, spans in self.spans.items()},
            copies={name: spans.to(device) for name, spans in self.copies.items()},
            beside={name: value.to(device) for name, value in self.beside.items()},
            mask=_moved(self.mask, device),
        )


def _moved(mask: Mask | None, device: torch.device | str) -> Mask | None:
    match mask:
        case Intervals():
            return Intervals(mask.start.to(device), mask.end.to(device))
        case Dense():
            return Dense(mask.visible.to(device))
    return mask


@runtime_checkable
class _HasLayout(Protocol):
    """An embedder of images."""

    def layout(self, height: int, width: int) -> ImageLayout: ...


@runtime_checkable
class _Preprocesses(Protocol):
    """A part that makes its pixels of a picture."""

    def preprocess(self, image: PILImage) -> Tensor: ...


@runtime_checkable
class _WritesSpans(Protocol):
    """A head of whole spans."""

    @property
    def span(self) -> SpanLayout: ...


class BatchBuilder:
    """Lays samples out in rows.

    Args:
        tokenizer: turns strings into ids; not needed where samples hold ids only.
        inputs: the model's embedders by name; those that read images have a ``layout``.
        heads: the model's heads by name, in the model's order; names alone where none writes whole spans.

    A builder may be handed to other processes, the workers of a ``DataLoader`` among them, however they are started: it is written
    with its embedders' rules for layouts and pictures, without weights; see ``weightless``.

        DataLoader(samples, batch_size=8, collate_fn=model.batch_builder(tokenizer), num_workers=4)

    Examples:
        >>> from mmblocks import BatchBuilder, text
        >>> builder = BatchBuilder()
        >>> samples = [[text([1, 2, 3])], [text([4])], [text([5, 6])]]
        >>> builder(samples, padding="left").ids.tolist()
        [[1, 2, 3], [-1, -1, 4], [-1, 5, 6]]
        >>> builder(samples, pack=4).table.document.tolist()
        [[0, 0, 0, 1], [0, 0, -1, -1]]
    """

    def __init__(
        self,
        *,
        tokenizer: TextTokenizer | None = None,
        inputs: Named[object] | None = None,
        heads: Sequence[str] | Named[object] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.heads = tuple(heads)
        writers = {} if isinstance(heads, Sequence) else {name: heads[name] for name in heads}
        self.spans = {name: head.span for name, head in writers.items() if isinstance(head, _WritesSpans)}
        self.input_names = None if inputs is None else tuple(inputs)
        embedders = {} if inputs is None else {name: inputs[name] for name in inputs}
        self.layouts: dict[str, ImageLayoutRule] = {
            name: _Remembered(embedder.layout) for name, embedder in embedders.items() if isinstance(embedder, _HasLayout)
        }
        readers = {**embedders, **writers}
        self.preprocess = {name: weightless(part.preprocess) for name, part in readers.items() if isinstance(part, _Preprocesses)}

    def __call__(
        self,
        samples: Sequence[Sample],
        *,
        padding: Literal["left", "right"] = "right",
        pack: int | None = None,
        learn: bool = True,
    ) -> Batch:
        """One sample a row, or several.

        Args:
            samples: documents.
            padding: the side on which shorter rows are filled up; "left" for prompts that are to be continued.
            pack: rows of at most so many tokens, filled with whole samples in the order given; None for one a row.
            learn: whether targets are learned; False for prompts, where all is read as it is.

        Raises:
            ValueError: no samples, an empty sample, an unknown input or head, or a sample longer than ``pack``.
        """
        if padding not in ("left", "right"):
            raise ValueError(f"padding is {padding!r}; accepted: 'left', 'right'")
        if not samples:
            raise ValueError("samples is empty; accepted: at least one")
        documents = [self._pieces(sample, index, learn) for index, sample in enumerate(samples)]
        rows = [[document] for document in documents] if pack is None else fill_rows(documents, pack)
        lengths = [sum(piece.num_tokens for document in row for piece in document) for row in rows]
        length = max(lengths)
        if not length:
            raise ValueError("no sample holds a token; accepted: at least one token, and in each sample that is learned")
        laid: list[Laid] = []
        for index, row in enumerate(rows):
            laid += lay_out(row, index * length + (length - lengths[index] if padding == "left" else 0))
        return self._assemble(laid, len(rows), length)

    def _pieces(self, sample: Sample, index: int, learn: bool) -> list[Piece]:
        pieces: list[Piece] = []
        for place, segment in enumerate(sample):
            self._check(segment, index)
            if isinstance(segment, Label):
                if not pieces:
                    raise ValueError(f"sample {index} has a label before any token; accepted: after what it is a label of")
                pieces += [segment.piece()] if learn else []
                continue
            ready = segment.prepared(self.preprocess) if isinstance(segment, Image) else segment
            piece = ready.piece(self.tokenizer, self.layouts)
            layout = None if segment.target is None else self.spans.get(segment.target)
            if layout is not None:
                self._check_learner(segment.target, layout)
                followed = any(not isinstance(later, Label) for later in sample[place + 1 :])
                # What has a clean form and counts for nothing is read in it, and noised for nobody.
                learned = learn and (segment.weight > 0 or layout.context != "clean")
                pieces += span_pieces(piece, layout, learn=learned, followed=followed)
            elif piece.num_tokens:
                pieces.append(piece if learn else piece._replace(target=None))
        if learn and not any(piece.num_tokens for piece in pieces):
            raise ValueError(f"sample {index} holds no token; accepted: at least one")
        return pieces

    def _assemble(self, laid: list[Laid], num_rows: int, length: int) -> Batch:
        """All pieces at once, column by column: a handful of tensor operations, however many pieces there are."""
        ids, table, places, before, learned = table_of(laid, num_rows, length, self.heads)
        targets, weights, pooled = placed_labels(laid, before, learned)
        return Batch(
            ids,
            table,
            placed_inputs(laid, places),
            targets,
            None if _has_noised(laid) else lower(table),  # every pair is computed where the trunk is, not in a data loader
            weights,
            pooled,
            placed_spans(laid, copies=False),
            placed_spans(laid, copies=True),
        )

    def _check_learner(self, name: str | None, layout: SpanLayout) -> None:
        if layout.learner is not None and (layout.learner not in self.heads or layout.learner in self.spans):
            accepted = [head for head in self.heads if head not in self.spans]
            raise ValueError(f"the clean copies of head {name!r} are learned by {layout.learner!r}; accepted: of {accepted}")

    def _check(self, segment: Segment, index: int) -> None:
        reads_pixels = isinstance(segment, Image)
        known = tuple(self.layouts) if reads_pixels else self.input_names
        unread = segment.target is not None and (reads_pixels or isinstance(segment, Label))
        if reads_pixels and unread and segment.target not in self.spans and segment.target in self.heads:
            accepted = f"a head of whole spans, of {list(self.spans)}"
            raise ValueError(f"sample {index} has an image as target of {segment.target!r}; accepted: {accepted}")
        if isinstance(segment, Vectors) and segment.input in self.layouts and segment.target not in (None, *self.spans):
            found = f"sample {index} has vectors as target of {segment.target!r} for input {segment.input!r}, which reads images"
            raise ValueError(f"{found}; accepted: a head of whole spans, of {list(self.spans)}, or an input that reads vectors")
        if known is not None and not unread and segment.input not in known:
            what = "embedders of images" if reads_pixels else "inputs"
            raise ValueError(f"sample {index} has input {segment.input!r}; the model's {what}: {list(known)}")
        if segment.target is not None and segment.target not in self.heads:
            raise ValueError(f"sample {index} has target {segment.target!r}; the model's heads: {list(self.heads)}")


def _has_noised(laid: list[Laid]) -> bool:
    return any(entry.piece.is_noisy for entry in laid)


class _Remembered:
    """A layout rule that remembers the layouts of the last sizes, each process for itself."""

    def __init__(self, rule: ImageLayoutRule) -> None:
        self._rule = weightless(rule)
        self._remember = lru_cache(NUM_REMEMBERED)(rule)

    def __call__(self, *size: int) -> ImageLayout:
        return self._remember(*size)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Remembered, (self._rule,)
