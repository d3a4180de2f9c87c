"""Samples without their conditions, now and then: what guidance is learned from."""

import random
from collections.abc import Sequence

from mmblocks.sequence.segment_kinds import Segment

Dropout = float | Sequence[float]
"""A chance for all that is only read, or one for each such segment in order."""


def drop_conditions(sample: Sequence[Segment], chance: Dropout, rng: random.Random, *, keep: int = 0) -> list[Segment]:
    """The sample, with what is only read left out by chance: the prompt as a whole, or each of its segments by itself.

    Segments that are learned stay, and with them what stands right before them where ``keep`` says so, such as the id that opens an
    image.

    Args:
        sample: segments in reading order.
        chance: for all that is only read together, or one for each such segment, as where text and images are left out apart.
        rng: source of randomness: of the worker that loads the data.
        keep: how many of the segments that are only read always stay, counted from the last.

    Raises:
        ValueError: a chance outside of [0, 1], or another number of chances than of segments that may be left out.

    Examples:
        >>> import random
        >>> from mmblocks import text
        >>> from mmblocks.sequence import drop_conditions
        >>> sample = [text("a seven: "), text([7]), text([8, 9], target="text")]
        >>> len(drop_conditions(sample, 0.0, random.Random(0))), len(drop_conditions(sample, 1.0, random.Random(0), keep=1))
        (3, 2)
    """
    read = [index for index, segment in enumerate(sample) if segment.target is None]
    read = read[: len(read) - keep] if keep else read
    chances = [chance] * len(read) if isinstance(chance, int | float) else list(chance)
    if len(chances) != len(read):
        raise ValueError(
            f"chance has {len(chances)} numbers; accepted: {len(read)}, as many segments may be left out, or one for all"
        )
    if not all(0 <= one <= 1 for one in chances):
        raise ValueError(f"chance is {chance}; accepted: numbers in [0, 1]")
    together = rng.random()
    drawn = [together if isinstance(chance, int | float) else rng.random() for _ in read]
    left_out = {index for index, one, limit in zip(read, drawn, chances, strict=True) if one < limit}
    return [segment for index, segment in enumerate(sample) if index not in left_out]
