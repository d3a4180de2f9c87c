"""How rows are continued, as one value for every generation loop; and the keywords that its fields were before."""

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import wraps
from numbers import Integral
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Generator, Tensor

from mmblocks.generation.choosing import LogitsHook, ModalSampling
from mmblocks.generation.guidance import Guidance
from mmblocks.layers.categorical import Sampling

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How rows are continued: how long, how ids are sampled, and which parts of the model read and write them.

    Args:
        max_tokens: tokens at most per row, those of whole spans included; None where the grammar knows how many it writes, as for
            one image of a fixed size.
        sampling: how ids are sampled. ``ModalSampling`` treats text and images differently.
        guidance: scale of classifier-free guidance, any other ``Guidance``, or None for none.
        hooks: functions that change logits after guidance and grammar, before temperature and truncation.
        generator: source of randomness, on the model's device; an int seeds a new one for each call; None is PyTorch's own. With
            one for each row, a row is the same whatever rows stand beside it.
        input: the embedder of ids.
        head: the head over ids; may be None where the model has one such head.
        given: by name, what heads that write whole spans are told of each row beside, such as a class: one entry for each row of
            all streams of guidance, stream after stream.
        writing: by name of a head that writes whole spans, further arguments of its ``write``, such as noise or another sampler.
        previews: whether spans that heads write as wholes are handed out as they look in each pass, too.
        ends: told of each id of text that a row writes; True ends the row, such as at a stop string.

    Raises:
        TypeError: a field of another type.
        ValueError: fewer than one token.

    Examples:
        >>> from dataclasses import replace
        >>> from mmblocks import GREEDY, Decoder, Generation, LMHead, MultimodalModel, Sampling, TextEmbedding, TextGrammar, text
        >>> model = MultimodalModel(
        ...     inputs={"text": TextEmbedding(vocab_size=16, dim=32)},
        ...     trunk=Decoder(dim=32, num_layers=1, num_heads=4, mlp_dim=64),
        ...     outputs={"text": LMHead(dim=32, vocab_size=16)},
        ... )
        >>> options = Generation(max_tokens=3, sampling=GREEDY)
        >>> ((row, segment),) = model.generate([[text([7, 8])]], TextGrammar(16), options)
        >>> row, len(segment.content)
        (0, 3)
        >>> freer = replace(options, sampling=Sampling(temperature=0.8), generator=0)
    """

    max_tokens: int | None = None
    sampling: Sampling | ModalSampling = field(default_factory=Sampling)
    guidance: float | Guidance | None = None
    hooks: Sequence[LogitsHook] = ()
    generator: Generator | int | Sequence[Generator | int] | None = None
    input: str = "text"
    head: str | None = None
    given: Mapping[str, Tensor] = field(default_factory=dict)
    writing: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    previews: bool = False
    ends: Callable[[int, int], bool] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "hooks", tuple(self.hooks))
        if self.max_tokens is not None:
            if isinstance(self.max_tokens, bool) or not isinstance(self.max_tokens, Integral):
                raise TypeError(f"max_tokens is {self.max_tokens!r}; accepted: an int or None")
            if self.max_tokens < 1:
                raise ValueError(f"max_tokens is {self.max_tokens}; accepted: 1 or more, or None")
        if not isinstance(self.sampling, Sampling | ModalSampling):
            raise TypeError(f"sampling is {self.sampling!r}; accepted: a Sampling or a ModalSampling")
        if not isinstance(self.guidance, int | float | Guidance | None):
            raise TypeError(f"guidance is {self.guidance!r}; accepted: a number, a Guidance or None")
        several = isinstance(self.generator, Sequence) and not isinstance(self.generator, str)
        if several:
            object.__setattr__(self, "generator", tuple(self.generator))  # type: ignore[arg-type]  # several
        each = self.generator if several else (self.generator,)
        if not all(isinstance(one, Generator | int) or (one is None and not several) for one in each):  # type: ignore[union-attr]
            accepted = "a torch.Generator, an int, one of these for each row, or None"
            raise TypeError(f"generator is {self.generator!r}; accepted: {accepted}")

    def generator_on(self, device: torch.device) -> Generator | None:
        """The source of randomness of one call on that device, for a loop that takes one for all rows.

        Raises:
            ValueError: there is one for each row.
        """
        if isinstance(self.generator, tuple):
            raise ValueError(f"generator holds {len(self.generator)}; accepted here: one for all rows")
        return _on(self.generator, device)  # type: ignore[arg-type]  # one, or None

    def generators_on(self, device: torch.device, rows: int) -> Generator | list[Generator] | None:
        """Likewise, or one for each row.

        Raises:
            ValueError: another number of them than rows.
        """
        if not isinstance(self.generator, tuple):
            return self.generator_on(device)
        if len(self.generator) != rows:
            raise ValueError(f"generator holds {len(self.generator)} for {rows} rows; accepted: one, or one for each row")
        return [one for one in (_on(each, device) for each in self.generator) if one is not None]

    def check_used(self, by: str, *names: str) -> None:
        """Refuses options that a loop does not use.

        Raises:
            ValueError: a field beside ``names`` that is not as by default.
        """
        given, default = vars(self), vars(Generation())
        unused = [name for name in given if name not in names and given[name] != default[name]]
        if unused:
            raise ValueError(f"options set {', '.join(unused)}, which {by} does not use; accepted: {', '.join(names)}")


def _on(source: Generator | int | None, device: torch.device) -> Generator | None:
    return Generator(device).manual_seed(source) if isinstance(source, int) else source


_FIELDS = frozenset(one.name for one in fields(Generation))


def takes_old_keywords(function: Callable[P, R]) -> Callable[P, R]:
    """Lets the fields of ``Generation`` be keywords of a function with a parameter ``options``, as they were; with a warning."""

    @wraps(function)
    def call(*args: P.args, **keywords: P.kwargs) -> R:
        old: dict[str, Any] = {name: keywords.pop(name) for name in sorted(_FIELDS & keywords.keys())}
        if not old:
            return function(*args, **keywords)
        names = ", ".join(old)
        if "options" in inspect.signature(function).bind_partial(*args, **keywords).arguments:
            raise TypeError(f"{function.__name__} was given options and {names}; accepted: all of it in options")
        as_one = f"options=Generation({', '.join(f'{name}=...' for name in old)})"
        warnings.warn(f"{function.__name__} takes {names} as {as_one} now; the keywords go with version 0.3", FutureWarning, 2)
        keywords["options"] = Generation(**{name: value for name, value in old.items() if value is not None})
        return function(*args, **keywords)

    return call
