"""Next-scale prediction in a row of other tokens: a picture as grids of codes from coarse to fine, each written in one pass.

Shapes: N tokens of all spans, S spans of L tokens each, n of a part, G streams, D width of the trunk, C width of a code, K codes.
"""

from collections.abc import Generator as Coroutine
from collections.abc import Sequence
from typing import Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from mmblocks.block import Block
from mmblocks.layers.categorical import Sampling, sample_ids
from mmblocks.layers.diffusion.adaln import ModulatedLinear
from mmblocks.layers.losses.vocabulary_losses import vocabulary_losses
from mmblocks.roles import check_role
from mmblocks.sequence.spans import Guide, Pass, Reading, SpanLayout, Spans
from mmblocks.support.checks import check_range, check_shape


@runtime_checkable
class ScaleCodes(Protocol):
    """What the head needs of a tokenizer's bottleneck, such as ``MultiScaleQuantizer``."""

    scales: tuple[tuple[int, int], ...]
    codes: Tensor

    def next_scale_inputs(self, ids: Int[Tensor, "B L"]) -> Float[Tensor, "B L2 C"]:
        """For every scale but the first the map of the scales before it, at its size."""
        ...

    def vectors(self, ids: Int[Tensor, "*N"]) -> Float[Tensor, "*N C"]:
        """Codes by index."""
        ...

    def add_scale(
        self, total: Float[Tensor, "B H W C"] | None, vectors: Float[Tensor, "B h w C"], number: int
    ) -> tuple[Float[Tensor, "B H W C"], Float[Tensor, "B h2 w2 C"]]:
        """The map so far with the codes of a scale added, and what is read to predict the next scale."""
        ...


class NextScaleHead(Block):
    """Predicts the codes of each scale from the map of all scales before it; what is read of scales stays in the row.

    Values of a span are the codes of all scales, coarse first, as ``MultiScaleQuantizer`` numbers them.

    Args:
        dim: D.
        quantizer: the tokenizer's bottleneck, which learns nothing here.
        num_classes: classes, for pictures of one: it is read at the first scale and is the layers' condition, with one more vector
            for none. None: what stands before the span says all, and states are not modulated.
        class_name: what samples and ``Spans.given`` call the class.
        label_dropout: how often a class is left out while training.
        temperature, top_k, top_p: how codes are sampled; see ``Sampling``.

    Raises:
        TypeError: a quantizer without scales.

    Source: VAR (arXiv 2404.02905; FoundationVision/VAR). Its guidance grows from 0 at the first scale to its whole strength.

    Examples:
        >>> import torch
        >>> from mmblocks.heads import NextScaleHead
        >>> from mmblocks.sequence import Spans
        >>> from mmblocks.tokenizers.bottlenecks.multi_scale import MultiScaleQuantizer
        >>> head = NextScaleHead(dim=32, quantizer=MultiScaleQuantizer(dim=4, num_codes=16, scales=(1, 2, 3)))
        >>> head.span.count(()), head.span.context
        (14, 'read')
        >>> places, grid = torch.arange(14), torch.zeros(14, 3, dtype=torch.long)
        >>> spans = Spans("codes", ((14,),), (14,), grid, places, places[:0], places, torch.randint(16, (14,)), {}, None)
        >>> reading = head.corrupt(spans)
        >>> tuple(reading.added.shape), tuple(head.loss(torch.randn(14, 32), spans, reading).shape)
        ((14, 32), (14,))
    """

    def __init__(
        self,
        *,
        dim: int,
        quantizer: Block,
        num_classes: int | None = None,
        class_name: str = "label",
        label_dropout: float = 0.1,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> None:
        super().__init__()
        check_role(quantizer, ScaleCodes, "quantizer", "next_scale_inputs", "vectors", "add_scale")
        self.quantizer = cast(ScaleCodes, quantizer)
        self.scales = tuple((rows, columns) for rows, columns in self.quantizer.scales)
        self.counts = [rows * columns for rows, columns in self.scales]
        self.num_codes, code_dim = self.quantizer.codes.shape
        self.num_classes, self.class_name, self.label_dropout = num_classes, class_name, label_dropout
        self.sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
        self.span = SpanLayout(writes="ids", context="read", scales=self.scales)
        self.embed = nn.Linear(code_dim, dim)
        self.start = nn.Parameter(torch.empty(self.counts[0], dim))
        self.positions = nn.Parameter(torch.empty(sum(self.counts), dim))
        self.levels = nn.Embedding(len(self.scales), dim)
        self.classes = None if num_classes is None else nn.Embedding(num_classes + 1, dim)
        self.output = nn.Linear(dim, self.num_codes) if num_classes is None else ModulatedLinear(dim, dim, self.num_codes)
        for weight in (self.start, self.positions, self.levels.weight, *([] if self.classes is None else [self.classes.weight])):
            nn.init.trunc_normal_(weight, std=(1 / dim / 3) ** 0.5)

    def corrupt(self, spans: Spans, *, drop: Bool[Tensor, " S"] | None = None, generator: Generator | None = None) -> Reading:
        """What is read of true codes.

        Args:
            spans: what is learned.
            drop: spans whose class is left out; while training sampled with ``label_dropout`` if None.
            generator: source of randomness.

        Raises:
            ValueError: spans of another size, codes or classes that do not exist (checked on CPU), or spans without a class.
        """
        ids = self._ids(spans)
        condition = self._condition(spans, drop, generator)
        with torch.no_grad():
            inputs = self.quantizer.next_scale_inputs(ids)
        first = self._first(condition).expand(len(ids), -1, -1)
        tokens = torch.cat([first, self.embed(inputs.to(self.start.dtype)) + self._places()[self.counts[0] :]], dim=1)
        return Reading(added=tokens.flatten(0, 1), condition=condition)

    def finished(self, spans: Spans) -> Reading:
        """What was read while the spans were written; without a class where none is given."""
        if self.num_classes is not None and self.class_name not in spans.given:
            none = torch.full((spans.num_spans,), self.num_classes, device=spans.device)
            spans = spans._replace(given={**spans.given, self.class_name: none})
        return self.corrupt(spans, drop=torch.zeros(spans.num_spans, dtype=torch.bool, device=spans.device))

    def loss(self, hidden: Float[Tensor, "N D"], spans: Spans, reading: Reading) -> Float[Tensor, " N"]:
        """Cross entropy of every token, in float32."""
        states = hidden
        if isinstance(self.output, ModulatedLinear) and reading.condition is not None:
            by_span = hidden.unflatten(0, (spans.num_spans, sum(self.counts)))
            states = self.output.modulated(by_span, reading.condition[:, None]).flatten(0, 1)
        codes = self.output.linear if isinstance(self.output, ModulatedLinear) else self.output
        return vocabulary_losses(states, codes.weight, self._ids(spans).flatten(), codes.bias)

    def write(
        self, spans: Spans, *, guide: Guide, generator: Generator | None = None
    ) -> Coroutine[Pass, Float[Tensor, "G n D"], Int[Tensor, " N"]]:
        """The codes of all scales, a pass each; classes may be given for each stream."""
        self._check_counts(spans)
        condition = self._condition(spans, None, None, written=True)
        places = self._places().split(self.counts)
        tokens, total, first = self._first(condition), None, 0
        tokens = tokens if len(tokens) > 1 else tokens.expand(spans.num_spans, -1, -1)
        made: list[Tensor] = []
        for step, (size, count) in enumerate(zip(self.scales, self.counts, strict=True)):
            reading = Reading(added=tokens.flatten(0, 1), condition=condition)
            states = yield Pass(reading, keep=True, part=(first, first + count))
            share = step / max(len(self.scales) - 1, 1)
            logits = guide(self._logits(states, condition, count), strength=share)
            rows = logits.unflatten(0, (spans.num_spans, count))
            sources = spans.generators or (generator,) * spans.num_spans
            ids = torch.stack([sample_ids(row, self.sampling, generator=source) for row, source in zip(rows, sources, strict=True)])
            made.append(ids)
            total, following = self.quantizer.add_scale(total, self.quantizer.vectors(ids).unflatten(1, size), step)
            if step + 1 < len(self.scales):
                tokens = self.embed(following.flatten(1, 2).to(self.start.dtype)) + places[step + 1]
            first += count
        return torch.cat(made, dim=1).flatten()

    def _logits(self, states: Float[Tensor, "G N D"], condition: Tensor | None, count: int) -> Float[Tensor, "G N K"]:
        if not isinstance(self.output, ModulatedLinear) or condition is None:
            logits: Tensor = self.output(states)
            return logits.float()
        by_span = states.unflatten(1, (-1, count))
        own = condition.view(-1, by_span.shape[1], 1, condition.shape[-1])
        return self.output(by_span, own).flatten(1, 2).float()

    def _first(self, condition: Float[Tensor, "S D"] | None) -> Float[Tensor, "_ n D"]:
        """What is read at the first scale."""
        tokens = (self.start + self._places()[: self.counts[0]])[None]
        return tokens if condition is None else tokens + condition[:, None]

    def _places(self) -> Float[Tensor, "L D"]:
        counts: Sequence[int] = self.counts
        return self.positions + torch.cat([self.levels.weight[index].expand(count, -1) for index, count in enumerate(counts)])

    def _ids(self, spans: Spans) -> Int[Tensor, "S L"]:
        self._check_counts(spans)
        ids = spans.rows()
        check_range("ids", ids, self.num_codes)
        return ids.view(spans.num_spans, sum(self.counts))

    def _check_counts(self, spans: Spans) -> None:
        if set(spans.counts) - {sum(self.counts)}:
            raise ValueError(f"spans have {spans.counts} tokens; accepted: {sum(self.counts)}, those of scales {self.scales}")

    def _condition(
        self, spans: Spans, drop: Tensor | None, generator: Generator | None, written: bool = False
    ) -> Float[Tensor, "_ D"] | None:
        """The vectors of classes; while spans are written one for each, or one for each of every stream."""
        if self.classes is None or self.num_classes is None:
            return None
        if self.class_name not in spans.given:
            raise ValueError(f"spans are given {list(spans.given)}; accepted: {self.class_name!r} among them, a class for each")
        labels = spans.given[self.class_name]
        if labels.ndim != 1 or len(labels) % max(spans.num_spans, 1) or (not written and len(labels) != spans.num_spans):
            check_shape(self.class_name, labels, spans.num_spans)
            raise ValueError(f"{self.class_name} has {len(labels)} entries; accepted: {spans.num_spans} for each stream")
        if drop is None and self.training and not written:
            drop = torch.rand(len(labels), generator=generator, device=labels.device) < self.label_dropout
        if drop is not None:
            labels = torch.where(drop, self.num_classes, labels)
        check_range(self.class_name, labels, self.num_classes + 1, ", the last for no class")
        return self.classes(labels)
