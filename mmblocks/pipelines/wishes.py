"""What a user may want of a pipeline, each as a value, so that requests of different kinds run side by side."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from PIL.Image import Image as PILImage

from mmblocks.generation.choosing import ModalSampling
from mmblocks.generation.guidance import Guidance
from mmblocks.generation.options import Generation
from mmblocks.layers.categorical import Sampling
from mmblocks.prompts.messages import Message, turns_of
from mmblocks.prompts.request import ABILITIES, Components, Drawing, DrawsClasses, Request
from mmblocks.support.pictures import Picture, picture_of


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a request is answered, where it shall not be as published.

    Attributes:
        max_tokens: tokens at most.
        sampling: how ids are sampled.
        guidance: scale of classifier-free guidance, or a ``Guidance`` of as many streams as the published one.
        stop: a string, or several, at which an answer's text ends; they are no part of it.
        seed: of all randomness of this request: the same seed gives the same answer, whatever runs beside it.

    Raises:
        ValueError: an empty stop string.

    Examples:
        >>> from mmblocks import GREEDY, Generation
        >>> from mmblocks.pipelines import Settings
        >>> Settings(sampling=GREEDY).changed(Generation(max_tokens=64)).max_tokens
        64
    """

    max_tokens: int | None = None
    sampling: Sampling | ModalSampling | None = None
    guidance: float | Guidance | None = None
    stop: str | Sequence[str] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        if not all(self.stops):
            raise ValueError("stop holds an empty string; accepted: strings of at least one character")

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def applied(self, spelled: Request | Drawing) -> Request | Drawing:
        """What a front spelled, with what is set here.

        Raises:
            ValueError: something is set that has no meaning for this request.
        """
        if isinstance(spelled, Request):
            return replace(spelled, options=self.changed(spelled.options))
        own = {"max_tokens": self.max_tokens, "sampling": self.sampling, "guidance": self.guidance, "stop": self.stops or None}
        given = {name: value for name, value in own.items() if value is not None}
        known: set[str] = {one.name for one in fields(spelled)} if is_dataclass(spelled) else set()
        for name, value in given.items():
            if name not in known or (name == "guidance" and not isinstance(value, int | float)):
                accepted = [*sorted(known & {"sampling"}), *(["a number as guidance"] if "guidance" in known else []), "seed"]
                raise ValueError(f"{name} is {value!r}; accepted of this model: {', '.join(accepted)}")
        changed: Drawing = replace(spelled, **given)  # type: ignore[type-var]  # a data class
        return changed

    def changed(self, options: Generation) -> Generation:
        """Published options with what is set here."""
        given: dict[str, Any] = {"max_tokens": self.max_tokens, "sampling": self.sampling}
        options = replace(options, **{name: value for name, value in given.items() if value is not None})
        if self.guidance is None:
            return options
        if options.guidance is None:
            raise ValueError(f"guidance is {self.guidance}; accepted: None, since nothing is guided here")
        scaled = isinstance(self.guidance, int | float) and not isinstance(options.guidance, int | float)
        guidance: Any = replace(options.guidance, scale=self.guidance) if scaled else self.guidance  # type: ignore[type-var]
        return replace(options, guidance=guidance)


@dataclass(frozen=True)
class Chat:
    """An answer to messages; see ``Pipeline.chat``.

    Examples:
        >>> from mmblocks.pipelines import Chat, Settings
        >>> Chat([{"role": "user", "content": "hello"}], Settings(seed=0)).ability
        'chat'
    """

    messages: Sequence[Message]
    settings: Settings = field(default_factory=Settings)
    ability = "chat"
    num_samples = 1

    def request(self, front: Any, components: Components) -> Request:
        """As the front spells it."""
        return front.chat(components, turns_of(self.messages))


@dataclass(frozen=True)
class GenerateImage:
    """Images of a text; see ``Pipeline.generate_image``.

    Examples:
        >>> from mmblocks.pipelines import GenerateImage
        >>> GenerateImage("a cat", size=(512, 768), num_images=2).num_samples
        2
    """

    prompt: str | int
    size: tuple[int, int] | None = None
    num_images: int = 1
    negative_prompt: str | None = None
    settings: Settings = field(default_factory=Settings)
    ability = "generate_image"

    @property
    def num_samples(self) -> int:
        """Images."""
        return self.num_images

    def request(self, front: Any, components: Components) -> Request | Drawing:
        """As the front spells it."""
        if not (isinstance(self.prompt, int) and isinstance(front, DrawsClasses)):
            _check_prompt(self.prompt)
        _check_counts(num_images=self.num_images)
        _check_size(self.size)
        return front.generate_image(components, self.prompt, size=self.size, negative_prompt=self.negative_prompt)


@dataclass(frozen=True)
class Edit:
    """Images of images and a text; see ``Pipeline.edit``.

    Examples:
        >>> from mmblocks.pipelines import Edit
        >>> Edit(["cat.jpg"], "make it night").num_samples
        1
    """

    pictures: Sequence[Picture]
    prompt: str
    size: tuple[int, int] | None = None
    num_images: int = 1
    settings: Settings = field(default_factory=Settings)
    ability = "edit"

    @property
    def num_samples(self) -> int:
        """Images."""
        return self.num_images

    def request(self, front: Any, components: Components) -> Request | Drawing:
        """As the front spells it."""
        _check_prompt(self.prompt)
        _check_counts(num_images=self.num_images)
        _check_size(self.size)
        if isinstance(self.pictures, str | bytes) or not isinstance(self.pictures, Sequence):
            raise TypeError(f"pictures is a {type(self.pictures).__name__}; accepted: a list of pictures")
        if not self.pictures:
            raise ValueError("pictures is empty; accepted: at least one picture to edit")
        pictures: list[PILImage] = [picture_of(one, f"pictures[{index}]") for index, one in enumerate(self.pictures)]
        return front.edit(components, pictures, self.prompt, size=self.size)


@dataclass(frozen=True)
class GenerateVideo:
    """A clip of a text; see ``Pipeline.generate_video``.

    Examples:
        >>> from mmblocks.pipelines import GenerateVideo
        >>> GenerateVideo("a cat jumps", num_frames=8).ability
        'generate_video'
    """

    prompt: str
    size: tuple[int, int] | None = None
    num_frames: int | None = None
    settings: Settings = field(default_factory=Settings)
    ability = "generate_video"
    num_samples = 1

    def request(self, front: Any, components: Components) -> Request | Drawing:
        """As the front spells it."""
        _check_prompt(self.prompt)
        _check_size(self.size)
        if self.num_frames is not None:
            _check_counts(num_frames=self.num_frames)
        return front.generate_video(components, self.prompt, size=self.size, num_frames=self.num_frames)


Wish = Chat | GenerateImage | Edit | GenerateVideo
"""Anything that a pipeline may be asked to do."""


def abilities_of(front: object) -> tuple[str, ...]:
    """What a front can do."""
    return tuple(name for name, protocol in ABILITIES.items() if isinstance(front, protocol))


def check_ability(front: object, ability: str) -> None:
    """Refuses what a model does not do.

    Raises:
        ValueError: the front has no such method.
    """
    known = abilities_of(front)
    if ability not in known:
        raise ValueError(f"{type(front).__name__} has no {ability}; accepted of this model: {', '.join(known) or 'nothing'}")


def _check_prompt(prompt: object) -> None:
    if not isinstance(prompt, str):
        raise TypeError(f"prompt is a {type(prompt).__name__}; accepted: a string")
    if not prompt.strip():
        raise ValueError("prompt is empty; accepted: text")


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"{name} is {count!r}; accepted: an int")
        if count < 1:
            raise ValueError(f"{name} is {count}; accepted: 1 or more")


def _check_size(size: object) -> None:
    if size is None:
        return
    if not isinstance(size, tuple | list) or len(size) != 2 or not all(isinstance(side, int) for side in size):
        raise TypeError(f"size is {size!r}; accepted: (height, width) in pixels, or None")
    if min(size) < 1:
        raise ValueError(f"size is {size}; accepted: (height, width) of at least one pixel each")
