"""Next-scale prediction in a row of other tokens: a picture as grids of codes from coarse to fine, each written in one pass.

Shapes: N tokens of all spans, S spans of L tokens each, n of a part, G streams, D width of the trunk, C width of a code, K codes.
"""

from collections.abc import Generator as Coroutine
from typing import ClassVar, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.heads.scale_sampling import ScaleQuantizer, ScaleSampler
from mmblocks.heads.scale_tokens import ScaleTokens
from mmblocks.layers.categorical import Sampling
from mmblocks.roles import check_role
from mmblocks.sequence.spans import Guide, Pass, Reading, SpanLayout, Spans
from mmblocks.support.checks import check_range, check_shape


@runtime_checkable
class ScaleCodes(ScaleQuantizer, Protocol):
    """What the head needs of a tokenizer's bottleneck, such as ``MultiScaleQuantizer``."""

    scales: tuple[tuple[int, int], ...]
    codes: Tensor

    def next_scale_inputs(self, ids: Int[Tensor, "B L"]) -> Float[Tensor, "B L2 C"]:
        """For every scale but the first the map of the scales before it, at its size."""
        ...


def former_scale_tokens() -> tuple[Rule, ...]:
    """Names that ``ScaleTokens`` had where a head or a model had its tensors itself."""
    names = ("embed.*", "levels.*", "classes.*", "output.*", "start", "positions")
    return tuple(Rule(name, f"tokens.{name}") for name in names)


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
        smooth: read mixtures of codes while writing; see ``ScaleSampler``.
        tokens: what is read and predicted, of a model that has it; then ``num_classes`` and ``label_dropout`` say nothing.

    Raises:
        TypeError: a quantizer without scales.
        ValueError: tokens of other codes or scales than the quantizer's.

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

    former: ClassVar[Layout | None] = Layout("next scale until version 0.2", former_scale_tokens())

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
        smooth: bool = False,
        tokens: ScaleTokens | None = None,
    ) -> None:
        super().__init__()
        check_role(quantizer, ScaleCodes, "quantizer", "next_scale_inputs", "vectors", "mix", "add_scale")
        self.quantizer, self.class_name, self.smooth = cast(ScaleCodes, quantizer), class_name, smooth
        self.sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
        num_codes, code_dim = self.quantizer.codes.shape
        scales = self.quantizer.scales
        if tokens is None:
            tokens = ScaleTokens(
                dim=dim,
                num_codes=num_codes,
                code_dim=code_dim,
                scales=scales,
                num_classes=num_classes,
                label_dropout=label_dropout,
            )
        ours, theirs = (tokens.num_codes, tokens.code_dim, tokens.scales), (num_codes, code_dim, scales)
        if ours != theirs:
            raise ValueError(f"tokens has (codes, width, scales) {ours}; accepted: the quantizer's, {theirs}")
        self.tokens = tokens

    @property
    def span(self) -> SpanLayout:
        """How its spans stand in a row."""
        return self.tokens.span

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
        if self.tokens.classes is not None and drop is None:
            drop = self.tokens.sample_drop(spans.num_spans, spans.device, generator)
        condition = self._condition(spans, drop)
        with torch.no_grad():
            maps = self.quantizer.next_scale_inputs(ids)
        return Reading(added=self.tokens(maps, condition).flatten(0, 1), condition=condition)

    def finished(self, spans: Spans) -> Reading:
        """What was read while the spans were written; without a class where none is given."""
        classes = self.tokens.num_classes
        if classes is not None and self.class_name not in spans.given:
            none = torch.full((spans.num_spans,), classes, device=spans.device)
            spans = spans._replace(given={**spans.given, self.class_name: none})
        return self.corrupt(spans, drop=torch.zeros(spans.num_spans, dtype=torch.bool, device=spans.device))

    def loss(self, hidden: Float[Tensor, "N D"], spans: Spans, reading: Reading) -> Float[Tensor, " N"]:
        """Cross entropy of every token, in float32."""
        states = hidden.unflatten(0, (spans.num_spans, self.tokens.num_tokens))
        return self.tokens.losses(states, self._ids(spans), reading.condition).flatten()

    def write(
        self, spans: Spans, *, guide: Guide, generator: Generator | None = None
    ) -> Coroutine[Pass, Float[Tensor, "G n D"], Int[Tensor, " N"]]:
        """The codes of all scales, a pass each; classes may be given for each stream."""
        self._check_counts(spans)
        choose = ScaleSampler(
            quantizer=self.quantizer,
            sampling=self.sampling,
            sources=spans.generators or (generator,),
            smooth=self.smooth,
            dtype=self.tokens.start.dtype,
        )
        condition = self._condition(spans, None, written=True)
        ids, _ = yield from self.tokens.write(self.quantizer, spans.num_spans, condition, guide, choose)
        return ids.flatten()

    def _ids(self, spans: Spans) -> Int[Tensor, "S L"]:
        self._check_counts(spans)
        ids = spans.rows()
        check_range("ids", ids, self.tokens.num_codes)
        return ids.view(spans.num_spans, self.tokens.num_tokens)

    def _check_counts(self, spans: Spans) -> None:
        if set(spans.counts) - {self.tokens.num_tokens}:
            accepted = f"{self.tokens.num_tokens}, those of scales {self.tokens.scales}"
            raise ValueError(f"spans have {spans.counts} tokens; accepted: {accepted}")

    def _condition(self, spans: Spans, drop: Tensor | None, written: bool = False) -> Float[Tensor, "_ D"] | None:
        """The vectors of classes; while spans are written one for each, or one for each of every stream."""
        if self.tokens.classes is None:
            return None
        if self.class_name not in spans.given:
            raise ValueError(f"spans are given {list(spans.given)}; accepted: {self.class_name!r} among them, a class for each")
        labels = spans.given[self.class_name]
        if labels.ndim != 1 or len(labels) % max(spans.num_spans, 1) or (not written and len(labels) != spans.num_spans):
            check_shape(self.class_name, labels, spans.num_spans)
            raise ValueError(f"{self.class_name} has {len(labels)} entries; accepted: {spans.num_spans} for each stream")
        return self.tokens.condition(labels, name=self.class_name, drop=drop)
