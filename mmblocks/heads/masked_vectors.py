"""Masked vectors in a row of other tokens: a span's vectors are written in random order, several at a time.

Shapes: N tokens of all spans, S spans of L tokens, G streams, D width of the trunk, C channels of a vector.
"""

from collections.abc import Generator as Coroutine
from inspect import signature
from typing import Literal, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from mmblocks.block import Block
from mmblocks.layers.diffusion.random_orders import mask_counts, mask_of, sample_orders, sample_share
from mmblocks.layers.losses.row_losses import check_shape, loss_by
from mmblocks.roles import Head, check_role
from mmblocks.sequence.spans import Guide, Pass, Reading, SpanLayout, Spans
from mmblocks.support.checks import check_finite


@runtime_checkable
class _Scaled(Protocol):
    """A guide that says its scales."""

    scales: tuple[float, ...]


class GuidedHead(Protocol):
    """A head of single tokens that guides itself."""

    def sample(
        self, hidden: Tensor, *, unconditional: list[Tensor], guidance: tuple[float, ...], generator: Generator | None
    ) -> Tensor:
        """One vector per state."""
        ...


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
        head: Block,
        dim: int,
        num_steps: int = 64,
        min_mask_ratio: float = 0.7,
        growing_guidance: bool = True,
        context: Literal["clean", "read"] = "clean",
    ) -> None:
        super().__init__()
        check_role(head, Head, "head")
        if num_steps < 1 or not 0 < min_mask_ratio <= 1:
            found = f"num_steps is {num_steps}, min_mask_ratio {min_mask_ratio}"
            raise ValueError(f"{found}; accepted: 1 or more, and above 0 to 1")
        self.head = cast(Head, head)
        self.num_steps, self.min_mask_ratio, self.growing_guidance = num_steps, min_mask_ratio, growing_guidance
        self.mask_vector = nn.Parameter(torch.empty(dim).normal_(std=0.02))
        self.span = SpanLayout(writes="vectors", context=context)

    def corrupt(
        self,
        spans: Spans,
        *,
        share: Float[Tensor, " S"] | None = None,
        order: Float[Tensor, " N"] | None = None,
        generator: Generator | None = None,
    ) -> Reading:
        """Masks a random share of each span.

        Args:
            spans: what is learned.
            share: how much of each span is masked, in place of a random share.
            order: a number in [0, 1] for each token: the smallest of a span are masked.
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
        check_shape("share", share, (spans.num_spans,))
        check_shape("order", order, (len(values),))
        counts = torch.tensor(spans.counts, dtype=torch.long, device=values.device)
        wanted = torch.minimum((counts * share).ceil().clamp(min=1).long(), counts)
        return self._reading(values, spans.ranks(order) < wanted[spans.of])._replace(learned=generator)

    def loss(self, hidden: Float[Tensor, "N D"], spans: Spans, reading: Reading) -> Float[Tensor, " S"]:
        """The head's loss at masked vectors, its mean over those of each span, in float32."""
        masked = cast(Tensor, reading.alone)
        losses = loss_by(self.head.loss, hidden[masked], spans.rows()[masked], reading.learned)
        return spans.mean(losses, masked)

    def write(
        self, spans: Spans, *, guide: Guide, generator: Generator | None = None
    ) -> Coroutine[Pass, Float[Tensor, "G N D"], Tensor]:
        """All vectors, more of them from pass to pass. The spans must be of one size."""
        length, device = spans.counts[0], spans.device
        sources = spans.generators or (generator,) * spans.num_spans
        orders = torch.cat([sample_orders(1, length, device, source) for source in sources])
        counts = mask_counts(length, min(self.num_steps, length))
        masked = torch.ones(spans.num_spans, length, dtype=torch.bool, device=device)
        values: Tensor | None = None
        for count in counts:
            hidden = yield Pass(self._reading(values, masked.flatten()), shown=values)
            after = mask_of(orders, count)
            known = (length - max(count, 1)) / length if self.growing_guidance else 1.0
            rows = hidden.unflatten(1, masked.shape)
            chosen = masked & ~after
            made = [self._sample(rows[:, i, chosen[i]], guide, known, source) for i, source in enumerate(sources)]
            new = torch.cat(made)
            values = new.new_zeros(chosen.numel(), new.shape[-1]) if values is None else values
            values = values.masked_scatter(chosen.flatten()[:, None], new)
            masked = after
        return cast(Tensor, values)

    def _sample(
        self, states: Float[Tensor, "G n D"], guide: Guide, strength: float, generator: Generator | None
    ) -> Float[Tensor, "n C"]:
        """One vector a state, guided in the head's own steps where it can be."""
        scales = guide.scales if isinstance(guide, _Scaled) else ()
        if len(states) == 1 or not scales or "unconditional" not in signature(self.head.sample).parameters:
            return guide(torch.stack([self.head.sample(one, generator=generator) for one in states]), strength)
        weaker = tuple(1 + (scale - 1) * strength for scale in scales)
        guided = cast(GuidedHead, self.head)
        return guided.sample(states[0], unconditional=list(states[1:]), guidance=weaker, generator=generator)

    def _reading(self, values: Tensor | None, masked: Bool[Tensor, " N"]) -> Reading:
        added = self.mask_vector.expand(len(masked), -1)
        if values is None:
            return Reading(added=added)
        return Reading(values=values.to(added.dtype), added=torch.where(masked[:, None], added, 0), alone=masked)
