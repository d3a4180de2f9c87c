"""Chameleon's, Anole's and Lumina-mGPT's front: answers about images, and images of texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL.Image import Image as PILImage

from mmblocks.generation.grid_grammar import GridGrammar
from mmblocks.generation.options import Generation
from mmblocks.models.chameleon.prompts import CHAMELEON_PROMPT, LUMINA_MGPT_PROMPT, ChameleonPrompt
from mmblocks.prompts.fronts import CodeReader, decoded, vocab_size
from mmblocks.prompts.messages import Turn
from mmblocks.prompts.request import Components, Request
from mmblocks.sequence.batches import Sample
from mmblocks.sequence.segments import Segment, text
from mmblocks.vocabulary.code_ids import CodeIds, chameleon_code_ids
from mmblocks.vocabulary.spelling import encode_parts
from mmblocks.vocabulary.text_tokenizers import TokenizerFile


@dataclass(frozen=True, kw_only=True)
class ChameleonFront:
    """Chameleon: conversations without role words, in which images are codes.

    Attributes:
        prompt: ids and published settings. The codes' ids are those that the text tokenizer names.
        num_images: images that an answer may hold; the released Chameleon writes none.
        size: (height, width) in pixels of an image of a text, where none is given.
        step: pixels a side of a code.

    Source: facebookresearch/chameleon, GAIR-NLP/anole, Alpha-VLLM/Lumina-mGPT.

    Examples:
        >>> from mmblocks.models import ChameleonFront
        >>> ChameleonFront(num_images=1).prompt.turn_end
        8710
    """

    prompt: ChameleonPrompt = CHAMELEON_PROMPT
    num_images: int = 0
    size: tuple[int, int] = (512, 512)
    step: int = 16

    def chat(self, components: Components, turns: Sequence[Turn]) -> Request:
        """The answer to a conversation: text, and images where the front lets it write them."""
        own = self._prompt(components)
        samples = self._turns(components, own, turns, None)
        grammar = GridGrammar(
            own.format,
            num_images=self.num_images,
            stop=(*own.stop, own.turn_end),
            vocab_size=vocab_size(components, "text"),
        )
        guidance = own.guidance if self.num_images else None
        options = Generation(max_tokens=own.max_tokens, sampling=own.sampling, guidance=guidance)
        return Request(samples, grammar, options, tuple(own.unconditional(samples)) if self.num_images else ())

    def generate_image(
        self, components: Components, prompt: str, *, size: tuple[int, int] | None, negative_prompt: str | None
    ) -> Request:
        """An image of that size."""
        if negative_prompt:
            raise ValueError("negative_prompt is given; accepted of this model: None")
        own = self._prompt(components)
        height, width = size or self.size
        grid = (height // self.step, width // self.step)
        if (height % self.step, width % self.step) != (0, 0) or own.format.fixed_size not in (None, grid):
            only = own.format.fixed_size
            accepted = f"multiples of {self.step}" if only is None else f"({only[0] * self.step}, {only[1] * self.step})"
            raise ValueError(f"size is {size}; accepted of this model: {accepted}")
        words = own.text_to_image.replace("{width}", str(width)).replace("{height}", str(height))
        before, _, after = words.partition("{prompt}")
        sample = self._turns(components, own, [Turn("user", (before + prompt + after,))], None)
        sample = [*sample, text([own.format.head(*grid)[0]])]
        grammar = GridGrammar(own.format, size=grid, vocab_size=vocab_size(components, "text"))
        options = Generation(sampling=own.sampling, guidance=own.guidance)
        return Request(sample, grammar, options, tuple(own.unconditional(sample)))

    def training_sample(self, components: Components, turns: Sequence[Turn]) -> Sample:
        """A conversation whose answers, and the end of each, are learned."""
        if turns[-1].role != "assistant":
            raise ValueError(f"the last message is of the {turns[-1].role}; accepted: the assistant's, which is learned")
        return self._turns(components, self._prompt(components), turns, "text")

    def pictures(self, components: Components, segment: Segment) -> list[PILImage]:
        """The picture that codes stand for."""
        return decoded(components, segment)

    def _turns(self, components: Components, own: ChameleonPrompt, turns: Sequence[Turn], target: str | None) -> list[Segment]:
        """All turns, each with its end; roles have no words."""
        reader = CodeReader(components, own.format)
        segments: list[Segment] = [text([own.bos])]
        for turn in turns:
            learned = target if turn.role == "assistant" else None
            for piece in turn.content:
                if isinstance(piece, str):
                    (ids,) = encode_parts(components.text_tokenizer, [piece])
                    segments.append(text(ids, target=learned))
                else:
                    segments += reader(piece, learned)
            segments.append(text([own.turn_end], target=learned))
        return segments

    def _prompt(self, components: Components) -> ChameleonPrompt:
        tokenizer = components.text_tokenizer
        codes = _code_ids(tokenizer) if isinstance(tokenizer, TokenizerFile) else None
        return self.prompt if codes is None else self.prompt.with_codes(codes)


@lru_cache(maxsize=4)
def _code_ids(tokenizer: TokenizerFile) -> CodeIds | None:
    """The codes' ids as a tokenizer names them; None where it has no such names."""
    vocabulary = tokenizer.vocabulary
    return chameleon_code_ids(vocabulary) if "IMGIMGAZ" in vocabulary else None


ANOLE_FRONT = ChameleonFront(num_images=1)
"""Anole, whose answers hold an image each."""

LUMINA_MGPT_FRONT = ChameleonFront(prompt=LUMINA_MGPT_PROMPT, num_images=1, size=(768, 768))
"""Lumina-mGPT."""
