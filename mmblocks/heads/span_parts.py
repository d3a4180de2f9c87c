"""What heads of whole spans may have beside: tokens of a class before a span, and positions of its states.

Shapes: S spans of L tokens, M tokens of a class, D width.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from mmblocks.block import Block
from mmblocks.support.checks import check_range


class ClassTokens(Block):
    """Tokens of a class, which stand before a span: one learned vector so many times, told apart by the trunk's positions.

    Args:
        num_classes: classes; ``num_classes`` itself stands for none.
        dim: D.
        num_tokens: M.
        dropout: how often a class is left out while training.

    Raises:
        ValueError: no class, or no token.

    Source: MAR (arXiv 2406.11838; LTH14/mar).

    Examples:
        >>> import torch
        >>> from mmblocks.heads.span_parts import ClassTokens
        >>> tuple(ClassTokens(num_classes=10, dim=8, num_tokens=4)(torch.tensor([3, 10])).shape)  # the second has none
        (2, 4, 8)
    """

    def __init__(self, *, num_classes: int, dim: int, num_tokens: int = 64, dropout: float = 0.1) -> None:
        super().__init__()
        if num_classes < 1 or num_tokens < 1:
            raise ValueError(f"num_classes is {num_classes}, num_tokens {num_tokens}; accepted: 1 or more of either")
        self.num_classes, self.num_tokens, self.dropout = num_classes, num_tokens, dropout
        self.classes = nn.Embedding(num_classes, dim)
        self.no_class = nn.Parameter(torch.empty(dim))
        for weight in (self.classes.weight, self.no_class):
            nn.init.normal_(weight, std=0.02)

    def forward(self, labels: Int[Tensor, " S"], *, drop: Bool[Tensor, " S"] | None = None) -> Float[Tensor, "S M D"]:
        """Tokens.

        Raises:
            ValueError: a class that does not exist (checked on CPU).
        """
        check_range("labels", labels, self.num_classes + 1, ", the last for no class")
        none = labels == self.num_classes if drop is None else drop | (labels == self.num_classes)
        classes = torch.where(none[:, None], self.no_class, self.classes(labels.clamp(max=self.num_classes - 1)))
        return classes[:, None].expand(-1, self.num_tokens, -1)

    def sample_drop(self, count: int, device: torch.device, generator: Generator | None) -> Bool[Tensor, " S"] | None:
        """Which classes are left out: while training alone."""
        return torch.rand(count, generator=generator, device=device) < self.dropout if self.training else None


class SpanPositions(Block):
    """A learned vector for each token of a span of so many, which is added to its state.

    Args:
        num_tokens: L.
        dim: of states.

    Source: MAR (arXiv 2406.11838; LTH14/mar).

    Examples:
        >>> import torch
        >>> from mmblocks.heads.span_parts import SpanPositions
        >>> tuple(SpanPositions(num_tokens=6, dim=8)(torch.zeros(2, 12, 8)).shape)  # two spans, in two streams
        (2, 12, 8)
    """

    def __init__(self, *, num_tokens: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(num_tokens, dim).normal_(std=0.02))

    def forward(self, states: Float[Tensor, "*G N D"]) -> Float[Tensor, "*G N D"]:
        """States of whole spans, with positions.

        Raises:
            ValueError: another number of tokens.
        """
        count = len(self.table)
        if states.shape[-2] % count:
            raise ValueError(f"states of {states.shape[-2]} tokens; accepted: {count} for each span")
        return (states.unflatten(-2, (-1, count)) + self.table).flatten(-3, -2)
