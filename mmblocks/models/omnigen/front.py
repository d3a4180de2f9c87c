"""OmniGen's front: images of texts, and of texts with images in them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image as PILImages
from PIL.Image import Image as PILImage

from mmblocks.generation.guidance import ClassifierFree, Guidance, ThreeWay
from mmblocks.generation.options import Generation
from mmblocks.layers.diffusion.denoising_samplers import DiffusersSampler
from mmblocks.layers.diffusion.rectified_flow import RectifiedFlow
from mmblocks.models.omnigen.prompt import one_image
from mmblocks.prompts.fronts import LatentReader, check_images, decoded, tokens_of
from mmblocks.prompts.messages import Turn
from mmblocks.prompts.request import Components, Request
from mmblocks.sequence.batches import Sample
from mmblocks.sequence.segments import Segment, text, vectors
from mmblocks.support.pictures import pixels_of, rgb_of
from mmblocks.vocabulary.spelling import Part, Structure, encode_parts, opening_ids

_PLACE = re.compile(r"<img><\|image_(\d+)\|></img>")
"""Where an image stands in a prompt, and which."""

_NEGATIVE = (
    "low quality, jpeg artifacts, ugly, duplicate, morbid, mutilated, extra fingers, mutated hands, poorly drawn hands, "
    "poorly drawn face, mutation, deformed, blurry, dehydrated, bad anatomy, bad proportions, extra limbs, cloned face, "
    "disfigured, gross proportions, malformed limbs, missing arms, missing legs, extra arms, extra legs, fused fingers, "
    "too many fingers."
)

Piece = str | PILImage
"""Of a prompt: a user's text, or a picture."""


@dataclass(frozen=True, kw_only=True)
class OmniGenFront:
    """OmniGen: an image of a text, or of a text in which images stand.

    In the prompt of ``edit``, ``<img><|image_1|></img>`` is where the first picture stands, and may stand there more than once. A
    prompt without any such place has all pictures before it, as the authors advise for editing. All else is text.

    Attributes:
        before, after: what surrounds the prompt.
        picture: what surrounds each picture, which stands at ``{}``.
        negative: the prompt of the stream without the condition.
        size: (height, width) in pixels of an image of a text, and of one of several pictures.
        step: pixels a side of a token.
        patch_size: latents a side of a token.
        largest: the longest side in pixels for which the model has positions.
        input_size: the longest side in pixels of pictures that are read; larger ones are scaled down.
        max_images: pictures of a prompt; None for any number.
        guidance: scale of the text.
        image_guidance: of the pictures.
        num_steps: of the sampler.

    Pictures are read as the mode of their latents, where the authors' code draws a sample of the autoencoder's narrow normal
    distributions. The guidance is that of the published examples; the default of the authors' code is 3.

    Source: OmniGen (arXiv 2409.11340; VectorSpaceLab/OmniGen).

    Examples:
        >>> from mmblocks.models import OmniGenFront
        >>> OmniGenFront(num_steps=20).size
        (1024, 1024)
    """

    before: str = "<|user|>\nGenerate an image according to the following instructions\n"
    after: str = "<|end|>\n<|assistant|>\n<|diffusion|>"
    picture: str = "<img>{}</img>"
    negative: str = _NEGATIVE
    size: tuple[int, int] = (1024, 1024)
    step: int = 16
    patch_size: int = 2
    largest: int = 3072
    input_size: int = 1024
    max_images: int | None = None
    guidance: float = 2.5
    image_guidance: float = 1.6
    num_steps: int = 50

    def generate_image(
        self, components: Components, prompt: str, *, size: tuple[int, int] | None, negative_prompt: str | None
    ) -> Request:
        """An image of that size."""
        if found := _PLACE.search(prompt):
            raise ValueError(f"prompt holds {found[0]}, and there are no pictures; accepted: text, or edit with pictures")
        negative = self.negative if negative_prompt is None else negative_prompt
        streams = [self._spelled(components, [words]) for words in (prompt, negative)]
        return self._request(streams, size or self.size, ClassifierFree(scale=self.guidance))

    def edit(self, components: Components, pictures: Sequence[PILImage], prompt: str, *, size: tuple[int, int] | None) -> Request:
        """An image of the size of the only picture as it is read, of ``size`` of the front for several, or of the one given."""
        check_images([Turn("user", tuple(pictures))], self.max_images)
        fitted = [fitted_to(picture, self.input_size, self.step) for picture in pictures]
        if size is None:
            size = (fitted[0].height, fitted[0].width) if len(fitted) == 1 else self.size
        alone = [piece for picture in fitted for piece in (picture, " ")][:-1]
        streams = [self._spelled(components, pieces) for pieces in (_placed(prompt, fitted), alone, [self.negative])]
        guidance = ThreeWay(scale=self.guidance, image_scale=self.image_guidance, images_only=False)
        return self._request(streams, size, guidance)

    def training_sample(self, components: Components, turns: Sequence[Turn]) -> Sample:
        """A user's text and pictures, and the assistant's picture, whose noised latents are learned."""
        if [turn.role for turn in turns] != ["user", "assistant"] or [*map(type, turns[1].content)] == [str]:
            raise ValueError("the messages are not a user's and the assistant's picture; accepted of this model: these two")
        check_images(turns[:1], self.max_images)
        pieces = [piece if isinstance(piece, str) else fitted_to(piece, self.input_size, self.step) for piece in turns[0].content]
        (made,) = turns[1].pictures
        latents = LatentReader(components)(pixels_of(fitted_to(made, self.input_size, self.step)))
        return [*self._spelled(components, pieces), vectors(latents, input="noised", target="image")]

    def pictures(self, components: Components, segment: Segment) -> list[PILImage]:
        """The picture that latents stand for."""
        return decoded(components, segment)

    def _request(self, streams: Sequence[Sample], size: tuple[int, int], guidance: Guidance) -> Request:
        """An image of so many pixels, guided against the later streams."""
        rows, columns = tokens_of(size, self.step)
        if max(size) > self.largest:
            raise ValueError(f"size is {size[0]}x{size[1]} pixels; accepted: sides of at most {self.largest}")
        grammar = one_image((rows * self.patch_size, columns * self.patch_size))
        options = Generation(guidance=guidance, writing={"image": {"sampler": _sampler(self.num_steps)}})
        return Request(streams[0], grammar, options, tuple(streams[1:]))

    def _spelled(self, components: Components, pieces: Sequence[Piece]) -> list[Segment]:
        """A prompt as published code spells it: what stands between two pictures is encoded by itself."""
        opening, closing = self.picture.split("{}")
        runs: list[list[Part]] = [[Structure(self.before)]]
        read: list[Segment] = []
        reader = LatentReader(components)
        for piece in pieces:
            if isinstance(piece, str):
                runs[-1].append(piece)
                continue
            runs[-1].append(Structure(opening))
            runs.append([Structure(closing)])
            read.append(vectors(reader(pixels_of(piece)), input="vision", bidirectional=True))
        runs[-1].append(Structure(self.after))
        ids = [[i for part in encode_parts(components.text_tokenizer, run) for i in part] for run in runs]
        ids[0] = [*opening_ids(components.text_tokenizer), *ids[0]]
        segments: list[Segment] = [text(ids[0])]
        for latents, own in zip(read, ids[1:], strict=True):
            segments += [latents, text(own)]
        return segments


def fitted_to(picture: PILImage, largest: int, step: int) -> PILImage:
    """A picture as OmniGen reads it: scaled where a side is too long or too short, and cropped at the centre to whole tokens."""
    picture = rgb_of(picture)
    while min(picture.size) >= 2 * largest:
        picture = picture.resize((picture.width // 2, picture.height // 2), PILImages.Resampling.BOX)
    if max(picture.size) > largest:
        picture = _scaled(picture, largest / max(picture.size))
    if min(picture.size) < step:
        picture = _scaled(picture, step / min(picture.size))
    left, top = picture.width % step // 2, picture.height % step // 2
    return picture.crop((left, top, left + picture.width // step * step, top + picture.height // step * step))


def _scaled(picture: PILImage, factor: float) -> PILImage:
    width, height = (round(side * factor) for side in picture.size)
    return picture.resize((width, height), PILImages.Resampling.BICUBIC)


def _placed(prompt: str, pictures: Sequence[PILImage]) -> list[Piece]:
    """Text, and pictures where the prompt has places for them, or before it."""
    split = _PLACE.split(prompt)
    named = [int(number) for number in split[1::2]]
    if not named:
        return [piece for picture in pictures for piece in (picture, " ")] + [prompt]
    if {*named} != {*range(1, len(pictures) + 1)}:
        wanted = ", ".join(f"<img><|image_{number}|></img>" for number in range(1, len(pictures) + 1))
        raise ValueError(f"prompt has places for pictures {sorted({*named})}; accepted: none, or {wanted}, each at least once")
    pieces: list[Piece] = [*split[:1]]
    for number, words in zip(named, split[2::2], strict=True):
        pieces += [pictures[number - 1], words]
    return [piece for piece in pieces if piece != ""]


@lru_cache
def _sampler(num_steps: int) -> DiffusersSampler:
    """One object for one number, so that requests share batches."""
    return RectifiedFlow.sampler(num_steps)
