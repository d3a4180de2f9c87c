"""Spans that are written in one pass: the trunk reads learned queries, and another head predicts each value at its query.

Shapes: N tokens of all spans, G streams, D width of the trunk, C channels of a value.
"""

from collections.abc import Generator as Coroutine
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from mmblocks.block import Block
from mmblocks.layers.losses.row_losses import loss_by
from mmblocks.roles import Head, check_role
from mmblocks.sequence.spans import Guide, Pass, Reading, SpanLayout, Spans


class PlaceholderHead(Block):
    """Learned queries stand where values are to be written, in training and generation alike, so that no error adds up.

    Args:
        head: of single tokens, such as ``RegressionHead`` or a ``DenoisingHead``.
        num_tokens: how many queries there are; a span has as many values, or fewer.
        dim: D.
        attends: whether a query attends to its whole "span", or in "causal" order.

    Raises:
        TypeError: a head that cannot predict single tokens.
        ValueError: fewer than one query.

    Source: the prefilled autoregression of Nexus-Gen (arXiv 2504.21356).

    Examples:
        >>> import torch
        >>> from mmblocks import Decoder, MultimodalModel, TextEmbedding, text, vectors
        >>> from mmblocks.generation import VectorBlock, VectorGrammar
        >>> from mmblocks.heads import PlaceholderHead, RegressionHead
        >>> model = MultimodalModel(
        ...     inputs={"text": TextEmbedding(vocab_size=16, dim=32), "latents": torch.nn.Linear(4, 32)},
        ...     trunk=Decoder(dim=32, num_layers=1, num_heads=4, mlp_dim=64),
        ...     outputs={"image": PlaceholderHead(head=RegressionHead(dim=32, target_dim=4), num_tokens=6, dim=32)},
        ... )
        >>> latents = vectors(torch.randn(2, 3, 4), input="latents", target="image")
        >>> model(model.batch_builder()([[text([1, 7]), latents]])).token_losses["image"].shape
        torch.Size([6])
        >>> block = VectorBlock(begin=7, end=None, size=(2, 3), head="image", input="latents", whole=True)
        >>> ((row, made),) = model.generate([[text([1, 7])]], VectorGrammar(block, vocab_size=16))
        >>> tuple(made.values.shape)
        (2, 3, 4)
    """

    def __init__(self, *, head: Block, num_tokens: int, dim: int, attends: Literal["span", "causal"] = "causal") -> None:
        super().__init__()
        check_role(head, Head, "head")
        if num_tokens < 1:
            raise ValueError(f"num_tokens is {num_tokens}; accepted: 1 or more")
        self.head = cast(Head, head)
        self.queries = nn.Parameter(torch.empty(num_tokens, dim).normal_(std=0.02))
        self.span = SpanLayout(writes="vectors", attends=attends, context="read")

    def corrupt(self, spans: Spans, *, generator: Generator | None = None) -> Reading:
        """The queries; what is random in the head's loss comes from ``generator``.

        Raises:
            ValueError: a span of more values than there are queries.
        """
        most = max(spans.counts, default=0)
        if most > len(self.queries):
            raise ValueError(f"a span has {most} values; accepted: at most {len(self.queries)}, as there are queries")
        return Reading(added=torch.cat([self.queries[:0], *(self.queries[:count] for count in spans.counts)]), learned=generator)

    def loss(self, hidden: Float[Tensor, "N D"], spans: Spans, reading: Reading) -> Float[Tensor, " N"]:
        """That of the head for each value."""
        return loss_by(self.head.loss, hidden, spans.rows(), reading.learned)

    def write(
        self, spans: Spans, *, guide: Guide, generator: Generator | None = None
    ) -> Coroutine[Pass, Float[Tensor, "G N D"], Tensor]:
        """All values in one pass, which stays in the row; guidance combines what each stream predicts."""
        hidden = yield Pass(self.corrupt(spans), keep=True)
        return guide(torch.stack([self.head.sample(one, generator=generator) for one in hidden]))
