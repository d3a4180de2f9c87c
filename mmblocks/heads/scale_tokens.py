"""Next-scale prediction without a trunk: what is read at the codes of each scale, and what states say of them.

Shapes: S spans of L tokens each, n of a scale (h x w), G streams, D width of the trunk, C width of a code, K codes.
"""

from collections.abc import Callable, Sequence
from collections.abc import Generator as Coroutine
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from mmblocks.block import Block
from mmblocks.layers.diffusion.adaln import ModulatedLinear
from mmblocks.layers.losses.vocabulary_losses import vocabulary_losses
from mmblocks.sequence.spans import Guide, Pass, Reading, SpanLayout
from mmblocks.support.checks import check_range

Scale = int | Sequence[int]
"""Rows and columns of a grid of tokens; one number for as many of either."""

Choice = Callable[[Tensor, int, float], tuple[Tensor, Tensor]]
"""(logits (S, n, K), the scale, its share of the way to the last) -> codes (S, n), and vectors (S, n, C) that are read for them."""


@runtime_checkable
class AddsScales(Protocol):
    """A tokenizer's bottleneck, as far as writing needs it."""

    def add_scale(
        self, total: Float[Tensor, "S H W C"] | None, vectors: Float[Tensor, "S h w C"], index: int, /, *, scales: Sequence[Scale]
    ) -> tuple[Float[Tensor, "S H W C"], Float[Tensor, "S h2 w2 C"]]:
        """The map so far with the codes of a scale added, and what is read to predict the next scale."""
        ...


class ScaleTokens(Block):
    """What a trunk reads at the codes of each scale, and logits of its states.

    Args:
        dim: D.
        num_codes, code_dim: K and C.
        scales: rows and columns of each scale.
        num_classes: classes, for pictures of one: it is read at the first scale and is the layers' condition, with one more vector
            for none. None: what stands before the span says all, and states are not modulated.
        label_dropout: how often a class is left out while training.

    Source: VAR (arXiv 2404.02905; FoundationVision/VAR).

    Examples:
        >>> import torch
        >>> from mmblocks.heads.scale_tokens import ScaleTokens
        >>> tokens = ScaleTokens(dim=16, num_codes=8, code_dim=4, scales=(1, 2), num_classes=10).eval()
        >>> condition = tokens.condition(torch.tensor([3, 7]))
        >>> read = tokens(torch.randn(2, 4, 4), condition)  # maps of the second scale
        >>> tuple(read.shape), tuple(tokens.logits(read, condition[:, None]).shape)
        ((2, 5, 16), (2, 5, 8))
    """

    def __init__(
        self,
        *,
        dim: int,
        num_codes: int,
        code_dim: int,
        scales: tuple[Scale, ...],
        num_classes: int | None = None,
        label_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.scales = tuple((scale, scale) if isinstance(scale, int) else (scale[0], scale[1]) for scale in scales)
        self.counts = [rows * columns for rows, columns in self.scales]
        self.num_tokens = sum(self.counts)
        self.num_codes, self.code_dim = num_codes, code_dim
        self.num_classes, self.label_dropout = num_classes, label_dropout
        self.span = SpanLayout(writes="ids", context="read", scales=self.scales)
        self.embed = nn.Linear(code_dim, dim)
        self.classes = None if num_classes is None else nn.Embedding(num_classes + 1, dim)
        self.start = nn.Parameter(torch.empty(self.counts[0], dim))
        self.positions = nn.Parameter(torch.empty(self.num_tokens, dim))
        self.levels = nn.Embedding(len(self.scales), dim)
        self.output = nn.Linear(dim, num_codes) if num_classes is None else ModulatedLinear(dim, dim, num_codes)
        for weight in (self.start, self.positions, self.levels.weight, *([] if self.classes is None else [self.classes.weight])):
            nn.init.trunc_normal_(weight, std=(1 / dim / 3) ** 0.5)

    def condition(
        self, labels: Int[Tensor, " S"], *, name: str = "labels", drop: Bool[Tensor, " S"] | None = None
    ) -> Float[Tensor, "S D"]:
        """The vectors of classes.

        Args:
            labels: ``num_classes`` for none.
            name: of the labels, for messages.
            drop: True where a class is left out.

        Raises:
            ValueError: a class that does not exist (checked on CPU), or no classes at all.
        """
        if self.classes is None or self.num_classes is None:
            raise ValueError(f"{name} is given, and num_classes is None; accepted: a number of classes")
        if drop is not None:
            labels = torch.where(drop, self.num_classes, labels)
        check_range(name, labels, self.num_classes + 1, ", the last for no class")
        return self.classes(labels)

    def sample_drop(self, count: int, device: torch.device, generator: Generator | None) -> Bool[Tensor, " S"] | None:
        """Which classes are left out: while training alone."""
        return torch.rand(count, generator=generator, device=device) < self.label_dropout if self.training else None

    def forward(self, maps: Float[Tensor, "S L2 C"], condition: Float[Tensor, "S D"] | None = None) -> Float[Tensor, "S L D"]:
        """What is read at all scales, given for every scale but the first the map of the scales before it, at its size."""
        places = self._places()
        first = self._first(places, condition).expand(len(maps), -1, -1)
        return torch.cat([first, self.embed(maps.to(self.start.dtype)) + places[self.counts[0] :]], dim=1)

    def logits(self, states: Float[Tensor, "*N D"], condition: Float[Tensor, "*rows D"] | None) -> Float[Tensor, "*N K"]:
        """Logits, in float32; there may be one condition for several states, with axes of one."""
        if isinstance(self.output, ModulatedLinear) and condition is not None:
            return self.output(states, condition).float()
        return self.output(states).float()

    def losses(
        self, states: Float[Tensor, "S L D"], ids: Int[Tensor, "S L"], condition: Float[Tensor, "S D"] | None
    ) -> Float[Tensor, "S L"]:
        """Cross entropy of every token, in float32; a few tokens' logits are held at a time, never all."""
        codes = self.output
        if isinstance(codes, ModulatedLinear):
            if condition is not None:
                states = codes.modulated(states, condition[:, None])
            codes = codes.linear
        return vocabulary_losses(states.flatten(0, 1), codes.weight, ids.flatten(), codes.bias).view_as(ids)

    def write(
        self, quantizer: AddsScales, count: int, condition: Float[Tensor, "GS D"] | None, guide: Guide, choose: Choice
    ) -> Coroutine[Pass, Float[Tensor, "G N D"], tuple[Int[Tensor, "S L"], Float[Tensor, "S H W C"]]]:
        """The codes of all scales and the map that they add up to, in a pass for each scale.

        Args:
            quantizer: makes a map of codes.
            count: S.
            condition: of each span, or of each span of every stream.
            guide: see ``roles.SpanHead``.
            choose: the codes of a scale, given its logits.
        """
        places = self._places().split(self.counts)
        tokens, total, first = self._first(places[0], condition), None, 0
        tokens = tokens if len(tokens) > 1 else tokens.expand(count, -1, -1)
        own = None if condition is None else condition.view(-1, count, 1, condition.shape[-1])
        made: list[Tensor] = []
        for step, (size, length) in enumerate(zip(self.scales, self.counts, strict=True)):
            reading = Reading(added=tokens.flatten(0, 1), condition=condition)
            states = yield Pass(reading, keep=True, part=(first, first + length))
            share = step / max(len(self.scales) - 1, 1)
            logits = guide(self.logits(states.unflatten(1, (count, length)), own).flatten(1, 2), strength=share)
            ids, vectors = choose(logits.unflatten(0, (count, length)), step, share)
            made.append(ids)
            total, following = quantizer.add_scale(total, vectors.unflatten(1, size), step, scales=self.scales)
            if step + 1 < len(self.scales):
                tokens = self.embed(following.flatten(1, 2).to(self.start.dtype)) + places[step + 1]
            first += length
        if total is None:
            raise ValueError("scales is empty; accepted: at least one scale")
        return torch.cat(made, dim=1), total

    def check_ids(self, ids: Int[Tensor, "S L"], count: int) -> None:
        """Raises ``ValueError`` for other numbers of ids, or one that does not exist (checked on CPU)."""
        if tuple(ids.shape) != (count, self.num_tokens):
            raise ValueError(f"ids is {tuple(ids.shape)}; accepted: ({count}, {self.num_tokens})")
        check_range("ids", ids, self.num_codes)

    def _first(self, places: Float[Tensor, "_ D"], condition: Float[Tensor, "S D"] | None) -> Float[Tensor, "_ n D"]:
        """What is read at the first scale."""
        tokens = (self.start + places[: self.counts[0]])[None]
        return tokens if condition is None else tokens + condition[:, None]

    def _places(self) -> Float[Tensor, "L D"]:
        return self.positions + torch.cat([self.levels.weight[i].expand(count, -1) for i, count in enumerate(self.counts)])
