"""Emu3's and Emu3.5's prompts, sizes and settings, and their way of spelling special ids.

guidance, image_area, sampling, *_ = EMU35_TASKS["t2i"]
prompt = fill_template(emu35_template("t2i"), question="a shiba inu", format=EMU35)
"""

import math
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from mmblocks.generation.choosing import ModalSampling
from mmblocks.generation.guidance import ClassifierFree
from mmblocks.generation.options import Generation
from mmblocks.layers.categorical import Sampling
from mmblocks.sequence.segments import Codes, Segment, Text, codes, text
from mmblocks.vocabulary.grid_format import EMU3, EMU35, GridFormat

FIRST_SPECIAL = 151643
"""Ids below are those of text; the 205 extra ids and six more special ones follow, then the visual codes."""

_FIRST_EXTRA, _NUM_EXTRA = 151646, 205
_NAMES = {
    **dict(zip(range(FIRST_SPECIAL, _FIRST_EXTRA), ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), strict=True)),
    **{_FIRST_EXTRA + index: f"<|extra_{index}|>" for index in range(_NUM_EXTRA)},
    **dict(zip(range(151851, 151854), ("<|image token|>", "<|image start|>", "<|image end|>"), strict=True)),
}
SPECIAL_IDS = {name: index for index, name in _NAMES.items()}
"""Special tokens of text by name; the visual codes follow."""
_SPECIAL = re.compile(r"<\|(?:endoftext|im_start|im_end|image token|image start|image end|extra_\d+|visual token \d+)\|>")

EMU3_UNDERSTANDING = "<|extra_203|>You are a helpful assistant. USER: <|IMAGE|>{question}. ASSISTANT:"
"""Emu3-Chat about an image; the dot after the question is the template's."""

EMU3_STAGE1_UNDERSTANDING = "<|extra_203|><|IMAGE|>{question}"
"""Emu3-Stage1 about an image."""

EMU3_GENERATION = "<|extra_203|>{question}"
"""Emu3-Gen, before the head of the image (``GridFormat.head``) or, in training, the image itself."""

EMU35_UNCONDITIONAL = "<|extra_203|>You are a helpful assistant. USER: <|IMAGE|> ASSISTANT: <|extra_100|>"
"""Emu3.5 without its task and question; reference images stay."""

EMU35_SIZES = {
    "1:1": (64, 64),
    "4:3": (55, 73),
    "3:4": (73, 55),
    "16:9": (47, 85),
    "9:16": (85, 47),
    "21:9": (41, 97),
    "3:2": (52, 78),
    "2:3": (78, 52),
    "default": (55, 73),
    "auto": None,
}
"""Emu3.5: aspect (width to height) -> (height, width) in tokens; None lets the model choose."""


class Emu35Task(NamedTuple):
    """Emu3.5's published settings for a task.

    Attributes:
        guidance: scale of ``ClassifierFree(images_only=True)``.
        image_area: to which reference images are resized, in pixels; ``IBQ``'s argument.
        sampling: how text and images are sampled.
        max_tokens: tokens at most.
    """

    guidance: float
    image_area: int
    sampling: ModalSampling
    max_tokens: int

    @property
    def options(self) -> Generation:
        """The settings for ``generate``."""
        guidance = ClassifierFree(scale=self.guidance, images_only=True)
        return Generation(max_tokens=self.max_tokens, sampling=self.sampling, guidance=guidance)


_TEXT, _TEXT_OF_GUIDES = Sampling(top_k=1024, top_p=0.9), Sampling(temperature=0.7, top_k=200, top_p=0.8)
_LARGE, _INTERLEAVED = Sampling(top_k=5120, top_p=1.0), Sampling(top_k=10240, top_p=1.0)
_GENERAL = Emu35Task(3.0, 518400, ModalSampling(text=_TEXT, image=_INTERLEAVED), 32768)


EMU35_TASKS = {
    "t2i": Emu35Task(5.0, 1048576, ModalSampling(text=_TEXT, image=_LARGE), 5120),
    "x2i": Emu35Task(3.0, 1048576, ModalSampling(text=_TEXT, image=_LARGE), 5120),
    "howto": Emu35Task(3.0, 518400, ModalSampling(text=_TEXT_OF_GUIDES, image=_INTERLEAVED), 32768),
    "story": _GENERAL,
    "explore": _GENERAL,
    "vla": _GENERAL,
}
"""Emu3.5's tasks: text to image, images to image, how-to guides, stories, exploring a world, and acting in it.

The last two have no config file of their own; their settings are those of the general one."""

Emu35Config = Literal["config", "t2i", "x2i", "howto", "story"]
"""Emu3.5's config files: ``config.py``, which is for any task, and the examples for one."""


def emu35_template(task: str, *, config: Emu35Config | None = None) -> str:
    """Emu3.5's prompt for a task, with ``<|IMAGE|>`` where reference images stand; without any the place stays empty.

    Args:
        task: one of ``EMU35_TASKS``, in letters of either case.
        config: the config file whose template it is. The example for images to image puts the images before the question, that for
            guides adds a sentence where the task is its own; the others are alike. None: the task's own file.

    Raises:
        ValueError: for an unknown task or config file.
    """
    name = task.lower()
    if name not in EMU35_TASKS:
        raise ValueError(f"task is {task!r}; accepted: {', '.join(EMU35_TASKS)}")
    if config is not None and config not in get_args(Emu35Config):
        raise ValueError(f"config is {config!r}; accepted: None, {', '.join(get_args(Emu35Config))}")
    file = config or name
    more = " Please generate a response with interleaved text and images." if name == file == "howto" else ""
    content = "<|IMAGE|>{question}" if file == "x2i" else "{question}<|IMAGE|>"
    return f"<|extra_203|>You are a helpful assistant for {name} task.{more} USER: {content} ASSISTANT: <|extra_100|>"


def emu3_size(width: int, height: int, *, area: int = 518400, downsampling: int = 8) -> tuple[int, int]:
    """(height, width) in tokens of an Emu3 image with this aspect and about this area in pixels.

    Raises:
        ValueError: for numbers below one.
    """
    if min(width, height, area, downsampling) < 1:
        raise ValueError(f"width:height is {width}:{height}, area {area}, downsampling {downsampling}; accepted: 1 or more each")
    unit = math.sqrt(area / (width * height))
    return round(height * unit / downsampling), round(width * unit / downsampling)


def fill_template(
    template: str, *, question: str = "", images: Sequence[Int[Tensor, "_ _"]] = (), format: GridFormat = EMU3
) -> list[Segment]:
    """A prompt as segments: text as it stands, special tokens as ids, each image at its placeholder.

    Args:
        template: with ``{question}`` and ``<|IMAGE|>``, such as those above.
        question: the user's text. Special tokens spelled in it are special, as upstream has it.
        images: grids of codes. Several at the only placeholder stand there one after the other.
        format: how images are written.

    Raises:
        ValueError: images for which there is no placeholder, placeholders for which there is no image, or an unknown special
            token.
    """
    parts = template.replace("{question}", question).split("<|IMAGE|>")
    places = len(parts) - 1
    if (places > 1 and places != len(images)) or (images and not places):
        raise ValueError(f"{len(images)} images for {places} placeholders <|IMAGE|>; accepted: one each, or any number for one")
    at_place = [list(images)] if places == 1 else [[image] for image in images]
    segments: list[Segment] = [*_spelled(parts[0])]
    for grids, part in zip(at_place, parts[1:], strict=True):
        segments += [codes(grid, format) for grid in grids]
        segments += _spelled(part)
    return segments


def token_name(token: int) -> str:
    """How an id that is no text is spelled, such as ``<|image start|>`` or ``<|visual token 000123|>``.

    Raises:
        ValueError: for ids of text.
    """
    if token < FIRST_SPECIAL:
        raise ValueError(f"token is {token}; accepted: {FIRST_SPECIAL} or more, the ids that are no text")
    return _NAMES.get(token) or f"<|visual token {token - EMU3.codes.start:06d}|>"


def token_id(name: str) -> int:
    """The id of a special or visual token by its spelling.

    Raises:
        ValueError: for a name that neither Emu3 nor Emu3.5 has.
    """
    if name in SPECIAL_IDS:
        return SPECIAL_IDS[name]
    found = re.fullmatch(r"<\|visual token (\d{6,})\|>", name)
    if found is None or int(found[1]) >= EMU35.codes.num_ids:
        raise ValueError(f"name is {name!r}; accepted: a special token of Emu3, such as <|image start|> or <|extra_200|>")
    return EMU3.codes.start + int(found[1])


def spell(segments: Sequence[Segment], format: GridFormat = EMU3) -> str:
    """Segments as the one string that upstream's processors build.

    Raises:
        TypeError: for segments that are neither text nor codes.
    """
    spelled = ""
    for segment in segments:
        if isinstance(segment, Text):
            content = segment.content
            spelled += content if isinstance(content, str) else "".join(token_name(i) for i in content)
        elif isinstance(segment, Codes):
            ids = format.write(segment.grid).ids.tolist()
            size = dict(zip((*format.digits, format.times), "0123456789*", strict=True))
            spelled += "".join(size[i] if i in size else token_name(i) for i in ids)
        else:
            raise TypeError(f"segments hold {type(segment).__name__}; accepted: text and codes")
    return spelled


_AROUND_IMAGE = ("<|image start|>", "<|image end|>")
_THOUGHTS = {"global_cot": ("<|extra_60|>", "<|extra_61|>"), "image_cot": ("<|extra_50|>", "<|extra_51|>")}
_PIECES = re.compile(
    "(" + "|".join(f"{re.escape(begin)}.*?{re.escape(end)}" for begin, end in (*_THOUGHTS.values(), _AROUND_IMAGE)) + ")", re.DOTALL
)


def read_document(document: str) -> list[tuple[str, str | Int[Tensor, "H W"]]]:
    """What a model wrote, as a string, in pieces of several kinds.

    ("text", string), ("image", codes), and of Emu3.5 ("global_cot", string) for its plan and ("image_cot", string) for its
    thoughts on an image. Left out, as upstream leaves them out: blank text, the ids that end an answer, an image without codes or
    with rows of several lengths, and what lies between the piece before and the end of one that holds an image that is broken off.
    """
    pieces: list[tuple[str, str | Tensor]] = []
    for piece in _PIECES.split(document.replace("<|extra_101|>", "").replace("<|extra_204|>", "")):
        if all(mark in piece for mark in _AROUND_IMAGE):  # within thoughts too, whose text is lost then
            rows = [re.findall(r"<\|visual token (\d+)\|>", row) for row in piece.split("<|extra_200|>")]
            codes_by_row = [[int(code) for code in row] for row in rows if row]
            if len({len(row) for row in codes_by_row}) == 1:
                pieces.append(("image", torch.tensor(codes_by_row)))
            continue
        thoughts = [kind for kind, marks in _THOUGHTS.items() if all(mark in piece for mark in marks)]
        if thoughts:
            begin, end = _THOUGHTS[thoughts[0]]
            pieces.append((thoughts[0], piece.replace(begin, "").replace(end, "")))
        elif piece.strip() and _AROUND_IMAGE[0] not in piece:
            pieces.append(("text", piece))
    return pieces


def _spelled(part: str) -> list[Segment]:
    """Text with special tokens as segments."""
    segments: list[Segment] = []
    end = 0
    for match in _SPECIAL.finditer(part):
        segments += [text(part[end : match.start()])] if match.start() > end else []
        segments.append(text([token_id(match[0])]))
        end = match.end()
    return [*segments, text(part[end:])] if end < len(part) else segments
