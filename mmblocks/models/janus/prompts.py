"""How Janus and Janus-Pro are prompted, as data: roles, structure by name, and the settings of their own code."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from mmblocks.generation.guidance import ClassifierFree
from mmblocks.layers.categorical import GREEDY, Sampling
from mmblocks.vocabulary.grid_format import GridFormat, raster_format


@dataclass(frozen=True, kw_only=True)
class JanusPrompt:
    """How a Janus is prompted, and the settings of its own code.

    A prompt is ``bos``, then the system's text and ``separators[0]`` where there is such a text, then each turn: its role, ": ",
    what is said, and ``separators[0]`` after the user's turns, ``separators[1]`` after the assistant's. It ends with the
    assistant's role and ":". Each ``placeholder`` in what the user says is an image: ``image_begin``, its tokens, ``image_end``.
    To get an image, ``image_begin`` follows the prompt, which then has no system's text; nothing closes what is written.

    Attributes:
        user, assistant: the roles.
        system: its text where images are read; published prompts for images to be written have none.
        separators: after the user's turns, and after the assistant's.
        bos, eos, pad, placeholder, image_begin, image_end: names in the text tokenizer. ``eos`` ends an answer.
        format: how an image's codes follow each other.
        guidance: of images; the prompt without its condition is ``unconditional``.
        image_sampling, text_sampling: of codes, and of answers.
        max_tokens: of an answer.
        image_size: side, in pixels, of images that are written; those that are read have the tower's.

    Examples:
        >>> from mmblocks.models.janus.prompts import JANUS_PRO_PROMPT
        >>> JANUS_PRO_PROMPT.user, JANUS_PRO_PROMPT.guidance.scale, JANUS_PRO_PROMPT.format.fixed_size
        ('<|User|>', 5.0, (24, 24))
        >>> JANUS_PRO_PROMPT.unconditional([100000, 5, 6, 7, 100016], pad=100002)
        [100000, 100002, 100002, 100002, 100016]
    """

    user: str
    assistant: str
    system: str = (
        "You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, "
        "and assist the user with a variety of tasks using natural language."
    )
    separators: tuple[str, str] = ("\n\n", "<\uff5cend\u2581of\u2581sentence\uff5c>")
    bos: str = "<\uff5cbegin\u2581of\u2581sentence\uff5c>"
    eos: str = "<\uff5cend\u2581of\u2581sentence\uff5c>"
    pad: str = "<\uff5c\u2581pad\u2581\uff5c>"
    placeholder: str = "<image_placeholder>"
    image_begin: str = "<begin_of_image>"
    image_end: str = "<end_of_image>"
    format: GridFormat = field(default_factory=lambda: raster_format(24, 24, 16384))
    guidance: ClassifierFree = field(default_factory=lambda: ClassifierFree(scale=5.0, normalise=False))
    image_sampling: Sampling = field(default_factory=Sampling)
    text_sampling: Sampling = GREEDY
    max_tokens: int = 512
    image_size: int = 384

    @staticmethod
    def unconditional(ids: Sequence[int], pad: int) -> list[int]:
        """A prompt without its condition: its first id and its last, and padding between them, which is read like any text.

        Args:
            ids: of the whole prompt.
            pad: the id of ``pad``.
        """
        return [pad if 0 < place < len(ids) - 1 else own for place, own in enumerate(ids)]


JANUS_PROMPT = JanusPrompt(user="User", assistant="Assistant")
"""Janus-1.3B's. Source: deepseek-ai/Janus."""

JANUS_PRO_PROMPT = replace(JANUS_PROMPT, user="<|User|>", assistant="<|Assistant|>")
"""Janus-Pro's. Source: deepseek-ai/Janus."""
