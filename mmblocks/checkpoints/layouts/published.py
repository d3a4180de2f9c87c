"""Building a Block for a published checkpoint: which of the class's layouts it is, and what its config means."""

import logging
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from mmblocks.checkpoints import config, tensors
from mmblocks.checkpoints.building import build
from mmblocks.checkpoints.files import mapped
from mmblocks.checkpoints.files import stored as files
from mmblocks.checkpoints.filling import Job
from mmblocks.checkpoints.layouts import preprocessing
from mmblocks.checkpoints.layouts.difference import Difference, Shape
from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.checkpoints.layouts.published_config import OtherModelError
from mmblocks.checkpoints.origin import Origin, Place
from mmblocks.configurable import Configurable, parameters, replaced_names

B = TypeVar("B", bound=Configurable)

_log = logging.getLogger(__name__)

DETAILED = 2
"""Layouts of which all that does not fit is shown."""


def build_published(place: Place[B], content: dict[str, Any], overrides: dict[str, Any]) -> tuple[B, list[Job]]:
    """A Block without values, and the job that fills all of it from one published checkpoint.

    ``content`` is that of config.json, where there is one.
    """
    cls, path = place.cls, place.path
    published = config.without(content, preprocessing.of_config(place.ignored))
    images = preprocessing.read(path, place.ignored) if path.is_dir() else None
    config.check_arguments(cls, overrides, "from_pretrained")

    def made(layout: Layout) -> B:
        return instance(cls, layout, config_of(layout, path, published), overrides, images)

    built = [(layout, stored, made(layout)) for layout, stored in _candidates(place, published, made)]
    if len(built) > 1:  # by their names alone several fit: one may leave some out, or expect other shapes
        built = _exact(cls, path, built)
    layout, stored, block = built[0]
    block.origin = Origin(place.source, layout.name, place.revision)
    _log.info("%s comes from %s", cls.__name__, block.origin)
    title = f"{cls.__name__} from {path} in the layout {layout.name!r}"
    sources, check = layout.sources(stored, block.config), _further_check(title, layout, stored, block)
    return block, [Job(title, tensors.slots(block), sources, stored, layout.unknown(stored), check)]


def config_of(layout: Layout, path: Path, published: dict[str, Any]) -> dict[str, Any]:
    """What a layout reads: ``published``, the content of config.json, or that of the layout's own file."""
    if layout.config_file == config.FILE:
        return published
    return layout.joined(lambda name: config.read(path, name) if path.is_dir() else None)


def _further_check(title: str, layout: Layout, stored: files.Stored, block: Configurable) -> Callable[[bool], None] | None:
    """The comparison of what follows from the arguments, or from other tensors; it reads no more than these."""
    if not (layout.derived or layout.same):
        return None

    def check(forgetting: bool) -> None:
        try:
            layout.check_same(stored)
        except ValueError as error:
            raise ValueError(f"{title}: {error}") from error
        for key in filter(layout.derives, stored):
            tensor = stored[key]
            try:
                layout.check_derived({key: tensor}, block.config)
            except ValueError as error:
                raise ValueError(f"{title}: {error}") from error
            if forgetting:
                mapped.forget(tensor)

    return check


def _candidates(place: Place[B], published: dict[str, Any], made: Callable[[Layout], B]) -> list[tuple[Layout, files.Stored]]:
    """The layout that is named, or all that fit; at least one. ``made`` gives the Block that a layout leads to.

    Raises:
        ValueError: there is none; the message says for each layout why not.
    """
    cls, path = place.cls, place.path
    chosen = layouts(cls, str(path), place.layout)
    if place.layout is not None:
        return [(layout, _open(path, layout)) for layout in chosen]

    fitting: list[tuple[Layout, files.Stored]] = []
    reasons: list[Reason] = []
    for layout in chosen:
        try:
            stored = _open(path, layout)
        except ValueError as error:
            reasons.append(Reason(layout, str(error), sys.maxsize))
            continue
        content = config_of(layout, path, published)
        if fits(layout, stored, content, partial(made, layout)):
            fitting.append((layout, stored))
        else:
            reasons.append(Reason.of(layout, {key: tuple(tensor.shape) for key, tensor in stored.meta.items()}, content))
    if not fitting:
        raise ValueError(fits_none(str(path), cls, reasons))
    return fitting


def fits(layout: Layout, keys: Collection[str], published: Mapping[str, Any], made: Callable[[], Configurable]) -> bool:
    """Whether a file with tensors of these names, and its config, are in a layout.

    ``made`` gives the Block that they lead to, without values. It is called where no tensor is the Block's: some have none.
    """
    if layout.fits(keys, published):
        return True
    if any(layout.to_ours(key) != () for key in keys):
        return False
    try:
        return not tensors.slots(made())
    except (ValueError, TypeError, ImportError):
        return False


class Reason(NamedTuple):
    """Why a file is not in a layout.

    Attributes:
        layout: the layout.
        why: in words, of one line or more.
        num_unknown: how many names of the file it does not know; none is nearest.
        other: that the config names another model, if it does.
    """

    layout: Layout
    why: str
    num_unknown: int
    other: OtherModelError | None = None

    @classmethod
    def of(cls, layout: Layout, shapes: Mapping[str, Shape | str], published: Mapping[str, Any]) -> "Reason":
        """For tensors of these names and shapes, and a config, that do not fit."""
        other = None
        try:
            layout.arguments(published)
        except OtherModelError as error:
            other = error
        except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError):
            pass  # told below, unless there is something plainer to say
        unknown = {key: shapes[key] for key in layout.unknown(shapes)}
        if unknown:
            return cls(layout, str(Difference({}, unknown, {})), len(unknown), other)
        if not any(layout.to_ours(key) for key in shapes):
            return cls(layout, "none of its tensors is there", sys.maxsize)
        try:
            layout.arguments(published)
        except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            return cls(layout, f"its config does not fit: {kind}{error}", 0, other)
        return cls(layout, "it fits", 0)


def fits_none(where: str, cls: type[Configurable], reasons: Sequence[Reason]) -> str:
    """That no layout fits: the two with the fewest unknown names in full, the others in a line; many of other models in one."""
    names = ", ".join(reason.layout.name for reason in reasons)
    others = [reason for reason in reasons if reason.other is not None]
    last = [] if len(others) <= DETAILED else [_of_other_models(others)]
    ordered = sorted((reason for reason in reasons if not last or reason.other is None), key=lambda reason: reason.num_unknown)
    full = [f"layout {reason.layout.name!r}: {reason.why}" for reason in ordered[:DETAILED]]
    short = [f"layout {reason.layout.name!r}: {reason.why.splitlines()[0].rstrip(':')}" for reason in ordered[DETAILED:]]
    return "\n".join([f"{where} fits no layout of {cls.__name__} ({names})", *full, *short, *last])


def _of_other_models(reasons: Sequence[Reason]) -> str:
    """What layouts say to a config that names the model of none of them."""
    errors = [reason.other for reason in reasons if reason.other is not None]
    accepted = sorted({model for error in errors for model in error.accepted})
    otherwise = [reason.layout.otherwise for reason in reasons if reason.layout.otherwise][:1]
    return ". ".join(
        [f"{len(errors)} layouts: its config does not fit: {errors[0].found}; accepted: {', '.join(accepted)}", *otherwise]
    )


def layouts(cls: type[Configurable], where: str, name: str | None) -> tuple[Layout, ...]:
    """All layouts of a class, or the one of that name.

    Raises:
        ValueError: there is none.
    """
    if not cls.layouts:
        raise ValueError(
            f"{where} was not written by save_pretrained, and {cls.__name__} has no layouts for published checkpoints;"
            " call from_pretrained of the class that reads it"
        )
    chosen = tuple(layout for layout in cls.layouts if name in (None, layout.name))
    if not chosen:
        raise ValueError(f"layout is {name!r}; {cls.__name__} has: {', '.join(layout.name for layout in cls.layouts)}")
    return chosen


def _open(path: Path, layout: Layout) -> files.Stored:
    """Without the files of a sharded checkpoint that hold nothing but other parts."""
    return files.open_published(path, layout.unwrap, lambda key: layout.to_ours(key) != (), preferred=(layout.weights,))


def _exact(cls: type[B], path: Path, built: list[tuple[Layout, files.Stored, B]]) -> list[tuple[Layout, files.Stored, B]]:
    """The only one of several that fits in every name and shape."""
    exact, reasons = [], []
    for layout, stored, block in built:
        difference = layout.check({key: tuple(tensor.shape) for key, tensor in stored.meta.items()}, block)
        if difference:
            reasons.append(f"layout {layout.name!r}:\n{difference}")
        else:
            exact.append((layout, stored, block))
    if not any(tensors.slots(block) or block.config != exact[0][2].config for _, _, block in exact):
        exact = exact[:1]  # one Block in all of them, and nothing in the file that could tell them apart
    if len(exact) > 1:
        names = ", ".join(layout.name for layout, _, _ in exact)
        raise ValueError(f"{path} fits several layouts of {cls.__name__}: {names}; choose one: from_pretrained(..., layout=...)")
    if not exact:
        raise ValueError("\n".join([f"{path} fits no layout of {cls.__name__}", *reasons]))
    return exact


def instance(
    cls: type[B],
    layout: Layout,
    published: dict[str, Any],
    overrides: dict[str, Any],
    images: Mapping[str, Any] | None = None,
) -> B:
    """The Block that a layout makes of a published config, and of preprocessor_config.json, without values.

    Raises:
        ValueError, TypeError, ImportError: the config is not understood, lacks arguments, or does not fit the class.
    """
    origin = f"layout {layout.name!r}"
    try:
        with torch.device("meta"):
            arguments = layout.arguments(published)
            if layout.preprocessor is not None and images is not None:
                arguments |= layout.preprocessor.read(images, {**_defaults(cls), **arguments, **overrides})
            replaced = replaced_names(cls, overrides)
            arguments = {name: value for name, value in arguments.items() if name not in replaced} | overrides
    except KeyError as error:
        raise ValueError(f"{origin} of {cls.__name__}: the published config lacks {error}") from error
    except (TypeError, AttributeError, IndexError, ArithmeticError) as error:
        raise ValueError(f"{origin} of {cls.__name__}: the published config is not understood: {error}") from error
    config.check_arguments(cls, arguments, origin)
    config.check_complete(cls, arguments, origin)
    return build(cls, arguments, origin, overrides)


def _defaults(cls: type[Configurable]) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in parameters(cls).items() if parameter.default is not parameter.empty}
