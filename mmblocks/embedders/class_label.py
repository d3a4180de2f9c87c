"""A learned vector per class, and one for "no class"."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn
from torch.nn.functional import embedding

from mmblocks.block import Block
from mmblocks.support.checks import check_range


class ClassLabelEmbedding(Block):
    """Looks class labels up in a table with one row more, which stands for no class: what guidance leads away from.

    Args:
        num_classes: labels are 0 ... num_classes - 1; ``num_classes`` itself is no class.
        dim: width.
        drop: share of the labels that become "no class" while training.
        init_std: standard deviation of the initial vectors.

    Source: DiT (arXiv 2212.09748), as in LlamaGen (FoundationVision/LlamaGen).

    Examples:
        >>> import torch
        >>> from mmblocks.embedders import ClassLabelEmbedding
        >>> embedding = ClassLabelEmbedding(num_classes=10, dim=8)
        >>> labels, dropped = torch.tensor([3, 7]), torch.tensor([False, True])
        >>> vectors = embedding(labels, dropped=dropped)
        >>> embedding.unconditional
        10
        >>> torch.equal(vectors[1:], embedding.eval()(torch.tensor([10])))
        True
    """

    def __init__(self, *, num_classes: int, dim: int, drop: float = 0.1, init_std: float = 0.02) -> None:
        super().__init__()
        self.num_classes, self.drop = num_classes, drop
        self.weight = nn.Parameter(torch.empty(num_classes + 1, dim))
        nn.init.normal_(self.weight, std=init_std)

    @property
    def unconditional(self) -> int:
        """The label of no class."""
        return self.num_classes

    def forward(
        self, labels: Int[Tensor, " N"], *, dropped: Bool[Tensor, " N"] | None = None, generator: Generator | None = None
    ) -> Float[Tensor, "N D"]:
        """Labels to vectors.

        Args:
            labels: in [0, num_classes].
            dropped: True where a label becomes "no class"; sampled while training, none in evaluation.
            generator: source of randomness.

        Raises:
            ValueError: if a label is out of range (checked on CPU).
        """
        check_range("labels", labels, self.num_classes + 1, ", the last for no class")
        if dropped is None and self.training and self.drop:
            dropped = torch.rand(labels.shape, device=labels.device, generator=generator) < self.drop
        if dropped is not None:
            labels = torch.where(dropped, self.num_classes, labels)
        return embedding(labels, self.weight)
