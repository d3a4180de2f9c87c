"""preprocessor_config.json: how a published model's images are prepared. It is read whole, as config.json is.

    Layout(..., preprocessor=Preprocessor(arguments=_read, published=_written, harmless=("do_pad",)))

It stands beside the weights; newer files of transformers have its entries as ``image_processor`` in processor_config.json.
"""

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmblocks.checkpoints import config
from mmblocks.checkpoints.files import untrusted
from mmblocks.checkpoints.layouts import patterns
from mmblocks.checkpoints.layouts.harmless import check_read
from mmblocks.checkpoints.layouts.published_config import PublishedConfig, only, plain, shown, title
from mmblocks.checkpoints.layouts.rules import Arguments

FILE = "preprocessor_config.json"
NESTED = "processor_config.json"
FILES = (FILE, NESTED)
_ENTRY = "image_processor"

HARMLESS = (
    "do_convert_rgb",
    "return_tensors",
    "data_format",
    "input_data_format",
    "device",
    "disable_grouping",
    "model_input_names",
    "_valid_processor_keys",
    "_valid_kwargs_names",
)
"""Of every image processor: parts here take images of any mode, and have one order of axes."""


@dataclass(frozen=True)
class Preprocessor:
    """What a published image processor's entries are to a Block.

    Attributes:
        arguments: the entries, and the Block's arguments so far (defaults, config.json's and those handed in) -> arguments for
            ``preprocess``. It raises ``ValueError`` for what the Block does not do. An entry that it does not read is refused.
        published: the way back, from the Block's arguments to the entries; None: no file is written.
        harmless: names, or patterns, of entries that change nothing that ``preprocess`` gives.
    """

    arguments: Callable[[Mapping[str, Any], Arguments], dict[str, Any]]
    published: Callable[[Arguments], dict[str, Any]] | None = None
    harmless: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for pattern in self.harmless:
            patterns.placeholders(pattern)

    def read(self, content: Mapping[str, Any], arguments: Arguments) -> dict[str, Any]:
        """Constructor arguments from the file's entries.

        Raises:
            ValueError: an entry that says what the Block does not do, that is not understood, or that nobody reads.
        """
        tracked = PublishedConfig(content)
        try:
            found: dict[str, Any] = plain(self.arguments(tracked, arguments))
        except ValueError as error:
            raise ValueError(f"{FILE}: {error}") from error
        except (TypeError, AttributeError, LookupError, ArithmeticError) as error:
            raise ValueError(f"{FILE} is not understood: {type(error).__name__}: {error}") from error
        check_read(tracked, (*HARMLESS, *self.harmless), FILE, f"{FILE}/")
        return found


def read(folder: Path, ignored: Iterable[str] = ()) -> dict[str, Any] | None:
    """The entries of a folder's image processor; None where there is none, or where it is ignored.

    Args:
        folder: the folder.
        ignored: ``FILE`` for all of it, or ``FILE/entry``; other names are of other files.

    Raises:
        ValueError: no JSON object, or an entry to be ignored that is not there.
    """
    own = [entry for entry in ignored if _is_own(entry)]
    content = _content(folder)
    if FILE in own or content is None:
        if content is None and own:
            raise ValueError(f"ignored_entries names {own[0]!r}; {folder} has no {FILE}")
        return None
    return config.without(content, [entry.removeprefix(f"{FILE}/") for entry in own])


def of_config(ignored: Iterable[str]) -> tuple[str, ...]:
    """Those of the entries to be ignored that are config.json's."""
    return tuple(entry for entry in ignored if not _is_own(entry))


def _is_own(entry: str) -> bool:
    return entry == FILE or entry.startswith(f"{FILE}/")


def _content(folder: Path) -> dict[str, Any] | None:
    nested = untrusted.read_object(folder, NESTED) or {}
    found = nested.get(_ENTRY)
    if found is None:
        return untrusted.read_object(folder, FILE)
    if not isinstance(found, dict):
        raise ValueError(f"{folder / NESTED}: {_ENTRY} is {shown(found)}; accepted: an object")
    return found


def check_processor(entries: Mapping[str, Any], *accepted: str) -> None:
    """Refuses another model's image processor, by the name of its class; entries without a name are taken.

    Args:
        entries: the file's.
        accepted: names of classes; those of transformers' faster and slower twins (``...Fast``, ``...Pil``) go with them.
    """
    for key in ("image_processor_type", "feature_extractor_type"):
        name = entries.get(key)
        if name is not None and str(name).removesuffix("Fast").removesuffix("Pil") not in accepted:
            raise ValueError(f"{title(entries, key)} is {shown(name)}; accepted: {', '.join(accepted)}")


def normalisation(
    entries: Mapping[str, Any],
    *,
    mean: tuple[float, ...] = (0.5, 0.5, 0.5),
    std: tuple[float, ...] = (0.5, 0.5, 0.5),
    rescale_factor: float = 1 / 255,
) -> dict[str, tuple[float, ...]]:
    """``mean`` and ``std`` of pixels in [0, 1], from ``rescale_factor``, ``image_mean``, ``image_std`` and whether they are used.

    Args:
        entries: the file's.
        mean: what the image processor's class takes where the file does not say.
        std: likewise.
        rescale_factor: likewise.

    Raises:
        ValueError: values that are no numbers, or scales of zero.
    """
    only(entries, "do_rescale", True, False)
    only(entries, "do_normalize", True, False)
    factors, means, stds = (
        _numbers(entries, key, default)
        for key, default in (("rescale_factor", (rescale_factor,) * 3), ("image_mean", mean), ("image_std", std))
    )
    scale = 255 * factors[0] if _given(entries, "do_rescale", True) else 255.0
    scale = 1.0 if abs(scale - 1) < 1e-6 else scale
    if not _given(entries, "do_normalize", True):
        means, stds = (0.0,) * 3, (1.0,) * 3
    found = {"mean": tuple(value / scale for value in means), "std": tuple(value / scale for value in stds)}
    if not all(sys.float_info.min <= value < math.inf for value in found["std"]):
        said = f"{title(entries, 'rescale_factor')} is {factors[0]:g} with image_std {stds}"
        raise ValueError(f"{said}; accepted: factors near 1 / 255")
    return found


def published_normalisation(mean: Iterable[float], std: Iterable[float]) -> dict[str, Any]:
    """The entries that ``normalisation`` reads."""
    return {
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }


def count(entries: Mapping[str, Any], key: str, default: int) -> int:
    """A whole number above zero.

    Raises:
        ValueError: anything else.
    """
    value = _given(entries, key, default)
    if type(value) is not int or value < 1:
        raise ValueError(f"{title(entries, key)} is {shown(value)}; accepted: whole numbers above zero")
    return value


def square(entries: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """The side of a square: a number, or height and width, which must agree.

    Raises:
        ValueError: anything else.
    """
    return _side(entries, key, default, {"height", "width"})


def shortest_edge(entries: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """What the shorter side is resized to: a number, or ``{"shortest_edge": side}``.

    Raises:
        ValueError: anything else.
    """
    return _side(entries, key, default, {"shortest_edge"})


def _side(entries: Mapping[str, Any], key: str, default: int | None, names: set[str]) -> int:
    value = plain(_given(entries, key, default))
    sides = [value]
    if isinstance(value, dict):
        given = {name: side for name, side in value.items() if side is not None}
        sides = list(given.values()) if set(given) == names else []
    if not sides or any(type(side) is not int or side < 1 or side != sides[0] for side in sides):
        raise ValueError(f"{title(entries, key)} is {shown(value)}; accepted: a number, or equal {' and '.join(sorted(names))}")
    return int(sides[0])


def _given(entries: Mapping[str, Any], key: str, default: object) -> Any:
    value = entries.get(key)
    return default if value is None else value


def _numbers(entries: Mapping[str, Any], key: str, default: tuple[float, ...]) -> tuple[float, ...]:
    """One number, which is for every colour, or three."""
    value = _given(entries, key, default)
    values = tuple(value) if isinstance(value, list | tuple) else (value,) * 3
    positive = key != "image_mean"
    if len(values) != 3 or not all(
        type(one) in (int, float) and math.isfinite(one) and (one > 0 or not positive) for one in values
    ):
        raise ValueError(f"{title(entries, key)} is {shown(value)}; accepted: a number, or three{', above zero' * positive}")
    return values
