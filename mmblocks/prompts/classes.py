"""Classes by their names or numbers, for models that make images of classes."""

from collections.abc import Sequence
from difflib import get_close_matches
from functools import lru_cache

IMAGENET = "imagenet-1k"
"""The thousand classes of ImageNet, in the usual order, whose names timm knows."""


def class_index(prompt: str | int, classes: str | Sequence[str], count: int) -> int:
    """The number of a class.

    Args:
        prompt: the number, or a name of the class in any case; where a class has several, any of them.
        classes: the names by number, several with ", " between them, or ``IMAGENET``.
        count: how many classes the model has.

    Raises:
        TypeError: neither text nor a number.
        ValueError: a number that no class has, or a name that none has, or several have; other numbers of names than classes.

    Examples:
        >>> from mmblocks.prompts.classes import class_index
        >>> class_index("Golden retriever", "imagenet-1k", 1000), class_index(1, ("cat", "dog, hound"), 2)
        (207, 1)
        >>> class_index("hound", ("cat", "dog, hound"), 2)
        1
    """
    if isinstance(prompt, bool) or not isinstance(prompt, str | int):
        raise TypeError(f"prompt is a {type(prompt).__name__}; accepted of this model: the number or the name of a class")
    if isinstance(prompt, str) and prompt.strip().isdecimal():
        prompt = int(prompt)
    if isinstance(prompt, int):
        if not 0 <= prompt < count:
            raise ValueError(f"prompt is the class {prompt}; accepted of this model: 0 to {count - 1}")
        return prompt
    known = _imagenet() if classes == IMAGENET else _by_name(tuple(classes))
    if max(max(numbers) for numbers in known.values()) >= count:
        raise ValueError(f"the front names more classes than the model's {count}; accepted: as many")
    found = known.get(_plain(prompt), ())
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"prompt is {prompt!r}, a name of the classes {', '.join(map(str, found))}; accepted: one of these numbers"
        )
    near = get_close_matches(_plain(prompt), known, n=3)
    such = f", such as {', '.join(map(repr, near))}" if near else ""
    raise ValueError(f"prompt is {prompt!r}; accepted of this model: 0 to {count - 1}, or the name of a class{such}")


def _plain(name: str) -> str:
    return " ".join(name.lower().split())


@lru_cache(maxsize=8)
def _by_name(classes: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for number, names in enumerate(classes):
        for name in {_plain(own) for own in (names, *names.split(","))} - {""}:
            found[name] = (*found.get(name, ()), number)
    return found


@lru_cache(maxsize=1)
def _imagenet() -> dict[str, tuple[int, ...]]:
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo(IMAGENET)
    return _by_name(tuple(info.index_to_description(number) for number in range(1000)))
