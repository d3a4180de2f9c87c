"""The pieces of ``tokenizers.conv.blocks`` on maps that are too large to be held: computed exactly, a stripe of rows at a time.

Maps are those of one image, (1, C, H, W).
"""

from typing import Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmblocks.tokenizers.conv.blocks import Downsample, Level, Middle, ResidualBlock, Upsample
from mmblocks.tokenizers.conv.row_maps import ConvolvedMap, DoubledMap, HalvedMap, HeldMap, KnownNorm, ResidualMap, RowMap

STRIPES = 128
"""A stripe takes this part of the budget."""


@runtime_checkable
class _Budgeted(Protocol):
    """A ``ConvEncoder`` or a ``ConvDecoder``."""

    memory_budget: int | None


def set_memory_budget(model: nn.Module, num_bytes: int | None) -> None:
    """Bounds what feature maps take in every convolutional encoder and decoder inside ``model``.

    The results are those of whole maps everywhere, up to rounding; what is not held is computed more than once. Images, and the
    frames of clips, go through one by one, and nothing is kept for gradients. The rule:

    - a block's output is held if it fits into the budget, and takes the place of what it is computed from, row by row;
    - the map inside a residual block is held if it fits beside what the block reads;
    - all else is computed from held maps on demand;
    - attention holds its map, with queries, keys and values, whatever the budget.

    A good budget is one map of the finest level (channels x height x width values): at Emu3's widths encoding is then 1.2 times
    the multiplications and decoding 1.5 times, with half of that 1.7 and 3.4 times. Weights come on top, and what computing a
    stripe takes, of a 128th of the budget, or of a row where that is more: with 4 GiB for an image of 2048 x 2048 Emu3 took
    4.4 GiB more than its weights to encode, and 5.6 GiB to decode. An image's size has no limit but time.

    Args:
        model: a tokenizer, or anything else that holds a ``ConvEncoder`` or a ``ConvDecoder``.
        num_bytes: the budget; None holds every map whole again.

    Raises:
        ValueError: a budget that is not positive, or nothing in ``model`` that keeps one.
    """
    if num_bytes is not None and num_bytes <= 0:
        raise ValueError(f"num_bytes is {num_bytes}; accepted: a positive number, or None")
    parts = [part for part in model.modules() if isinstance(part, _Budgeted)]
    if not parts:
        raise ValueError(f"{type(model).__name__} holds no ConvEncoder and no ConvDecoder: these keep a memory budget")
    for part in parts:
        part.memory_budget = num_bytes


def check_no_gradients(module: nn.Module, *inputs: Tensor) -> None:
    """Refuses what stripes cannot do.

    Raises:
        ValueError: gradients are asked for.
    """
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*inputs, *module.parameters())):
        raise ValueError("memory_budget is set, and stripes keep nothing for gradients; accepted: calls under torch.no_grad()")


class Stripes:
    """Runs the pieces of ``tokenizers.conv.blocks`` on one image and decides which maps are held; see ``set_memory_budget``.

    Args:
        budget: bytes.
        condition: what the norms are called with besides the map.
    """

    def __init__(self, budget: int, *condition: Tensor) -> None:
        self.budget = budget
        self.condition = condition
        self.stripe_bytes = budget // STRIPES

    def conv(self, x: RowMap, conv: nn.Conv2d, norm: nn.Module | None = None) -> RowMap:
        """A convolution that keeps the sides, after a norm and SiLU where there is one."""
        return self._settled(ConvolvedMap(x, conv, None if norm is None else self._known(norm, x)))

    def middle(self, x: RowMap, middle: Middle) -> RowMap:
        """See ``Middle``."""
        return self.residual(self.attention(self.residual(x, middle.block1), middle.attention), middle.block2)

    def level(self, x: RowMap, level: nn.Module) -> RowMap:
        """See ``Level``."""
        parts = cast("Level", level)
        for number, block in enumerate(parts.blocks):
            x = self.residual(x, cast("ResidualBlock", block))
            if len(parts.attentions):
                x = self.attention(x, parts.attentions[number])
        return x if parts.resample is None else self.resample(x, parts.resample)

    def residual(self, x: RowMap, block: ResidualBlock) -> RowMap:
        """See ``ResidualBlock``."""
        hidden: RowMap = ConvolvedMap(x, block.conv1, self._known(block.norm1, x))
        if hidden.num_bytes + sum(held.num_bytes for held in x.held()) <= self.budget:
            hidden = self._held(hidden)
        after = ConvolvedMap(hidden, block.conv2, self._known(block.norm2, hidden))
        return self._settled(ResidualMap(x, after, block.shortcut))

    def attention(self, x: RowMap, attention: nn.Module) -> RowMap:
        """See ``AttentionBlock``: it needs all rows at once."""
        return HeldMap([attention(self.whole(x), *self.condition)])

    def resample(self, x: RowMap, resample: nn.Module) -> RowMap:
        """See ``Downsample`` and ``Upsample``.

        Raises:
            TypeError: another way to change the sides.
        """
        if isinstance(resample, Downsample):
            return self._settled(HalvedMap(x, resample.conv))
        if isinstance(resample, Upsample):
            return self._settled(ConvolvedMap(DoubledMap(x), resample.conv))
        raise TypeError(f"resample is {type(resample).__name__}; accepted with a memory budget: Downsample, Upsample")

    def whole(self, x: RowMap) -> Float[Tensor, "1 C H W"]:
        """All rows in one tensor, whatever they take."""
        return (x if isinstance(x, HeldMap) else self._held(x, instead=True)).rows(0, x.height)

    def _known(self, norm: nn.Module, x: RowMap) -> KnownNorm:
        return KnownNorm(norm, x, self.stripe_bytes, *self.condition)

    def _settled(self, x: RowMap) -> RowMap:
        return self._held(x, instead=True) if x.num_bytes <= self.budget else x

    def _held(self, x: RowMap, *, instead: bool = False) -> HeldMap:
        """All rows in memory; ``instead``: of what they are computed from."""
        pieces = []
        for start, stop in x.stripes(self.stripe_bytes):
            pieces.append(x.rows(start, stop))
            if instead:
                x.release(stop)
        return HeldMap(pieces)
