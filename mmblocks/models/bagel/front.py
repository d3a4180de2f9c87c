"""BAGEL's front: answers about images, images of texts, and images of images, with or without thinking first."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from PIL.Image import Image as PILImage
from PIL.Image import Resampling
from torch import Tensor

from mmblocks.generation.continuous import VectorBlock, VectorGrammar
from mmblocks.generation.grammar import Grammar, TextGrammar
from mmblocks.generation.options import Generation
from mmblocks.generation.text_then_span import TextThenSpan
from mmblocks.generation.timed_guidance import NestedGuidance
from mmblocks.heads.framed_spans import FramedDenoisingHead
from mmblocks.layers.diffusion.straight_flow import StraightFlow
from mmblocks.layers.images.pixels import pixels_of
from mmblocks.layers.images.resizing import fit_edges, rgb_on_white
from mmblocks.models.bagel.model import LATENTS
from mmblocks.models.bagel.prompt import BagelPrompt
from mmblocks.prompts.fronts import frames_of, image_tokenizer_of, vocab_size
from mmblocks.prompts.messages import Turn
from mmblocks.prompts.request import Components, Request, multimodal
from mmblocks.sequence.batches import Sample
from mmblocks.sequence.segments import Segment, Vectors, image, text, vectors
from mmblocks.vocabulary.spelling import Structure, encode_parts, special_id

_sampler = lru_cache(16)(StraightFlow.sampler)
"""One sampler for requests of the same steps, so that they share batches."""


@dataclass(frozen=True, kw_only=True)
class BagelFront:
    """BAGEL: conversations about images, images of texts, and edited images.

    Attributes:
        prompt: what surrounds the words, and the published settings.
        think: whether the model thinks before it answers or draws. What it thinks is part of a ``Reply``'s text.
        sample_latents: whether the latents of input images are a draw of the autoencoder's distribution, as upstream, so that a
            request's seed does not decide everything; otherwise they are its mean.

    Source: ByteDance-Seed/Bagel.

    Examples:
        >>> from mmblocks.models import BagelFront
        >>> BagelFront(think=True).prompt.max_thoughts
        1023
    """

    prompt: BagelPrompt = field(default_factory=BagelPrompt)
    think: bool = False
    sample_latents: bool = False

    def chat(self, components: Components, turns: Sequence[Turn]) -> Request:
        """The answer to a conversation, whose images are read through the vision encoder alone."""
        self._check_markers(components)
        if turns[-1].role != "user":
            raise ValueError(f"the last message is of the {turns[-1].role}; accepted: the user's, which the model answers")
        own = self.prompt
        said = self._told(components, own.thinking_answers)
        for piece in (piece for turn in turns for piece in turn.content):
            said += [self._said(components, piece) if isinstance(piece, str) else _looked_at(self.resized(piece))]
        stop = special_id(components.text_tokenizer, own.stop)
        options = Generation(max_tokens=own.max_tokens, sampling=own.text_sampling, head="text")
        return Request([*said, self._opened(components)], TextGrammar(vocab_size(components, "text"), (stop,)), options)

    def generate_image(
        self, components: Components, prompt: str, *, size: tuple[int, int] | None, negative_prompt: str | None
    ) -> Request:
        """An image of that size."""
        if negative_prompt:
            raise ValueError("negative_prompt is given; accepted of this model: None, since nothing stands in the prompt's place")
        told = self._told(components, self.prompt.thinking_images)
        streams = (told,)
        prompted = [*told, self._said(components, prompt)]
        return self._drawn(components, prompted, streams, size or self.prompt.image_size, self.prompt.image_guidance)

    def edit(self, components: Components, pictures: Sequence[PILImage], prompt: str, *, size: tuple[int, int] | None) -> Request:
        """An image of that size, or of that which the last picture is resized to."""
        own, resized = self.prompt, [self.resized(picture) for picture in pictures]
        told, said = self._told(components, own.thinking_images), self._said(components, prompt)
        seen = [segment for picture in resized for segment in self._read(components, picture)]
        streams = ([*told, *seen], [*told, said])
        last = resized[-1].height, resized[-1].width
        return self._drawn(components, [*told, *seen, said], streams, size or last, own.edit_guidance)

    def training_sample(self, components: Components, turns: Sequence[Turn]) -> Sample:
        """A conversation whose answers are learned: text, and images in it.

        Where the assistant draws, images of the user are read as latents, too; otherwise through the vision encoder alone.
        """
        self._check_markers(components)
        if turns[-1].role != "assistant":
            raise ValueError(f"the last message is of the {turns[-1].role}; accepted: the assistant's, which is learned")
        pieces = [(turn.role == "assistant", piece) for turn in turns for piece in turn.content]
        draws = any(learned and not isinstance(piece, str) for learned, piece in pieces)
        sample: list[Segment] = []
        for index, (learned, piece) in enumerate(pieces):
            if isinstance(piece, str):
                ids = self._ids(components, piece)
                sample += [text(ids[:1]), text(ids[1:], target="text")] if learned else [text(ids)]
                continue
            picture = self.resized(piece)
            if learned:
                followed = index + 1 < len(pieces)
                sample += [self._latents(components, picture), *([_looked_at(picture)] if followed else [])]
            else:
                sample += self._read(components, picture) if draws else [_looked_at(picture)]
        return sample

    @torch.no_grad()
    def pictures(self, components: Components, segment: Segment) -> list[PILImage]:
        """The picture that latents stand for."""
        if not isinstance(segment, Vectors):
            raise TypeError(f"{type(segment).__name__} was written; accepted of this front: latents")
        tokenizer = image_tokenizer_of(components)
        like = _like(components)
        return frames_of(tokenizer.decode(segment.values[None].to(like.device, like.dtype))[0].float())

    def resized(self, picture: PILImage) -> PILImage:
        """As all images are, before anything reads them."""
        own = self.prompt
        bounds = {"min_side": own.min_side, "max_side": own.max_side, "max_pixels": own.max_pixels}
        height, width = fit_edges(picture.height, picture.width, multiple=own.step, **bounds)
        return rgb_on_white(picture).resize((width, height), Resampling.BICUBIC)

    def _drawn(
        self,
        components: Components,
        prompt: list[Segment],
        streams: tuple[list[Segment], ...],
        size: tuple[int, int],
        guidance: NestedGuidance,
    ) -> Request:
        self._check_markers(components)
        own, words = self.prompt, vocab_size(components, "text")
        block = VectorBlock(
            begin=None, end=None, size=self._latents_of(size), head="image", input="latents", whole=True, modality=LATENTS
        )
        writing = {"image": {"sampler": _sampler(own.num_steps, own.shift)}}
        options = Generation(sampling=own.text_sampling, guidance=guidance, head="text", writing=writing)
        grammar: Grammar = VectorGrammar(block, vocab_size=words)
        if self.think:
            stop = special_id(components.text_tokenizer, own.stop)
            grammar = TextThenSpan(block, vocab_size=words, end=stop, max_text=own.max_thoughts)
            prompt = [*prompt, self._opened(components)]
        return Request(prompt, grammar, options, streams)

    def _latents_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) in latents of an image of that size in pixels."""
        own = self.prompt
        if any(side % own.step or side > own.max_side for side in size):
            raise ValueError(f"size is {size}; accepted of this model: multiples of {own.step}, up to {own.max_side}")
        return size[0] // own.latent_step, size[1] // own.latent_step

    def _told(self, components: Components, words: str) -> list[Segment]:
        return [self._said(components, words)] if self.think else []

    def _said(self, components: Components, words: str) -> Segment:
        return text(self._ids(components, words))

    def _ids(self, components: Components, words: str) -> list[int]:
        parts = [Structure(self.prompt.start), words, Structure(self.prompt.stop)]
        return [one for ids in encode_parts(components.text_tokenizer, parts) for one in ids]

    def _opened(self, components: Components) -> Segment:
        return text([special_id(components.text_tokenizer, self.prompt.start)])

    def _read(self, components: Components, picture: PILImage) -> list[Segment]:
        """A picture as what is drawn is conditioned on it: latents, and what the vision encoder sees."""
        return [self._latents(components, picture, weight=0.0), _looked_at(picture)]

    @torch.no_grad()
    def _latents(self, components: Components, picture: PILImage, *, weight: float = 1.0) -> Segment:
        """Upstream resizes once more, which moves images that are very long."""
        tokenizer, like = image_tokenizer_of(components), _like(components)
        pixels = pixels_of(self.resized(picture)).to(like.device, like.dtype)[None]
        made = tokenizer.encode(pixels, sample=True) if self.sample_latents else tokenizer.encode(pixels)  # type: ignore[call-arg]
        return vectors(made.z[0].float().cpu(), input="latents", target="image", modality=LATENTS, weight=weight)

    def _check_markers(self, components: Components) -> None:
        """Refuses a tokenizer whose markers are not the model's."""
        head = dict(multimodal(components).outputs.items()).get("image")
        if not isinstance(head, FramedDenoisingHead):
            raise TypeError(f"the model's head of images is a {type(head).__name__}; accepted: FramedDenoisingHead, as of Bagel")
        names = self.prompt.image_begin, self.prompt.image_end
        ids = tuple(special_id(components.text_tokenizer, name) for name in names)
        if ids != head.markers.ids:
            found = f"{names[0]} and {names[1]} are {ids} in the text tokenizer, and {head.markers.ids} in the model"
            raise ValueError(f"{found}; accepted: the same, Bagel(markers=...)")


BAGEL_THINKING = BagelFront(think=True)
"""It thinks before it answers or draws."""


def _looked_at(picture: PILImage) -> Segment:
    """A picture as the vision encoder sees it."""
    return image(picture, bidirectional=True)


def _like(components: Components) -> Tensor:
    """A tensor of the image tokenizer's dtype, on its device."""
    return next(iter(image_tokenizer_of(components).parameters()))  # type: ignore[attr-defined]  # a module
