"""Masked vectors in a row of other tokens: a span's vectors are written in random order, several at a time.

Shapes: N tokens of all spans, S spans of L tokens, G streams, D width of the trunk, C channels of a vector.
"""

from collections.abc import Generator as Coroutine
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from mmblocks.block import Block
from mmblocks.heads.span_parts import ClassTokens, SpanPositions
from mmblocks.layers.diffusion.random_orders import mask_counts, mask_of, sample_orders, sample_share
from mmblocks.layers.losses.row_losses import check_shape, loss_by
from mmblocks.roles import Head, check_role
from mmblocks.sequence.spans import Guide, Pass, Reading, SpanLayout, Spans
from mmblocks.support.checks import check_finite


@runtime_checkable
class _Scaled(Protocol):
    """A guide that says its scales."""

    scales: tuple[float, ...]


class MaskedVectorsHead(Block):
    """Some vectors of a span are read, a learned vector stands for the others, and a head of single tokens predicts those.

    Args:
        head: of single tokens, such as ``MARDiffusionHead``; guidance needs one whose ``sample`` takes ``unconditional`` and
            ``guidance``.
        dim: D.
        num_steps: passes over a span, at most as many as it has vectors; how many are still masked falls as a cosine.
        min_mask_ratio: the smallest share that is masked while training.
        growing_guidance: whether guidance grows with the share that is known, from none at first (MAR).
        context: see ``SpanLayout``; with "read" the tokens after a span attend to it as it was masked.
        told: what stands for a hidden vector: a learned "vector", or nothing, where the "trunk" is told what is unknown, such as a
            ``MaskedAutoencoder``.
        classes: tokens of a class, which are one with the span; the class is ``given={"label": 3}``. None for none.
        positions: of states; None for none.

    Raises:
        TypeError: a head that cannot predict single tokens.
        ValueError: fewer than one step, or a share out of range.

    Source: MAR (arXiv 2406.11838), here in any trunk; Fluid (arXiv 2410.13863) and UniFluid (arXiv 2503.13436) write so too.

    Examples:
        >>> import torch
        >>> from mmblocks import Decoder, Generation, MultimodalModel, TextEmbedding, text, vectors
        >>> from mmblocks.generation import VectorBlock, VectorGrammar
        >>> from mmblocks.heads import MARDiffusionHead, MaskedVectorsHead
        >>> per_token = MARDiffusionHead(dim=32, token_dim=4, width=8, num_blocks=1, steps=2)
        >>> model = MultimodalModel(
        ...     inputs={"text": TextEmbedding(vocab_size=16, dim=32), "latents": torch.nn.Linear(4, 32)},
        ...     trunk=Decoder(dim=32, num_layers=1, num_heads=4, mlp_dim=64),
        ...     outputs={"image": MaskedVectorsHead(head=per_token, dim=32, num_steps=3)},
        ... )
        >>> latents = vectors(torch.randn(2, 3, 4), input="latents", target="image")
        >>> model(model.batch_builder()([[text([1, 7]), latents]])).token_losses["image"].shape  # one loss a span
        torch.Size([1])
        >>> block = VectorBlock(begin=7, end=None, size=(2, 3), head="image", input="latents", whole=True)
        >>> ((row, made),) = model.generate([[text([1, 7])]], VectorGrammar(block, vocab_size=16), Generation(generator=0))
        >>> tuple(made.values.shape)
        (2, 3, 4)
    """

    def __init__(
        self,
        *,
        head: Head,
        dim: int,
        num_steps: int = 64,
        min_mask_ratio: float = 0.7,
        growing_guidance: bool = True,
        context: Literal["clean", "read"] = "clean",
        told: Literal["vector", "trunk"] = "vector",
        classes: ClassTokens | None = None,
        positions: SpanPositions | None = None,
    ) -> None:
        super().__init__()
        check_role(head, Head, "head")
        if num_steps < 1 or not 0 < min_mask_ratio <= 1:
            found = f"num_steps is {num_steps}, min_mask_ratio {min_mask_ratio}"
            raise ValueError(f"{found}; accepted: 1 or more, and above 0 to 1")
        if told not in ("vector", "trunk"):
            raise ValueError(f"told is {told!r}; accepted: 'vector', 'trunk'")
        self.head, self.dim, self.classes, self.positions = head, dim, classes, positions
        self.num_steps, self.min_mask_ratio, self.growing_guidance = num_steps, min_mask_ratio, growing_guidance
        self._guides_itself = "unconditional" in signature(head.sample).parameters
        self.mask_vector = nn.Parameter(torch.empty(dim).normal_(std=0.02)) if told == "vector" else None
        lead = 0 if classes is None else classes.num_tokens
        self.span = SpanLayout(writes="vectors", context=context, lead=lead, attends="span" if classes is None else "all")

    def corrupt(
        self,
        spans: Spans,
        *,
        share: Float[Tensor, " S"] | None = None,
        order: Float[Tensor, " N"] | None = None,
        drop: Bool[Tensor, " S"] | None = None,
        generator: Generator | None = None,
    ) -> Reading:
        """Masks a random share of each span.

        Args:
            spans: what is learned.
            share: how much of each span is masked, in place of a random share.
            order: a number in [0, 1] for each token: the smallest of a span are masked.
            drop: spans whose class is left out; while training sampled if None.
            generator: source of randomness.

        Raises:
            ValueError: shares or order of another shape, or values that are not finite (on CPU).
        """
        values = spans.rows()
        check_finite("values", values)
        if share is None:
            uniform = torch.rand(spans.num_spans, generator=generator, device=values.device).tolist()
            share = torch.tensor([sample_share(self.min_mask_ratio, one) for one in uniform], device=values.device)
        if order is None:
            order = torch.rand(len(values), generator=generator, device=values.device)
        if drop is None and self.classes is not None:
            drop = self.classes.sample_drop(spans.num_spans, values.device, generator)
        check_shape("share", share, (spans.num_spans,))
        check_shape("order", order, (len(values),))
        counts = torch.tensor(spans.counts, dtype=torch.long, device=values.device)
        wanted = torch.minimum((counts * share).ceil().clamp(min=1).long(), counts)
        masked = spans.ranks(order) < wanted[spans.of]
        return self.reading(spans, values, masked, drop)._replace(learned=(masked, generator))

    def loss(self, hidden: Float[Tensor, "N D"], spans: Spans, reading: Reading) -> Float[Tensor, " S"]:
        """The head's loss at masked vectors, its mean over those of each span, in float32."""
        masked, generator = reading.learned
        losses = loss_by(self.head.loss, self.placed(hidden)[masked], spans.rows()[masked], generator)
        return spans.mean(losses, masked)

    def finished(self, spans: Spans) -> Reading:
        """All values, after their class."""
        return Reading(values=spans.rows(), leads=self._leads(spans))

    def write(
        self,
        spans: Spans,
        *,
        guide: Guide,
        orders: Int[Tensor, "S L"] | None = None,
        options: Mapping[str, Any] | None = None,  # of the head's own sample
        step_options: Sequence[Mapping[str, Any]] | None = None,  # likewise
        generator: Generator | None = None,
    ) -> Coroutine[Pass, Float[Tensor, "G N D"], Tensor]:
        """All vectors, more of them from pass to pass.

        Args:
            spans: of one size.
            guide: see ``roles.SpanHead``.
            orders: the last tokens of a span come first; sampled if None.
            options: what every call of the head is given.
            step_options: what the calls of each pass are given beside, in place of a generator.
            generator: source of randomness, where the spans have none of their own.
        """
        length, device = spans.counts[0], spans.device
        sources = spans.generators or (generator,)
        parts = len(sources)
        if orders is None:
            orders = torch.cat([sample_orders(spans.num_spans // parts, length, device, source) for source in sources])
        masked = torch.ones_like(orders, dtype=torch.bool)
        values: Tensor | None = None
        for step, count in enumerate(mask_counts(length, min(self.num_steps, length))):
            hidden = self.placed((yield Pass(self.reading(spans, values, masked.flatten()), shown=values)))
            after = mask_of(orders, count)
            known = (length - max(count, 1)) / length if self.growing_guidance else 1.0
            chosen, made = masked & ~after, []
            for own, which, source in zip(hidden.tensor_split(parts, 1), chosen.tensor_split(parts), sources, strict=True):
                states = own.index_select(1, which.flatten().nonzero()[:, 0])
                more = {"generator": source} if step_options is None else step_options[step]
                made.append(self._sample(states, guide, known, {**(options or {}), **more}))
            new = torch.cat(made)
            values = new.new_zeros(chosen.numel(), new.shape[-1]) if values is None else values
            values = values.masked_scatter(chosen.flatten()[:, None], new)
            masked = after
        return cast(Tensor, values)

    def reading(
        self, spans: Spans, values: Float[Tensor, "N C"] | None, masked: Bool[Tensor, " N"], drop: Bool[Tensor, " S"] | None = None
    ) -> Reading:
        """What the trunk reads where some vectors are masked."""
        leads, like = self._leads(spans, drop), next(self.parameters())
        values = None if values is None else values.to(like.dtype)
        if self.mask_vector is None:
            nothing = like.new_zeros(len(masked), self.dim) if values is None else None
            return Reading(values=values, added=nothing, leads=leads, unknown=masked)
        added = self.mask_vector.expand(len(masked), -1)
        if values is None:
            return Reading(added=added, leads=leads)
        return Reading(values=values, added=torch.where(masked[:, None], added, 0), alone=masked, leads=leads)

    def placed(self, hidden: Float[Tensor, "*G N D"]) -> Float[Tensor, "*G N D"]:
        """States with their positions."""
        return hidden if self.positions is None else self.positions(hidden)

    def _leads(self, spans: Spans, drop: Bool[Tensor, " S"] | None = None) -> Float[Tensor, "M D"] | None:
        if self.classes is None:
            return None
        none = torch.full((spans.num_spans,), self.classes.num_classes, device=spans.device)
        return self.classes(spans.given.get("label", none), drop=drop).flatten(0, 1)

    def _sample(
        self, states: Float[Tensor, "G n D"], guide: Guide, strength: float, options: dict[str, Any]
    ) -> Float[Tensor, "n C"]:
        """One vector a state, guided in the head's own steps where it can be."""
        scales = guide.scales if isinstance(guide, _Scaled) else ()
        if len(states) == 1 or not scales or not self._guides_itself:
            return guide(torch.stack([self.head.sample(one, **options) for one in states]), strength)
        weaker = tuple(1 + (scale - 1) * strength for scale in scales)
        streams: dict[str, Any] = {"unconditional": states[1], "guidance": weaker[0]}
        if len(scales) > 1:
            streams = {"unconditional": list(states[1:]), "guidance": weaker}
        return self.head.sample(states[0], **streams, **options)
