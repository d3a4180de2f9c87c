"""How BAGEL is prompted, as data: structure by name, what it is told to think, sizes of images, and its demo's settings."""

from dataclasses import dataclass, field

from mmblocks.generation.timed_guidance import NestedGuidance
from mmblocks.layers.categorical import GREEDY, Sampling


@dataclass(frozen=True, kw_only=True)
class BagelPrompt:
    """How BAGEL is prompted, and the settings of its own demo.

    Every text, whoever says it, stands between ``start`` and ``stop``, and there are no words for roles. An image stands between
    ``image_begin`` and ``image_end``, outside of any text. An answer begins after ``start``, and ends with ``stop``; an image that
    is to be written follows at once.

    Attributes:
        start, stop, image_begin, image_end: names in the text tokenizer.
        thinking_answers, thinking_images: the text before everything, where the model is to think before it answers or draws.
        max_tokens, max_thoughts: of an answer, and of thoughts; upstream's 512 and 1024 count ``start`` too.
        text_sampling: of answers and thoughts.
        image_guidance, edit_guidance: of an image of a text, and of one of images and a text.
        num_steps, shift: of the flow. Upstream counts the ends of the steps, which are 50.
        image_size: (height, width) of an image of a text, where none is given.
        latent_step, patch: pixels a side of a latent, and latents a side of a token.
        min_side, max_side, max_pixels: see ``fit_edges``: to these all images are resized first, those too that the vision encoder
            then resizes for itself. ``max_side`` bounds what is written, too.

    Source: ByteDance-Seed/Bagel: its inferencer, transforms and demo.

    Examples:
        >>> from mmblocks.models.bagel.prompt import BagelPrompt
        >>> BagelPrompt().step, BagelPrompt().edit_guidance.num_streams
        (16, 3)
    """

    start: str = "<|im_start|>"
    stop: str = "<|im_end|>"
    image_begin: str = "<|vision_start|>"
    image_end: str = "<|vision_end|>"
    thinking_answers: str = (
        "You should first think about the reasoning process in the mind and then provide the user with the answer. \n"
        "The reasoning process is enclosed within <think> </think> tags, i.e. <think> reasoning process here </think> answer here"
    )
    thinking_images: str = (
        "You should first think about the planning process in the mind and then generate the image. \n"
        "The planning process is enclosed within <think> </think> tags, i.e. <think> planning process here </think> image here"
    )
    max_tokens: int = 511
    max_thoughts: int = 1023
    text_sampling: Sampling = GREEDY
    image_guidance: NestedGuidance = field(default_factory=lambda: NestedGuidance(scale=4.0, interval=(0.4, 1.0)))
    edit_guidance: NestedGuidance = field(default_factory=lambda: NestedGuidance(scale=4.0, image_scale=2.0, renorm="text_channel"))
    num_steps: int = 49
    shift: float = 3.0
    image_size: tuple[int, int] = (1024, 1024)
    latent_step: int = 8
    patch: int = 2
    min_side: int = 512
    max_side: int = 1024
    max_pixels: int = 14 * 14 * 9 * 1024

    @property
    def step(self) -> int:
        """Pixels a side of a token."""
        return self.latent_step * self.patch
