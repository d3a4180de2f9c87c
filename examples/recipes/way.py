"""What the recipes share: the words, the sizes, the plain trunk, and what a recipe gives back."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

from torch import Tensor

import mmblocks as mm
from mmblocks.generation.grammar import Grammar
from mmblocks.sequence.segments import Segment

from latents import CHANNELS, PLACES, SIZE

TEXT = mm.ByteTokenizer(specials=("<bos>", "<image>", "<image end>", "<stop>"))
SCALES, CODE_DIM = (1, 2, 4, 7), 16
"""Sides of the grids of codes of an image that is written scale by scale, and the width of a code."""

Framed = Callable[[Tensor], list[Segment]]
BEGIN, END, STOP = (TEXT[name] for name in ("<image>", "<image end>", "<stop>"))


@dataclass(frozen=True)
class Sizes:
    """Of a model; equal for all ways.

    Attributes:
        num_codes: of the tokenizer, where images are codes.
        dim, num_layers, num_heads, mlp_dim: of the trunk.
        num_steps: passes over an image that is written as a whole, where they are several.
        quantizer: of the tokenizer of scales; a new one if None.
    """

    num_codes: int = 128
    dim: int = 128
    num_layers: int = 4
    num_heads: int = 4
    mlp_dim: int = 344
    num_steps: int = 10
    quantizer: mm.Block | None = None

    @property
    def trunk(self) -> dict[str, Any]:
        """What every trunk is made with."""
        names = ("dim", "num_layers", "num_heads", "mlp_dim")
        return {**{name: getattr(self, name) for name in names}, "qk_norm": True, **PLACES}


class Way(NamedTuple):
    """A model, and how images stand in its samples.

    Attributes:
        model: to be trained.
        images: what an image is to it: "latents" (7, 7, 4), "codes" (7, 7), codes of all "scales" (70,), or "pixels" (3, 28, 28).
        written: an image that it learns to begin and to write.
        read: an image that it learns to read.
        grammar: of a reply: an image, then text.
        weights: of the losses, by head.
        guidance: how strongly a prompt counts; None where nothing is learned without one.
    """

    model: mm.MultimodalModel
    images: Literal["latents", "codes", "scales", "pixels"]
    written: Framed
    read: Framed
    grammar: Grammar
    weights: dict[str, float]
    guidance: float | None


def embed_text(dim: int) -> mm.TextEmbedding:
    return mm.TextEmbedding(vocab_size=TEXT.vocab_size, dim=dim, init_std=0.5)


def embed_latents(dim: int) -> mm.Block:
    return mm.connectors.MLPProjector(in_dim=CHANNELS, dim=dim, num_layers=2)


def placed(embedder: mm.Block, dim: int) -> mm.embedders.LearnedPlaces:
    """With a learned vector for each place: rotations alone are slow to tell where one is."""
    return mm.embedders.LearnedPlaces(embedder=embedder, dim=dim, size=SIZE, init_std=0.5)


def flow_head(dim: int, num_steps: int, **options: Any) -> mm.heads.SpanDenoisingHead:
    """The trunk turns noise into latents, in so many of Euler's steps."""
    sampler = mm.layers.DiffusersSampler(scheduler="FlowMatchEulerDiscreteScheduler", num_steps=num_steps)
    return mm.heads.SpanDenoisingHead(dim=dim, channels=CHANNELS, sampler=sampler, **options)


def replies(*, whole: bool, input: str = "latents") -> mm.generation.VectorGrammar:
    """One image, as a whole or latent by latent, and then text."""
    block = mm.generation.VectorBlock(begin=BEGIN, end=END, size=SIZE, head="image", input=input, whole=whole)
    return mm.generation.VectorGrammar(block, vocab_size=TEXT.vocab_size, stop=(STOP,))


def of_latents(values: Tensor) -> Segment:
    """Latents that a head is to write."""
    return mm.vectors(values, input="latents", target="image")


def seen_latents(values: Tensor) -> Segment:
    """Latents that are read alone."""
    return mm.vectors(values, input="latents", bidirectional=True)


def framed(written: Callable[[Tensor], Segment], read: Callable[[Tensor], Segment] | None = None) -> tuple[Framed, Framed]:
    """An image that the model begins by itself, and one that is begun for it, between the ids that open and close it."""

    def between(target: str | None, image: Callable[[Tensor], Segment], values: Tensor) -> list[Segment]:
        return [mm.text([BEGIN], target=target), image(values), mm.text([END])]

    return partial(between, "text", written), partial(between, None, read or written)
