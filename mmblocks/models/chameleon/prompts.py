"""How Chameleon, Anole and Lumina-mGPT are prompted, as data: ids, templates, sizes, and the settings of their own code."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mmblocks.generation.choosing import ModalSampling
from mmblocks.generation.guidance import ClassifierFree, Guidance, ThreeWay
from mmblocks.layers.categorical import Sampling
from mmblocks.sequence.segments import Codes, Segment, Text, text
from mmblocks.vocabulary.code_ids import CodeIds
from mmblocks.vocabulary.grid_format import GridFormat, chameleon_format

CHAMELEON_IDS = {
    "<s>": 0,
    "<pad>": 1,
    "</s>": 2,
    "<eoss>": 8196,
    "<racm3:break>": 8197,
    "<reserved08706>": 8710,
    "<reserved08707>": 8711,
    "<reserved08799>": 8803,
}
"""Structure by name: the begin and the end of a text, the end and the begin of an image, the end of a turn, transformers' place for
an image, and Lumina-mGPT's end of a row. Ids 4 to 8195 are codes; see ``chameleon_code_ids`` for which is which."""

_LARGEST_SIDE = 64
"""Squares of 32 pixels along a side of Lumina-mGPT's largest images: four to one, for 1024 pixels."""


def lumina_mgpt_format(code_ids: CodeIds) -> GridFormat:
    """Lumina-mGPT's format: one id each for height and width, in steps of two codes, and an id after each row.

    Args:
        code_ids: as for ``chameleon_format``.

    Source: Lumina-mGPT (arXiv 2408.02657; Alpha-VLLM/Lumina-mGPT).

    Examples:
        >>> import torch
        >>> from mmblocks.models.chameleon.prompts import lumina_mgpt_format
        >>> from mmblocks.vocabulary import CodeIds
        >>> form = lumina_mgpt_format(CodeIds(sizes=(8192,), first=4))
        >>> form.write(torch.zeros(2, 4, dtype=torch.long)).ids.tolist()
        [8197, 8805, 8806, 4, 4, 4, 4, 8803, 4, 4, 4, 4, 8803, 8196]
    """
    sides = tuple((2 * squares, 8804 + squares) for squares in range(1, _LARGEST_SIDE + 1))
    return GridFormat(begin=8197, row_end=8803, last_row_end=True, closing=(8196,), codes=code_ids, sides=sides)


def lumina_mgpt_sizes(target: int = 512, *, most: float = 4.0) -> tuple[tuple[int, int], ...]:
    """(height, width) in pixels of the images of Lumina-mGPT, whole squares of 32: about ``target`` squared in area.

    An image is cut to the size whose shape is nearest to its own: the one where ``width / own width`` and ``height / own height``
    have the largest quotient below one.

    Args:
        target: side of a square of the largest area, in pixels: 512, 768 or 1024.
        most: how often the shorter side goes into the longer one.

    Examples:
        >>> from mmblocks.models.chameleon.prompts import lumina_mgpt_sizes
        >>> lumina_mgpt_sizes(64)
        ((32, 128), (32, 96), (32, 64), (64, 64), (64, 32), (96, 32), (128, 32))
    """
    area, high, sizes = (target // 32) ** 2, 1, []
    for wide in range(area, 0, -1):
        highest = max(high, area // wide)
        sizes += [(own, wide) for own in range(high, highest + 1)]
        high = highest
    return tuple((32 * high, 32 * wide) for high, wide in sizes if max(high, wide) <= most * min(high, wide))


@dataclass(frozen=True, kw_only=True)
class ChameleonPrompt:
    """How a model of the family is prompted, and the settings of its own code.

    A prompt is ``bos``, then text and images, and ``turn_end`` after each turn; messages have no role words. Where an image is
    wanted at once, the id ``format.begin`` follows.

    Attributes:
        format: how images are written.
        text_to_image: what the user says to get an image, with ``{prompt}`` and perhaps ``{width}`` and ``{height}`` in pixels.
        guidance: of images.
        sampling: of text and of images.
        repetition_penalty: by which the authors' code divides the logits of text ids that were written; 1 for none.
        max_tokens: of a row, or of what is written.
        stop: ids that end a row.
        bos, pad, turn_end: ids.
        image_size: side, in pixels, of a square image; 0 where there are several sizes.

    Examples:
        >>> from mmblocks import text
        >>> from mmblocks.models.chameleon.prompts import CHAMELEON_PROMPT
        >>> CHAMELEON_PROMPT.turn_end, CHAMELEON_PROMPT.format.begin
        (8710, 8197)
        >>> [[one.content for one in sample] for sample in CHAMELEON_PROMPT.unconditional([text([0, 99, 8710, 8197])])]
        [[[0], [8197]], [[0], [8197]]]
    """

    format: GridFormat
    text_to_image: str
    guidance: Guidance
    sampling: ModalSampling
    repetition_penalty: float
    max_tokens: int
    stop: tuple[int, ...]
    bos: int = 0
    pad: int = 1
    turn_end: int = 8710
    image_size: int = 512

    def unconditional(self, prompt: Sequence[Segment]) -> list[list[Segment]]:
        """What each further stream of ``guidance`` reads in the place of a prompt.

        With three streams: images without text, then nothing; both after ``bos``. With two: the image that is begun alone, without
        ``bos``. Text that is written is read by neither, images by both; the authors' code lets its third stream forget an image
        when the next begins.

        Args:
            prompt: segments; ids where an image is begun, at the end.

        Raises:
            ValueError: two streams, and a prompt that begins no image.
        """
        last = prompt[-1] if prompt else None
        ids = [] if not isinstance(last, Text) or isinstance(last.content, str) else [int(i) for i in last.content]
        begun = [place for place, own in enumerate(ids) if own == self.format.begin][-1:]
        opened: list[Segment] = [text(ids[place:]) for place in begun]
        if self.guidance.num_streams == 2:
            if not opened:
                raise ValueError(f"prompt begins no image; accepted: one that ends with id {self.format.begin}, and perhaps a size")
            return [opened]
        images = [segment for segment in prompt if isinstance(segment, Codes)]
        return [[text([self.bos]), *images, *opened], [text([self.bos]), *opened]]

    def with_codes(self, code_ids: CodeIds) -> "ChameleonPrompt":
        """The same with the codes' own ids, which a text tokenizer says; see ``chameleon_code_ids``."""
        return replace(self, format=replace(self.format, codes=code_ids))


_ANY_ORDER = CodeIds(sizes=(8192,), first=4)
"""The ids of codes, not in their order: ``with_codes`` says it."""

_FREE = Sampling(temperature=0.7, top_p=0.9)

CHAMELEON_PROMPT = ChameleonPrompt(
    format=chameleon_format(_ANY_ORDER),
    text_to_image="{prompt}",
    guidance=ThreeWay(scale=3.0, image_scale=1.2),
    sampling=ModalSampling(text=_FREE, image=_FREE),
    repetition_penalty=1.2,
    max_tokens=4096,
    stop=(2,),
)
"""Chameleon's and Anole's. Source: facebookresearch/chameleon, GAIR-NLP/anole."""

LUMINA_MGPT_PROMPT = ChameleonPrompt(
    format=lumina_mgpt_format(_ANY_ORDER),
    text_to_image="Generate an image of {width}x{height} according to the following prompt:\n{prompt}",
    guidance=ClassifierFree(scale=3.0, images_only=True, normalise=False),
    sampling=ModalSampling(text=Sampling(top_k=10), image=Sampling(top_k=2000)),
    repetition_penalty=1.0,
    max_tokens=8192,
    stop=(8710,),
    image_size=0,
)
"""Lumina-mGPT's. Guidance begins with the first code: the size is written unguided. Source: Alpha-VLLM/Lumina-mGPT."""
