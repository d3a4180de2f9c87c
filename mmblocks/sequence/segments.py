"""What a sample is made of: text, images, grids of codes and rows of vectors, in the order in which they are read.

    [text("what is this? "), image(pixels), text("a seven", target="text")]

A segment's ``target`` names the head that learns to produce it, or None where it is only read. Each segment turns into
a ``Piece``: its tokens' columns of the token table, and what is to be embedded for them.
"""

from collections.abc import Mapping, Sequence
from numbers import Integral, Real

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmblocks.sequence.pieces import NO_ID as NO_ID
from mmblocks.sequence.segment_kinds import Codes as Codes
from mmblocks.sequence.segment_kinds import Image as Image
from mmblocks.sequence.segment_kinds import Label as Label
from mmblocks.sequence.segment_kinds import Segment as Segment
from mmblocks.sequence.segment_kinds import Text as Text
from mmblocks.sequence.segment_kinds import Vectors as Vectors
from mmblocks.sequence.tokens import Modality
from mmblocks.support.pictures import Picture, picture_of
from mmblocks.vocabulary.depth_code_format import DepthCodeFormat
from mmblocks.vocabulary.grid_format import GridFormat


def text(content: str | Sequence[int], *, target: str | None = None, input: str = "text", weight: float = 1.0) -> Text:
    """Text, or token ids (special tokens, say).

    Args:
        content: a string, which the batch builder's tokenizer encodes, or ids.
        target: the head that learns to write it; None where it is only read.
        input: the embedder that reads it.
        weight: of its losses.

    Raises:
        ValueError: a weight that is negative or not finite.

    Examples:
        >>> from mmblocks import BatchBuilder, ByteTokenizer, text
        >>> builder = BatchBuilder(tokenizer=ByteTokenizer(), heads=("lm",))
        >>> batch = builder([[text("7? "), text("yes", target="lm")]])
        >>> bytes(batch.targets["lm"].values.tolist()).decode()
        'yes'
    """
    return Text(content, target, input, _checked_weight(weight))


def image(
    pixels: Float[Tensor, "*T C H W"] | Picture,
    *,
    input: str = "vision",
    target: str | None = None,
    bidirectional: bool = False,
    modality: int = Modality.VISION,
    weight: float = 1.0,
    given: Mapping[str, Tensor | float] | None = None,
) -> Image:
    """An image for an embedder to read, or for a head of whole images to write.

    Args:
        pixels: RGB in [0, 1], of a size that the embedder takes; also of one channel, such as depth, and clips (T, C, H, W), for
            embedders that read them. Or a picture as people have it: a PIL image, the path of a file or its bytes, or uint8, which
            goes through the ``preprocess`` of the part that reads it.
        input: the embedder that reads it.
        target: the head that learns to write it, which then says what is read in its place; None where it is only read.
        bidirectional: whether its tokens see each other, or only those before.
        modality: what its tokens stand for: a ``Modality``, or another whole number of one's own.
        weight: of its losses.
        given: by name, what the head is told of it beside, such as a class.

    Raises:
        FileNotFoundError: no such file.
        TypeError: something that is no picture.
        ValueError: a file that is no image; or pixels that are not (3, H, W), (1, H, W) or clips of these, hold no pixel, or lie
            outside [0, 1] (NaN included); a weight that is negative or not finite; a modality below 0.

    Examples:
        >>> import torch
        >>> from mmblocks import BatchBuilder, TextEmbedding, image, text
        >>> from mmblocks.embedders import NEOPatchEmbedding
        >>> embedders = {"text": TextEmbedding(vocab_size=16, dim=8), "vision": NEOPatchEmbedding(dim=8, hidden_dim=16)}
        >>> batch = BatchBuilder(inputs=embedders)([[text([1]), image(torch.rand(3, 32, 64), bidirectional=True)]])
        >>> batch.table.order.tolist()  # both patches are one step
        [[0, 1, 1]]
    """
    said = _given(given)
    modality, weight = _checked_modality(modality), _checked_weight(weight)
    if not isinstance(pixels, Tensor) or not pixels.is_floating_point():
        return Image(picture_of(pixels, "pixels"), input, bidirectional, target, modality, weight, said)
    if pixels.ndim not in (3, 4) or pixels.shape[-3] not in (1, 3) or 0 in pixels.shape:
        accepted = "(3, H, W), (1, H, W) or clips (T, 3, H, W), with sides of at least 1"
        raise ValueError(f"pixels have shape {tuple(pixels.shape)}; accepted: {accepted}")
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"pixels lie in [{low:g}, {high:g}]; accepted: [0, 1]")
    return Image(pixels, input, bidirectional, target, modality, weight, said)


def codes(
    grid: Int[Tensor, "*size_and_q"],
    format: GridFormat | DepthCodeFormat | None = None,
    *,
    target: str | None = None,
    structure: bool = False,
    input: str = "text",
    bidirectional: bool = False,
    modality: int = Modality.VISION,
    weight: float = 1.0,
    given: Mapping[str, Tensor | float] | None = None,
) -> Codes:
    """A visual tokenizer's codes, written as token ids of a shared vocabulary.

    Args:
        grid: code indices.
        format: how the vocabulary writes an image; None where its embedder reads the codes themselves, row by row and with nothing
            around them.
        target: the head that learns to write the codes; None where they are only read.
        structure: whether it also learns the ids around them (size, row ends, closing), as a model must that decides
            itself when to write an image and how large.
        input: the embedder that reads the ids.
        bidirectional: whether codes that are only read, without a format, see each other, or only those before.
        modality: what the codes stand for: a ``Modality``, or another whole number of one's own.
        weight: of their losses.
        given: by name, what the head is told of them beside, such as a class.

    Raises:
        ValueError: without a format, a grid of no axis or of more than three, or without codes; ``bidirectional`` with a format; a
            weight that is negative or not finite; a modality below 0.

    Examples:
        >>> import torch
        >>> from mmblocks import BatchBuilder, codes
        >>> from mmblocks.vocabulary import raster_format
        >>> grid = torch.tensor([[5, 6, 7], [8, 9, 10]])
        >>> batch = BatchBuilder(heads=("lm",))([[codes(grid, raster_format(2, 3, 16), target="lm")]])
        >>> batch.ids.tolist(), batch.targets["lm"].values.tolist()  # nothing predicts a sample's first token
        ([[5, 6, 7, 8, 9, 10]], [6, 7, 8, 9, 10])
    """
    if format is None and (not 1 <= grid.ndim <= 3 or 0 in grid.shape):
        raise ValueError(f"grid has shape {tuple(grid.shape)}; accepted without a format: (N,), (H, W) or (T, H, W)")
    if format is not None and bidirectional:
        raise ValueError("bidirectional is True and a format is given; accepted: either")
    said = _given(given)
    weight, modality = _checked_weight(weight), _checked_modality(modality)
    return Codes(grid, format, target, structure, input, modality, weight, said, bidirectional)


def vectors(
    values: Float[Tensor, "*grid D"],
    *,
    input: str,
    target: str | None = None,
    bidirectional: bool = False,
    modality: int = Modality.VISION,
    order: Int[Tensor, " N"] | None = None,
    weight: float = 1.0,
    given: Mapping[str, Tensor | float] | None = None,
) -> Vectors:
    """Continuous tokens: latents or features that are read as they are, and that a head may learn to write.

    Args:
        values: (N, D), (H, W, D) or (T, H, W, D).
        input: the embedder that reads the (N, D) rows.
        target: the head that learns to write them.
        bidirectional: whether they see each other, or only those before.
        modality: what they stand for: a ``Modality``, or another whole number of one's own.
        order: which vector comes first, which next, and so on, counted row by row; row by row if None.
        weight: of their losses. What a head of whole spans would learn with 0 is read clean, and not noised.
        given: by name, what the head is told of them beside, such as a class.

    Raises:
        ValueError: if the shape is none of these, or a value is not finite; an order that is no permutation; a weight that is
            negative or not finite; a modality below 0.

    Examples:
        >>> import torch
        >>> from mmblocks import BatchBuilder, vectors
        >>> batch = BatchBuilder()([[vectors(torch.randn(2, 2, 8), input="latents")]])
        >>> tuple(batch.inputs["latents"].values.shape), batch.table.grid[0].tolist()
        ((4, 8), [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]])
    """
    if not 2 <= values.ndim <= 4 or 0 in values.shape:
        raise ValueError(f"values have shape {tuple(values.shape)}; accepted: (N, D), (H, W, D) or (T, H, W, D)")
    if not values.isfinite().all():
        raise ValueError("values hold NaN or infinity; accepted: finite numbers")
    count = values[..., 0].numel()
    if order is not None and order.sort().values.tolist() != list(range(count)):
        raise ValueError(f"order has {len(order)} places; accepted: each of 0 to {count - 1} once")
    said = _given(given)
    return Vectors(values, input, target, bidirectional, _checked_modality(modality), order, _checked_weight(weight), said)


def label(value: Tensor | float, *, target: str, of: str = "last", weight: float = 1.0) -> Label:
    """What a head learns from what stands before it in a sample: a class, whether two match, an embedding. It takes no token.

    Args:
        value: one label: a number, or a vector.
        target: the head.
        of: "last" for the state of the token before, "mean" for the mean of the states of all tokens before.
        weight: of its loss.

    Raises:
        ValueError: another ``of``, or a weight that is negative or not finite.

    Examples:
        >>> import torch
        >>> from mmblocks import BatchBuilder, label, text
        >>> batch = BatchBuilder(heads=("matches",))([[text([1, 2, 3]), label(1, target="matches")]])
        >>> batch.targets["matches"].values.tolist(), batch.targets["matches"].places.tolist()
        ([1], [2])
    """
    if of not in ("last", "mean"):
        raise ValueError(f"of is {of!r}; accepted: 'last', 'mean'")
    return Label(torch.as_tensor(value), target, of, _checked_weight(weight))


def _checked_weight(weight: float) -> float:
    if not isinstance(weight, Real) or not 0 <= weight < float("inf"):
        raise ValueError(f"weight is {weight!r}; accepted: a finite number of 0 or more")
    return float(weight)


def _checked_modality(modality: int) -> int:
    if not isinstance(modality, Integral) or modality < 0:
        raise ValueError(f"modality is {modality!r}; accepted: a Modality, or another whole number of 0 or more")
    return int(modality)


def _given(given: Mapping[str, Tensor | float] | None) -> dict[str, Tensor]:
    return {name: torch.as_tensor(value) for name, value in (given or {}).items()}
