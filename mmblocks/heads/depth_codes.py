"""All codes of a place from one state: level after level by a small transformer over depth, or all at once.

Shapes: N rows, Q levels, D width of the trunk, C width of the transformer over depth.
"""

from collections.abc import Iterable
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from mmblocks.block import Block
from mmblocks.heads.language import LMHead
from mmblocks.layers.categorical import GREEDY, Sampling, sample_ids
from mmblocks.layers.depth_tables import DepthTables, check_codes
from mmblocks.layers.losses.row_losses import check_shape, weighted
from mmblocks.roles import Trunk, Wide, check_role
from mmblocks.sequence.tokens import TokenTable

NO_CODE = -1
"""In place of a code: the level has none in this token."""


class DepthCodeHead(Block):
    """Q codes of a place from one state.

    With a ``trunk`` of its own, level q is predicted from the state and the codes of the levels before it, so that the codes of a
    place go together. Without one, each level is a linear map of the state alone; codes that are delayed (see ``DepthCodeFormat``)
    still know the levels before them, which the trunk of the model has read.

        DepthCodeHead(dim=2048, sizes=(1024,) * 8, trunk=Decoder(dim=1024, num_layers=6, num_heads=16, mlp_dim=4096))

    Args:
        dim: D.
        sizes: K of each level: a residual tokenizer's ``codebook_sizes``.
        trunk: the transformer over depth, of width C, whose tokens attend to those before; None for none.
        init_std: of the initial weights.

    Raises:
        TypeError: a trunk that is none, or does not name its ``dim``.
        ValueError: no level, or an empty one; ``dim`` below 1.

    Source: the depth transformer of RQ-Transformer (arXiv 2203.01941) with Moshi's inputs (arXiv 2410.00037); without one, MusicGen
    (arXiv 2306.05284).

    Examples:
        >>> import torch
        >>> from mmblocks import Decoder
        >>> from mmblocks.heads import DepthCodeHead
        >>> depth = Decoder(dim=8, num_layers=1, num_heads=2, mlp_dim=16)
        >>> head = DepthCodeHead(dim=16, sizes=(32, 32, 32), trunk=depth)
        >>> hidden = torch.randn(5, 16)
        >>> codes = head.sample(hidden)
        >>> tuple(codes.shape), tuple(head.loss(hidden, codes).shape)
        ((5, 3), (5,))
    """

    def __init__(self, *, dim: int, sizes: tuple[int, ...], trunk: Block | None = None, init_std: float = 0.02) -> None:
        super().__init__()
        if dim < 1 or not sizes or min(sizes) < 1:
            raise ValueError(f"dim is {dim}, sizes {tuple(sizes)}; accepted: 1 or more, and at least one size of 1 or more")
        self.sizes = tuple(sizes)
        self.trunk = trunk
        width = dim if trunk is None else _width(trunk)
        self.inputs = nn.ModuleList([] if trunk is None else [nn.Linear(dim, width) for _ in sizes])
        # No level comes after the last.
        self.tables = None if trunk is None or len(sizes) == 1 else DepthTables(self.sizes[:-1], width, init_std)
        heads = [LMHead(dim=width, vocab_size=size, init_std=init_std) for size in sizes]
        self.heads = nn.ModuleList(heads)

    def loss(
        self, hidden: Float[Tensor, "N D"], target: Int[Tensor, "N Q"], weight: Float[Tensor, " N"] | None = None
    ) -> Float[Tensor, " N"]:
        """The mean cross entropy of each row's codes, in float32; a level without a code (-1) is left out.

        Raises:
            TypeError: a target of no integers.
            ValueError: shapes that do not fit, or a code out of range (checked on CPU).
        """
        check_shape("target", target, (len(hidden), len(self.sizes)))
        target = check_codes("target", target, self.sizes)
        if weight is not None:
            check_shape("weight", weight, (len(hidden),))
        present = target != NO_CODE
        states = self.states(hidden, target)
        total = torch.zeros(len(hidden), device=hidden.device)
        for level, head in enumerate(self._heads()):
            total = total + head.loss(states[:, level], target[:, level].clamp(min=0), present[:, level].float())
        return weighted(total / present.sum(dim=1).clamp(min=1), weight)

    def states(self, hidden: Float[Tensor, "N D"], codes: Int[Tensor, "N Q"]) -> Float[Tensor, "N Q C"]:
        """What each level is predicted from, given the codes of the levels before it."""
        if self.trunk is None:
            return hidden[:, None].expand(-1, len(self.sizes), -1)
        read = torch.stack([project(hidden) for project in self.inputs], dim=1)
        if self.tables is not None:
            read[:, 1:] += self.tables(codes[:, :-1])
        made: Tensor = self.trunk(read, TokenTable.text(len(hidden), len(self.sizes), hidden.device))
        return made

    @torch.no_grad()
    def sample(
        self,
        hidden: Float[Tensor, "N D"],
        *,
        sampling: Sampling = GREEDY,
        unconditional: Float[Tensor, "N D"] | None = None,
        guidance: float | None = None,
        present: Bool[Tensor, "N Q"] | None = None,
        generator: Generator | None = None,
    ) -> Int[Tensor, "N Q"]:
        """Q codes per row, level after level.

        Args:
            hidden: states.
            sampling: how each code is sampled.
            unconditional: states without the condition, for classifier-free guidance of the logits.
            guidance: its scale; with ``unconditional`` alone.
            present: which levels have a code, where not all do; the others are -1.
            generator: source of randomness.

        Raises:
            ValueError: one of ``unconditional`` and ``guidance`` without the other, or shapes that do not fit.
        """
        if (unconditional is None) != (guidance is None):
            raise ValueError("unconditional and guidance go together; accepted: both, or neither")
        if present is not None:
            check_shape("present", present, (len(hidden), len(self.sizes)))
        rows = hidden if unconditional is None else torch.cat([hidden, unconditional])
        cache = None if self.trunk is None else cast(Trunk, self.trunk).new_cache(len(rows), len(self.sizes))
        codes: list[Tensor] = []
        for level, head in enumerate(self._heads()):
            logits = head.logits(self._next_state(rows, codes, cache))
            if guidance is not None:
                guided, free = logits.chunk(2)
                logits = free + guidance * (guided - free)
            chosen = sample_ids(logits, sampling, generator=generator)
            codes.append(chosen if present is None else torch.where(present[:, level], chosen, NO_CODE))
        return torch.stack(codes, dim=1)

    def _next_state(self, rows: Float[Tensor, "M D"], codes: list[Tensor], cache: object) -> Float[Tensor, "M C"]:
        """What the level after those of ``codes`` is predicted from; ``rows`` are those of the codes, once or twice."""
        if self.trunk is None:
            return rows
        level = len(codes)
        read: Tensor = self.inputs[level](rows)
        if codes and self.tables is not None:
            read = read + self.tables.level(codes[-1].repeat(len(rows) // len(codes[-1])), level - 1)
        table = TokenTable.text(len(rows), len(self.sizes), rows.device).slice(level, level + 1)
        made: Tensor = self.trunk(read[:, None], table, cache)
        return made[:, 0]

    def _heads(self) -> Iterable[LMHead]:
        return cast("Iterable[LMHead]", self.heads)


def _width(trunk: Block) -> int:
    check_role(trunk, Trunk, "trunk")
    if not isinstance(trunk, Wide):
        raise TypeError(f"trunk, a {type(trunk).__name__}, does not name its dim; accepted: one that does")
    return trunk.dim
