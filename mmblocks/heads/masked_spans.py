"""Masked codes in a row of other tokens: some of a span's codes are hidden, or replaced at random, and found where they stand.

Shapes: N tokens of all spans, S spans of L tokens, G streams, D width of the trunk, V codes.
"""

from collections.abc import Generator as Coroutine
from collections.abc import Sequence
from typing import Literal, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from mmblocks.block import Block
from mmblocks.layers.diffusion.masked_tokens import ConfidenceSampler, masked_share
from mmblocks.layers.losses.row_losses import check_shape
from mmblocks.roles import check_role
from mmblocks.sequence.spans import Guide, Pass, Reading, SpanLayout, Spans
from mmblocks.support.checks import check_range


@runtime_checkable
class CodeHead(Protocol):
    """A head over ids, as masked codes need it."""

    vocab_size: int

    def logits(self, hidden: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """(N, D) -> float32 logits of the ids ``start:stop``."""
        ...

    def loss(self, hidden: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """One loss per row."""
        ...


@runtime_checkable
class _LaterIds(Protocol):
    """A head whose own first id is another one of the vocabulary, such as ``ModalityLMHead``."""

    first: int


class MaskedCodesHead(Block):
    """Hides a random share of the codes of each span and learns them where they stand; writes all of a span in a few passes.

    Spans may be images of codes, and text: discrete diffusion over both. Row ends and other ids between the codes are given, and no
    ids but those of the format are written.

    A model that writes codes one by one goes on learning so where ``learner`` names its head, and learns besides to write whole
    images: with ``predicts="next"`` and that same head inside, it begins where the trained model is. This is our own design after
    the idea of Emu3.5's DiDA, of which neither code nor weights are public.

    Args:
        head: over the codes alone, such as ``LMHead``, or over a whole vocabulary, in which the codes are ids (Show-o).
        mask_id: what the spans' embedder reads where a code is hidden (absorbing noise); None where it reads a random code there
            (uniform noise): which codes are wrong must be found too, and all of a span are learned.
        first: id of the first code, as samples and the embedder have it.
        num_codes: V; as many as ``head`` has ids if None.
        schedule: how a uniform number becomes the share that is hidden; see ``masked_share``.
        sampler: how spans are found; ``ConfidenceSampler()`` if None.
        context: see ``SpanLayout``; with "read" the tokens after a span attend to it as it was hidden.
        predicts: whether a code is predicted by its "own" state, or as the "next" one by the state before it; the id before the
            first code is then read once more with the span, so that its state attends to the codes too.
        learner: name of a head that learns the clean copy token by token; see ``SpanLayout``.

    Raises:
        TypeError: a head without logits.
        ValueError: codes that the head does not have, or a mask that is a code; options that do not go together.

    Source: MaskGIT (arXiv 2202.04200), MAGVIT (arXiv 2212.05199), Show-o (arXiv 2408.12528; showlab/Show-o); text and codes: MMaDA
    (arXiv 2505.15809), UniD3 (arXiv 2211.14842), whose noise may be uniform; beside codes one by one: Emu3.5 (arXiv 2510.26583).

    Examples:
        >>> import torch
        >>> from mmblocks import Decoder, Generation, LMHead, MultimodalModel, TextEmbedding, codes, text
        >>> from mmblocks.generation import VectorBlock, VectorGrammar
        >>> from mmblocks.heads import MaskedCodesHead
        >>> from mmblocks.layers.diffusion.masked_tokens import ConfidenceSampler
        >>> head = MaskedCodesHead(head=LMHead(dim=32, vocab_size=9), mask_id=9, sampler=ConfidenceSampler(num_steps=3))
        >>> model = MultimodalModel(
        ...     inputs={"text": TextEmbedding(vocab_size=16, dim=32), "codes": TextEmbedding(vocab_size=10, dim=32)},
        ...     trunk=Decoder(dim=32, num_layers=1, num_heads=4, mlp_dim=64),
        ...     outputs={"image": head},
        ... )
        >>> picture = codes(torch.randint(9, (2, 3)), input="codes", target="image")
        >>> model(model.batch_builder()([[text([1, 7]), picture]])).token_losses["image"].shape  # one loss a span
        torch.Size([1])
        >>> block = VectorBlock(begin=7, end=None, size=(2, 3), head="image", input="codes", whole=True)
        >>> ((row, made),) = model.generate([[text([1, 7])]], VectorGrammar(block, vocab_size=16), Generation(generator=0))
        >>> tuple(made.grid.shape), int(made.grid.max()) < 9
        ((2, 3), True)
    """

    def __init__(
        self,
        *,
        head: Block,
        mask_id: int | None,
        first: int = 0,
        num_codes: int | None = None,
        schedule: str = "cosine",
        sampler: ConfidenceSampler | None = None,
        context: Literal["clean", "read"] = "clean",
        predicts: Literal["own", "next"] = "own",
        learner: str | None = None,
    ) -> None:
        super().__init__()
        check_role(head, CodeHead, "head")
        self.head = cast(CodeHead, head)
        size = self.head.vocab_size
        self.first, self.mask_id, self.schedule = first, mask_id, schedule
        self.num_codes = size if num_codes is None else num_codes
        lowest = head.first if isinstance(head, _LaterIds) else 0
        # A head over the codes alone counts them from 0, or has their own ids.
        self.offset = 0 if size == self.num_codes else first - lowest
        self.first_target = self.offset + lowest
        if first < 0 or self.num_codes < 1 or self.offset < 0 or self.offset + self.num_codes > size:
            accepted = f"ids of the head, {lowest} to {lowest + size - 1}"
            raise ValueError(f"codes are {first} to {first + self.num_codes - 1}; accepted: {accepted}")
        if mask_id is not None and first <= mask_id < first + self.num_codes:
            raise ValueError(f"mask_id is {mask_id}, a code; accepted: another id than {first} to {first + self.num_codes - 1}")
        masked_share(schedule, torch.zeros(1, device="cpu"))  # an unknown name is refused here
        self.sampler = sampler or ConfidenceSampler()
        opening = int(predicts == "next")
        self.span = SpanLayout(writes="ids", predicts=predicts, context=context, structure=True, opening=opening, learner=learner)

    def corrupt(
        self,
        spans: Spans,
        *,
        t: Float[Tensor, " S"] | None = None,
        order: Float[Tensor, " N"] | None = None,
        other: Int[Tensor, " N"] | None = None,
        generator: Generator | None = None,
    ) -> Reading:
        """Hides at least one code of each span.

        Args:
            spans: what is learned.
            t: a time in [0, 1] for each span, in place of a random one.
            order: a number in [0, 1] for each token: the smallest of a span are hidden.
            other: ids that stand at hidden places, in place of random ones; for uniform noise alone.
            generator: source of randomness.

        Raises:
            ValueError: times or order of another shape, or ids that are no codes (on CPU).
        """
        ids, written = spans.rows(), spans.written
        check_range("ids", ids[written] - self.first, self.num_codes)
        if t is None:
            t = torch.rand(spans.num_spans, device=ids.device, generator=generator)
        if order is None:
            order = torch.rand(len(ids), device=ids.device, generator=generator)
        check_shape("t", t, (spans.num_spans,))
        check_shape("order", order, (len(ids),))
        of = spans.of
        counts = torch.zeros(spans.num_spans, device=ids.device).index_add(0, of, written.float())
        wanted = (counts * masked_share(self.schedule, t)).round().clamp(min=1)
        hidden = written & (spans.ranks(torch.where(written, order, torch.inf)) < wanted[of])
        if self.mask_id is not None:
            other = torch.full_like(ids, self.mask_id)
        if other is None:
            other = self._random(ids, (generator,))
        check_shape("other", other, tuple(ids.shape))
        learned = written if self.mask_id is None else hidden
        return Reading(values=torch.where(hidden, other, ids), learned=learned)

    def loss(self, hidden: Float[Tensor, "N D"], spans: Spans, reading: Reading) -> Float[Tensor, " S"]:
        """Cross entropy at hidden codes, or at all of them, its mean over those of each span, in float32."""
        chosen = reading.learned
        losses = self.head.loss(hidden[chosen], spans.rows()[chosen] - self.first + self.first_target)
        return spans.mean(losses, chosen)

    def write(
        self, spans: Spans, *, guide: Guide, generator: Generator | None = None
    ) -> Coroutine[Pass, Float[Tensor, "G N D"], Tensor]:
        """All codes, the surest of each pass first. The spans must be of one size.

        Raises:
            ValueError: ids that are no codes of this head.
        """
        shape = (spans.num_spans, spans.counts[0])
        at = spans.written.view(shape)[0].nonzero()[:, 0]
        allowed = self._allowed(spans)
        ids = spans.places.new_zeros(shape) if spans.ids is None else spans.ids[:, 0].view(shape)
        rows = torch.full((len(ids), len(at)), -1, device=spans.device)  # -1 is a hidden code to the sampler
        sources = spans.generators or (generator,)
        steps = self.sampler.stepwise(rows, -1, generator=spans.generators or generator)
        try:
            codes, _ = next(steps)
            while True:
                other = self._random(codes, sources) if self.mask_id is None else torch.full_like(codes, self.mask_id)
                ids = ids.index_copy(1, at, torch.where(codes < 0, other, codes + self.first))
                read = ids.flatten()
                hidden = yield Pass(Reading(values=read), shown=None if bool((codes < 0).all()) else read)
                states = hidden.unflatten(1, shape)[:, :, at].flatten(1, 2)
                logits = self.head.logits(states.flatten(0, 1), self.offset, self.offset + self.num_codes)
                guided = guide(logits.view(*states.shape[:2], -1))
                if allowed is not None:
                    guided = guided.masked_fill(~allowed, float("-inf"))
                codes, _ = steps.send(guided.view(*codes.shape, -1))
        except StopIteration as stop:
            found: Tensor = stop.value
        return ids.index_copy(1, at, found + self.first).flatten()

    def _allowed(self, spans: Spans) -> Bool[Tensor, "n V"] | None:
        """Which codes may stand at each token that is written; None where all may."""
        if spans.ids is None:
            return None
        first, stop = spans.ids[spans.written].T
        lowest, end = int(first.min()), int(stop.max())
        if lowest < self.first or end > self.first + self.num_codes:
            accepted = f"the codes of this head, {self.first} to {self.first + self.num_codes - 1}"
            raise ValueError(f"spans hold ids from {lowest} to {end - 1}; accepted: {accepted}")
        if bool((first == self.first).all()) and bool((stop == self.first + self.num_codes).all()):
            return None
        ids = torch.arange(self.first, self.first + self.num_codes, device=spans.device)
        return (ids >= first[:, None]) & (ids < stop[:, None])

    def _random(self, like: Tensor, sources: Sequence[Generator | None]) -> Tensor:
        """Random ids of codes: of all from one source, or of each row from its own."""
        stop = self.first + self.num_codes
        shape = tuple(like.shape) if len(sources) == 1 else (1, *like.shape[1:])
        drawn = [torch.randint(self.first, stop, shape, device=like.device, generator=source) for source in sources]
        return torch.cat(drawn)
