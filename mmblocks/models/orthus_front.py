"""Orthus's front: answers about images, images of texts, and text and images in turn."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from PIL.Image import Image as PILImage

from mmblocks.generation.continuous import VectorBlock, VectorGrammar
from mmblocks.generation.grammar import IdRange
from mmblocks.generation.guidance import ClassifierFree
from mmblocks.generation.options import Generation
from mmblocks.layers.categorical import GREEDY, Sampling
from mmblocks.prompts.fronts import check_images, decoded, image_tokenizer_of, vocab_size
from mmblocks.prompts.messages import Turn
from mmblocks.prompts.request import Components, Request
from mmblocks.sequence.batches import Sample
from mmblocks.sequence.segments import Segment, text, vectors
from mmblocks.tokenizers.visual_tokenizer import VisualTokenizer
from mmblocks.vocabulary.spelling import encode_parts


@dataclass(frozen=True, kw_only=True)
class OrthusFront:
    """Orthus: a Chameleon's prompts, in which images are latents.

    Attributes:
        begin, turn_end: ids before everything, and after each turn.
        image_begin, image_end: ids around an image.
        stop: ids that end an answer.
        never: ids of codes, which stand for nothing here: from the first on, before the second.
        image_size: (height, width) in pixels, of images that are read and of those that are made.
        grid: (rows, columns) of latents.
        num_images: images that an answer may hold; 0 for text alone.
        options: how answers are sampled.
        without: the text of the prompt against which images of a text are guided.
        guidance: of images of a text.
        answers_without, answers_guidance: of images in answers.
        max_images: in a conversation; None for any number.

    Sampling of answers with images is that of Chameleon: the authors' code cuts at a likelihood of 0.9 with a temperature of 0.7,
    and samples what is left at 1.

    Source: Orthus (arXiv 2412.00127; zhijie-group/Orthus).

    Examples:
        >>> from mmblocks.models import OrthusFront
        >>> OrthusFront().guidance
        5.0
    """

    begin: int = 0
    turn_end: int = 8710
    image_begin: int = 8197
    image_end: int = 8196
    stop: tuple[int, ...] = (2, 8710)
    never: IdRange = (4, 8196)
    image_size: tuple[int, int] = (512, 512)
    grid: tuple[int, int] = (32, 32)
    num_images: int = 0
    options: Generation = field(default_factory=lambda: Generation(max_tokens=512, sampling=GREEDY))
    without: str = "Generate an image."
    guidance: float = 5.0
    answers_without: str = "generate images"
    answers_guidance: float = 3.0
    max_images: int | None = None

    def chat(self, components: Components, turns: Sequence[Turn]) -> Request:
        """The answer to a conversation: text, and images where the front lets it write them."""
        if turns[-1].role != "user":
            raise ValueError(f"the last message is of the {turns[-1].role}; accepted: the user's, which the model answers")
        prompt = self._turns(components, turns, learned=False)
        grammar = VectorGrammar(
            self._block(end=True),
            vocab_size=vocab_size(components, "text"),
            num_images=self.num_images,
            stop=self.stop,
            never=(self.never[0], self.never[1]),
        )
        if not self.num_images:
            return Request(prompt, grammar, self.options)
        guidance = ClassifierFree(scale=self.answers_guidance, images_only=True)
        options = Generation(max_tokens=self.options.max_tokens, sampling=self.options.sampling, guidance=guidance)
        without = self._turns(components, [Turn("user", (self.answers_without,))], learned=False)
        return Request(prompt, grammar, options, (without,))

    def generate_image(
        self, components: Components, prompt: str, *, size: tuple[int, int] | None, negative_prompt: str | None
    ) -> Request:
        """An image of the one size."""
        if size not in (None, tuple(self.image_size)):
            raise ValueError(f"size is {size}; accepted of this model: {tuple(self.image_size)}")
        condition, without = (
            [*self._turns(components, [Turn("user", (words,))], learned=False), text([self.image_begin])]
            for words in (prompt, negative_prompt or self.without)
        )
        grammar = VectorGrammar(self._block(end=False), vocab_size=vocab_size(components, "text"))
        return Request(condition, grammar, Generation(guidance=self.guidance), (without,))

    def training_sample(self, components: Components, turns: Sequence[Turn]) -> Sample:
        """A conversation whose answers are learned: text, the end of each, and images."""
        if turns[-1].role != "assistant":
            raise ValueError(f"the last message is of the {turns[-1].role}; accepted: the assistant's, which is learned")
        return self._turns(components, turns, learned=True)

    def pictures(self, components: Components, segment: Segment) -> list[PILImage]:
        """The picture that latents stand for."""
        return decoded(components, segment)

    def _block(self, *, end: bool) -> VectorBlock:
        close = self.image_end if end else None
        return VectorBlock(begin=self.image_begin, end=close, size=tuple(self.grid), head="latents", input="latents")

    def _turns(self, components: Components, turns: Sequence[Turn], *, learned: bool) -> list[Segment]:
        """All turns, each with its end; roles have no words."""
        check_images(turns, self.max_images)
        segments: list[Segment] = [text([self.begin])]
        for turn in turns:
            is_told = learned and turn.role == "assistant"
            target = "text" if is_told else None
            for piece in turn.content:
                if isinstance(piece, str):
                    (ids,) = encode_parts(components.text_tokenizer, [piece])
                    segments.append(text(ids, target=target))
                else:
                    latents = vectors(self._read(components, piece), input="latents", target="latents" if is_told else None)
                    segments += [text([self.image_begin], target=target), latents, text([self.image_end], target=target)]
            segments.append(text([self.turn_end], target=target))
        return segments

    @torch.no_grad()
    def _read(self, components: Components, picture: PILImage) -> torch.Tensor:
        """What the tokenizer's encoder gives before it takes codes."""
        tokenizer = image_tokenizer_of(components)
        if not isinstance(tokenizer, VisualTokenizer):
            raise TypeError(f"image_tokenizer is a {type(tokenizer).__name__}; accepted: one with features, such as ChameleonVQ")
        device = next(tokenizer.parameters()).device
        latents = tokenizer.features(tokenizer.preprocess(picture)[None].to(device))[0].float().cpu()
        if prod(latents.shape[:2]) != prod(self.grid):
            found = tuple(latents.shape[:2])
            raise ValueError(
                f"the image tokenizer makes {found} latents of a picture; accepted: {tuple(self.grid)}, as the front says"
            )
        return latents


ORTHUS_BASE_FRONT = OrthusFront(num_images=16, options=Generation(max_tokens=4096, sampling=Sampling(temperature=0.7, top_p=0.9)))
"""Orthus-7B-base, whose answers hold images; its published example lets it write 4096 tokens."""
