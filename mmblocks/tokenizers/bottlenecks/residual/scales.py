"""Residual quantization without a codebook: the same levels or bits again and again, each time on a finer scale.

Shapes: B images, D width of a feature, G groups, Q quantizers a group, d width of a code, N tokens.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, NamedTuple, cast

import torch
from einops import rearrange
from jaxtyping import Float, Integer
from torch import Generator, Tensor, nn

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Derived, Layout, Rule
from mmblocks.checkpoints.layouts.published_config import only
from mmblocks.sequence.tokens import Latents
from mmblocks.support.checks import as_int64, check_range
from mmblocks.tokenizers.bottlenecks.codebooks.any_dtype import mapped
from mmblocks.tokenizers.bottlenecks.codebooks.codebook import check, wrong_width
from mmblocks.tokenizers.bottlenecks.codebooks.full_precision import without_autocast
from mmblocks.tokenizers.bottlenecks.codebooks.options import RESIDUAL

DROPPED = -1
"""The number of a quantizer that was left out."""

Published = Mapping[str, Any]
"""Arguments of a published class, or of a Block."""


class Level(NamedTuple):
    """What one quantizer makes of what is left over.

    Attributes:
        z: its codes, on its own scale.
        ids: their numbers.
        loss: its terms by name, while training.
    """

    z: Float[Tensor, "B N d"]
    ids: Integer[Tensor, "B N"]
    loss: dict[str, Tensor]


class ResidualScales(Block):
    """The sum of Q codes for each feature, or for each of G groups of its entries; ids are (B, *grid, G Q), group after group.

    What has a codebook is ``ResidualQuantizer``. A subclass says what one quantizer does, and its ids' codes.

    Args:
        dim: D.
        code_dim: d; where it is not D / G, linear layers lead there and back.
        num_quantizers: Q.
        num_groups: G; each group has its own linear layers.
        dropout: while training with gradients, leave out all quantizers after one drawn for the batch.
        dropout_first: number, from 0, of the first quantizer that may be the last.
        dropout_multiple: how many are kept is rounded up to a multiple of this.

    Raises:
        ValueError: a width that the groups do not divide, or numbers out of their range.
    """

    def __init__(
        self,
        *,
        dim: int,
        code_dim: int,
        num_quantizers: int,
        num_groups: int = 1,
        dropout: bool = False,
        dropout_first: int = 0,
        dropout_multiple: int = 1,
    ) -> None:
        super().__init__()
        if num_groups < 1 or dim % num_groups:
            raise ValueError(f"dim is {dim}; accepted: multiples of {num_groups}, the number of groups, which is at least 1")
        if num_quantizers < 1:
            raise ValueError(f"num_quantizers is {num_quantizers}; accepted: 1 or more")
        if not 0 <= dropout_first < num_quantizers or dropout_multiple < 1:
            accepted = f"a number of a quantizer, from 0 to {num_quantizers - 1}, and 1 or more"
            raise ValueError(f"dropout_first is {dropout_first}, dropout_multiple {dropout_multiple}; accepted: {accepted}")
        self.dim, self.code_dim, self.num_quantizers = dim, code_dim, num_quantizers
        self.dropout = dropout and num_quantizers > 1
        self.dropout_first, self.dropout_multiple = dropout_first, dropout_multiple
        self.groups = nn.ModuleList(_Ways(dim // num_groups, code_dim) for _ in range(num_groups))

    @abstractmethod
    def quantise(self, left: Float[Tensor, "B N d"], number: int) -> Level:
        """What quantizer ``number`` makes of what those before left over, in float32."""

    @abstractmethod
    def codes(self, ids: Integer[Tensor, "B N"], number: int) -> Float[Tensor, "B N d"]:
        """The codes of quantizer ``number``."""

    @property
    @abstractmethod
    def num_codes(self) -> int:
        """K, of each quantizer."""

    def prepared(self, x: Float[Tensor, "B N d"]) -> Float[Tensor, "B N d"]:
        """What the first quantizer is given."""
        return x

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K for each quantizer of each group."""
        return (self.num_codes,) * (self.num_quantizers * len(self.groups))

    @without_autocast
    def forward(
        self, features: Float[Tensor, "B *grid D"], *, num_kept: int | None = None, generator: Generator | None = None
    ) -> Latents:
        """Quantises the last axis. An id of -1 is a quantizer that was left out.

        Args:
            features: what to quantise.
            num_kept: quantizers that are used, the others are left out; None for all, or a draw where ``dropout`` applies.
            generator: source of the draw; None is torch's own. With the same seed it is the draw of vector-quantize-pytorch.

        Raises:
            ValueError: if the width is not D, a value is not finite, or ``num_kept`` is none of 1, ..., Q.
        """
        if num_kept is not None and not 1 <= num_kept <= self.num_quantizers:
            raise ValueError(f"num_kept is {num_kept}; accepted: from 1 to {self.num_quantizers}")
        check(features, wrong_width(features, self.dim))
        kept = num_kept or self._drawn(generator)
        flat = features.reshape(len(features), math.prod(features.shape[1:-1]), self.dim)
        pieces = flat.chunk(len(self.groups), dim=-1)
        z, ids, losses = zip(*(self._group(ways, piece, kept) for ways, piece in zip(self._ways, pieces, strict=True)), strict=True)
        names = losses[0].keys()
        loss = {name: torch.stack([one[name] for one in losses]).mean() for name in names}
        return Latents(
            z=torch.cat(z, dim=-1).to(features.dtype).view(features.shape),
            ids=torch.cat(ids, dim=-1).view(*features.shape[:-1], len(self.codebook_sizes)),
            loss=loss if self.training else None,
        )

    @without_autocast
    def lookup(self, ids: Integer[Tensor, "B *grid"]) -> Float[Tensor, "B *grid2 D"]:
        """The sums of codes by number. With ``dropout``, -1 is a quantizer that was left out, and those at the end may be missing.

        Raises:
            TypeError: ids that are no integers.
            ValueError: a number outside [0, K) (checked on CPU), or not Q of them a token and group.
        """
        ids = as_int64("ids", ids)
        check_range("ids", torch.where(ids == DROPPED, 0, ids) if self.dropout else ids, self.num_codes)
        count, num_groups = ids.shape[-1], len(self.groups)
        most = self.num_quantizers * num_groups
        if count % num_groups or not 0 < count <= most or (count < most and not self.dropout):
            fewer = f", or fewer by multiples of {num_groups}" if self.dropout else ""
            raise ValueError(f"ids have shape {tuple(ids.shape)}; accepted: {most} numbers a token{fewer}, along the last axis")
        numbers = rearrange(ids, "b ... (g q) -> g q b (...)", g=num_groups)
        vectors = [ways.out(self._summed(mine)) for ways, mine in zip(self._ways, numbers, strict=True)]
        return torch.cat(vectors, dim=-1).view(*ids.shape[:-1], self.dim)

    @property
    def _ways(self) -> list["_Ways"]:
        return [cast("_Ways", ways) for ways in self.groups]

    def _summed(self, numbers: Integer[Tensor, "q B N"]) -> Float[Tensor, "B N d"]:
        used = [(of_one != DROPPED)[..., None] * self.codes(of_one.clamp(min=0), q) for q, of_one in enumerate(numbers)]
        return torch.stack(used).sum(dim=0)

    def _group(self, ways: "_Ways", piece: Float[Tensor, "B N D"], kept: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        left = self.prepared(ways.into(piece).float())
        total, ids, losses = torch.zeros_like(left), [], []
        for number in range(kept):
            level = self.quantise(left, number)
            # Gradients reach the features once for each quantizer, which knows nothing of those before.
            left, total = left - level.z.detach(), total + level.z
            ids.append(level.ids)
            losses.append(level.loss)
        missing = torch.full_like(ids[0], DROPPED)
        numbers = torch.stack([*ids, *[missing] * (self.num_quantizers - kept)], dim=-1)
        # Those left out count as nothing lost.
        loss = {name: torch.stack([one[name] for one in losses]).sum() / self.num_quantizers for name in losses[0]}
        return ways.out(total), numbers, loss

    def _drawn(self, generator: Generator | None) -> int:
        """How many quantizers are used."""
        if not (self.dropout and self.training and torch.is_grad_enabled()):
            return self.num_quantizers
        device = None if generator is None else generator.device
        seed = int(torch.randint(10_000, (), generator=generator, device=device))
        last = Random(seed).randrange(self.dropout_first, self.num_quantizers)
        return min(-(-(last + 1) // self.dropout_multiple) * self.dropout_multiple, self.num_quantizers)


class _Ways(nn.Module):
    """Linear layers from a group's entries to a code and back, where they differ in width."""

    def __init__(self, dim: int, code_dim: int) -> None:
        super().__init__()
        straight = dim == code_dim
        self.project_in = nn.Identity() if straight else nn.Linear(dim, code_dim)
        self.project_out = nn.Identity() if straight else nn.Linear(code_dim, dim)

    def into(self, piece: Tensor) -> Tensor:
        """Entries of features, of any dtype, to a code."""
        return mapped(self.project_in, piece)

    def out(self, codes: Tensor) -> Tensor:
        """Codes to entries of features, in the layer's dtype."""
        return mapped(self.project_out, codes)


def residual_layouts(
    config: Callable[[Published], dict[str, Any]],
    published_config: Callable[[Published], dict[str, Any]],
    harmless: tuple[str, ...],
    mask: Callable[[Tensor, Published], float] | None = None,
) -> tuple[Layout, ...]:
    """Of vector-quantize-pytorch's class for one group, which goes first where no tensor tells them apart, and of the grouped one.

    Args:
        config: reads the arguments of either.
        published_config: the way back, without ``groups``.
        harmless: names of arguments that change nothing here.
        mask: how far a table of bits, which each quantizer has, is from what follows from the arguments.
    """

    def alone(published: Published) -> dict[str, Any]:
        only(published, "groups", 1)
        return config(published)

    def grouped(arguments: Published) -> dict[str, Any]:
        return {**published_config(arguments), "groups": arguments["num_groups"]}

    ways = ("project_in", "project_out")
    return (
        Layout(
            "vector_quantize_pytorch",
            tuple(Rule(f"{way}.*", f"groups.0.{way}.*") for way in ways),
            derived=() if mask is None else (Derived("layers.{}.mask", mask),),
            config=alone,
            published_config=published_config,
            harmless=(*RESIDUAL, *harmless),
        ),
        Layout(
            "vector_quantize_pytorch_grouped",
            tuple(Rule(f"rvqs.{{}}.{way}.*", f"groups.{{}}.{way}.*") for way in ways),
            derived=() if mask is None else (Derived("rvqs.{}.layers.{}.mask", mask),),
            config=config,
            published_config=grouped,
            harmless=(*RESIDUAL, *harmless),
        ),
    )


def residual_arguments(config: Published) -> dict[str, Any]:
    """What both residual classes of vector-quantize-pytorch have in common."""
    return {
        "num_quantizers": config["num_quantizers"],
        "num_groups": config.get("groups", 1),
        "dropout": config.get("quantize_dropout", False),
        "dropout_first": config.get("quantize_dropout_cutoff_index", 0),
        "dropout_multiple": config.get("quantize_dropout_multiple_of", 1),
    }


def published_arguments(arguments: Published) -> dict[str, Any]:
    """The way back of ``residual_arguments``, without ``groups``."""
    return {
        "num_quantizers": arguments["num_quantizers"],
        "quantize_dropout": arguments["dropout"],
        "quantize_dropout_cutoff_index": arguments["dropout_first"],
        "quantize_dropout_multiple_of": arguments["dropout_multiple"],
    }
