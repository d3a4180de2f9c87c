"""Janus's and Janus-Pro's front: answers about images, and images of texts."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL.Image import Image as PILImage

from mmblocks.generation.grid_grammar import GridGrammar
from mmblocks.generation.options import Generation
from mmblocks.models.janus.prompts import JANUS_PRO_PROMPT, JANUS_PROMPT, JanusPrompt
from mmblocks.prompts.chat_format import ChatFormat
from mmblocks.prompts.fronts import ReadingFront, decoded
from mmblocks.prompts.messages import Turn
from mmblocks.prompts.request import Components, Request
from mmblocks.sequence.batches import Sample
from mmblocks.sequence.segments import Segment, text
from mmblocks.vocabulary.spelling import special_id


@dataclass(frozen=True, kw_only=True)
class JanusFront:
    """Janus: conversations about images, and images of texts.

    Attributes:
        prompt: what surrounds the words, and the published settings.

    Source: deepseek-ai/Janus.

    Examples:
        >>> from mmblocks.models import JanusFront
        >>> JanusFront().prompt.image_size
        384
    """

    prompt: JanusPrompt = JANUS_PRO_PROMPT

    def chat(self, components: Components, turns: Sequence[Turn]) -> Request:
        """The answer to a conversation."""
        return self._reader().chat(components, turns)

    def training_sample(self, components: Components, turns: Sequence[Turn]) -> Sample:
        """A conversation whose answers are learned."""
        return self._reader().training_sample(components, turns)

    def generate_image(
        self, components: Components, prompt: str, *, size: tuple[int, int] | None, negative_prompt: str | None
    ) -> Request:
        """A square image."""
        own, side = self.prompt, self.prompt.image_size
        if size not in (None, (side, side)):
            raise ValueError(f"size is {size}; accepted of this model: ({side}, {side})")
        if negative_prompt:
            raise ValueError("negative_prompt is given; accepted of this model: None, since padding stands in the prompt's place")
        turns = [Turn("user", (prompt,))]
        spelled = self._format(system=None).prompt(turns, components.text_tokenizer, lambda picture, target: [])
        begin, pad = (special_id(components.text_tokenizer, name) for name in (own.image_begin, own.pad))
        ids = [int(i) for segment in spelled for i in segment.content] + [begin]  # type: ignore[union-attr]  # text alone
        options = Generation(sampling=own.image_sampling, guidance=own.guidance, head="text")
        grammar = GridGrammar(own.format, head="codes", input="codes")
        return Request([text(ids)], grammar, options, ([text(own.unconditional(ids, pad))],))

    def pictures(self, components: Components, segment: Segment) -> list[PILImage]:
        """The picture that codes stand for."""
        return decoded(components, segment)

    def _reader(self) -> ReadingFront:
        own = self.prompt
        options = Generation(max_tokens=own.max_tokens, sampling=own.text_sampling, head="text")
        return ReadingFront(format=self._format(own.system), options=options)

    def _format(self, system: str | None) -> ChatFormat:
        own = self.prompt
        after_user, after_assistant = own.separators
        return ChatFormat(
            begin=own.bos,
            system="{}" + after_user,
            default_system=system,
            user=f"{own.user}: {{}}{after_user}",
            assistant=f"{own.assistant}: {{}}{after_assistant}",
            reply=f"{own.assistant}:",
            picture=f"{own.image_begin}{{}}{own.image_end}\n",
            pictures_first=True,
            stop=(own.eos,),
        )


JANUS_FRONT = JanusFront(prompt=JANUS_PROMPT)
"""Janus-1.3B's; Janus-Pro's is ``JanusFront()``."""
