"""Modules that remember how they were built, descriptions of their parts, and the names by which a config.json finds both.

This is the floor under ``checkpoints``, which save and load such modules; ``Block`` stands above them.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from importlib import import_module
from typing import Any, ClassVar, Self, dataclass_transform

from torch import nn

from mmblocks.public import home
from mmblocks.support.constructor_errors import with_names

RESERVED = (
    "id_or_path",
    "revision",
    "subfolder",
    "dtype",
    "device",
    "device_map",
    "layout",
    "ignored_entries",
)
"""Arguments of ``Block.from_pretrained``, which no constructor may take."""


ABOUT_FILES = ("from_pretrained", "save_pretrained", "to_upstream", "push_to_hub")
"""Methods of every Block that read or write files; a file must not choose to call them."""


class _Signature:
    """What ``help`` and editors show of a class: the arguments by name, and not ``**``. Instances are called otherwise."""

    def __get__(self, instance: object, owner: type) -> inspect.Signature:
        if instance is not None:
            raise AttributeError("__signature__")
        return inspect.Signature(list(parameters(owner).values()))


class Configurable(nn.Module):
    """A module whose keyword-only constructor arguments are JSON values, others of its kind, or lists and dicts of these.

    See ``Block`` for what a class has to keep to.

    Attributes:
        layouts: the published checkpoints that the class can read.
        former: a layout whose side "theirs" has the names that earlier versions of the class saved tensors under; None where all
            names are what they were.
        shorthand: a function of keywords, or a class: what the ``**`` at the end of the constructor's signature stands for, so that
            arguments that several classes share are written once. ``functools.partial`` gives it other defaults, which the
            constructor has to use too; ``together`` makes one of several.
        shorthand_of: the argument that may be given in place of all those of the shorthand, where there is one.
        origin: the published checkpoint that the module was loaded from; None if there is none.

    Raises:
        TypeError: positional or unknown arguments; or, when a class is defined, a constructor that takes anything but keywords.
    """

    __signature__: ClassVar[Any] = _Signature()
    layouts: ClassVar[tuple[Any, ...]] = ()
    former: ClassVar[Any] = None  # checkpoints.layouts.layout.Layout, which stands above
    shorthand: ClassVar[Callable[..., Any] | None] = None
    shorthand_of: ClassVar[str] = ""
    origin: Any = None  # checkpoints.origin.Origin, which stands above

    _built: tuple[type["Configurable"], dict[str, Any]]
    """The class and arguments of the constructor call. Libraries that wrap modules may change the class afterwards."""

    def __init_subclass__(cls, *, has_name: bool = True, **keywords: object) -> None:
        super().__init_subclass__(**keywords)
        _check_constructor(cls)
        if "__init__" in vars(cls):
            cls.__init__ = with_names(cls.__init__)  # type: ignore[method-assign]
        if has_name:
            register(cls)

    def __new__(cls, *args: Any, **arguments: Any) -> Self:  # of any constructor
        """Records the arguments, whichever class in the family they go to."""
        if args:
            names = ", ".join(f"{name}=..." for name in parameters(cls))
            raise TypeError(f"{cls.__name__} takes keyword arguments only: {cls.__name__}({names})")
        known = parameters(cls)
        if arguments and _takes_shorthand(cls):  # copies are made without any; of other classes Python says so itself
            _check_names(cls, arguments)
        replaced = replaced_names(cls, arguments) or {cls.shorthand_of}
        self = super().__new__(cls)
        defaults = {name: p.default for name, p in known.items() if p.default is not p.empty}
        recorded = {name: _recorded(value) for name, value in (defaults | arguments).items() if name not in replaced}
        # Recorded here rather than in __init__, which a subclass calls with the arguments of its base class. nn.Module's own
        # setattr is not ready yet.
        object.__setattr__(self, "_built", (cls, recorded))
        return self

    def __init__(self) -> None:
        super().__init__()

    @property
    def config(self) -> dict[str, Any]:
        """Argument name -> value, in the constructor's order, defaults included. Blocks are the Blocks themselves."""
        cls, recorded = self._built
        return {name: self._current(name, recorded[name]) for name in parameters(cls) if name in recorded}

    def _current(self, name: str, given: object) -> object:
        """An argument as it is now: parts may have been replaced, added or removed where they are kept."""
        kept: Any = self._modules.get(name)  # a list or dict of modules, or one of any kind
        if isinstance(given, Configurable) and isinstance(kept, Configurable):
            return kept
        if isinstance(given, dict) and hasattr(kept, "items"):  # nn.ModuleDict or the like
            now = dict(kept.items())
            return now if _only_blocks(*given.values(), *now.values()) else _recorded(given)
        if isinstance(given, tuple) and isinstance(kept, nn.ModuleList) and _only_blocks(*given, *kept):
            return tuple(kept)
        return _recorded(given)


def parameters(cls: type[Any]) -> dict[str, inspect.Parameter]:
    """The constructor's arguments by name; those of the ``shorthand`` in the place of its ``**``."""
    own = _own_parameters(cls)
    if not _takes_shorthand(cls):
        return own
    own.popitem()
    return own | {name: each for name, each in inspect.signature(cls.shorthand).parameters.items() if name not in own}


def _own_parameters(cls: type[Any]) -> dict[str, inspect.Parameter]:
    return dict(list(inspect.signature(cls.__init__).parameters.items())[1:])


def _takes_shorthand(cls: type[Any]) -> bool:
    """Whether the constructor ends with a ``**`` that a shorthand stands for; descriptions have none."""
    own = list(_own_parameters(cls).values())
    return getattr(cls, "shorthand", None) is not None and bool(own) and own[-1].kind is inspect.Parameter.VAR_KEYWORD


def together(*shorthands: Callable[..., Any]) -> Callable[..., tuple[dict[str, Any], ...]]:
    """One shorthand of several: called with arguments of any of them, it gives those of each, defaults included.

        class Captioner(Block):
            shorthand = staticmethod(together(llama_layer, partial(PatchSizes, patch_size=14)))

            def __init__(self, *, dim: int, **arguments: Unpack[CaptionerArguments]) -> None:
                llama, patches = together(llama_layer, partial(PatchSizes, patch_size=14))(**arguments)

    Raises:
        ValueError: two of them have an argument of the same name.
        TypeError: when it is called, an argument of none.
    """
    owned = [inspect.signature(each, eval_str=True).parameters for each in shorthands]
    whole = inspect.Signature([each for names in owned for each in names.values()])

    def every(**given: object) -> tuple[dict[str, Any], ...]:
        bound = whole.bind(**given)
        bound.apply_defaults()
        return tuple({name: bound.arguments[name] for name in names} for names in owned)

    every.__signature__ = whole  # type: ignore[attr-defined]  # read by inspect
    return every


def shorthand_names(cls: type[Any]) -> frozenset[str]:
    """The arguments that stand in the place of ``shorthand_of``; none for a class that does not take that argument."""
    shorthand = getattr(cls, "shorthand", None)
    if shorthand is None or cls.shorthand_of not in parameters(cls):
        return frozenset()
    return frozenset(inspect.signature(shorthand).parameters)


def replaced_names(cls: type[Any], given: Mapping[str, Any]) -> frozenset[str]:
    """The arguments of the shorthand where ``given`` has the one that stands for them all; none otherwise."""
    return shorthand_names(cls) if given.get(getattr(cls, "shorthand_of", "")) is not None else frozenset()


def _check_names(cls: type[Configurable], given: Mapping[str, Any]) -> None:
    """Refuses arguments that a class with a shorthand does not take, or not together, and what is lacking."""
    known, whole = parameters(cls), cls.shorthand_of
    for name in given:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ";"
            raise TypeError(f"{cls.__name__} has no argument {name!r}{hint} accepted: {', '.join(known)}")
    both = [name for name in given if name in replaced_names(cls, given)]
    if both:
        raise TypeError(f"{cls.__name__} is given {whole} and {', '.join(both)}; accepted: {whole}, or the others without it")
    lacking = [name for name in required(cls, given) if name not in given]
    if lacking:
        instead = f", or {whole!r}" if set(lacking) & shorthand_names(cls) else ""
        raise TypeError(f"{cls.__name__} lacks {', '.join(map(repr, lacking))}; accepted: these{instead}")


def required(cls: type[Any], given: Mapping[str, Any]) -> list[str]:
    """The arguments without which the constructor cannot be called, when these are given."""
    optional = replaced_names(cls, given)
    return [name for name, each in parameters(cls).items() if each.default is each.empty and name not in optional]


def parts(value: object) -> Iterator[Configurable]:
    """The Blocks inside an argument, or inside a dict of arguments, however deep in lists and dicts."""
    if isinstance(value, Configurable):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from parts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from parts(item)


def _recorded(value: object) -> object:
    """A copy of the lists and dicts, so that what is recorded does not change with them."""
    if isinstance(value, list | tuple):
        return tuple(_recorded(item) for item in value)
    if isinstance(value, dict):
        return {key: _recorded(item) for key, item in value.items()}
    return value


def _only_blocks(*values: object) -> bool:
    return all(isinstance(value, Configurable) for value in values)


def _check_constructor(cls: type[Configurable]) -> None:
    for name, parameter in parameters(cls).items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            raise TypeError(f"{cls.__name__}.__init__ takes {parameter}; a Block takes keyword-only arguments: (self, *, ...)")
        if name.startswith("_") or name in RESERVED:
            raise TypeError(f"{cls.__name__}.__init__ takes {name!r}, a name that config.json or from_pretrained uses itself")


_classes: dict[str, type] = {}
"""By the names that a config.json may give. A name in a file never causes an import, save for the public names of mmblocks itself:
whoever writes a config.json must not choose which code runs."""


def name_of(cls: type) -> str:
    """What a config calls a class: the bare name for mmblocks' own, ``module.Class`` for everyone else's."""
    return cls.__qualname__ if _is_ours(cls) else f"{cls.__module__}.{cls.__qualname__}"


def register(cls: type) -> None:
    """Makes a class loadable by name. Defining it anew, as a notebook cell that is run twice does, replaces it.

    Raises:
        TypeError: two modules of mmblocks define a class of that name, so that the bare name would be ambiguous.
    """
    name = name_of(cls)
    known = _classes.get(name)
    if known is not None and known.__module__ != cls.__module__:
        raise TypeError(f"two Blocks of mmblocks are called {name!r}: in {known.__module__} and in {cls.__module__}")
    _classes[name] = cls


def find(name: str) -> type:
    """The class that a config calls ``name``.

    Raises:
        ValueError: no class of that name has been defined so far.
    """
    if name not in _classes:
        _import_public(name)
    if name not in _classes:
        close = get_close_matches(name, _classes, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(
            f"unknown class {name!r}{hint}: a config never causes an import,"
            " so import the module that defines the class first, then load again"
        )
    return _classes[name]


def _import_public(name: str) -> None:
    """A public name of mmblocks is imported, and so registered."""
    module = home(name)
    if module is not None:
        import_module(module)


def _is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "mmblocks"


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Description:
    """A frozen dataclass whose fields are JSON values, other descriptions, or tuples and dicts of these.

    A subclass is made a dataclass by being defined, and is found by name when a config is read, like a Block's class:

        class Decay(Mixer):
            rate: float = 0.9

            def build(self, site: Site) -> nn.Module: ...

        Decay(rate=0.5)      # in config.json: {"_kind": "my_module.Decay", "rate": 0.5}

    Lists are kept as tuples, dicts as copies. ``check`` is called when all fields are set.

    Raises:
        TypeError: when a subclass is defined, a field whose name begins with an underscore, as those of config.json do.
    """

    def __init_subclass__(cls, **keywords: object) -> None:
        super().__init_subclass__(**keywords)
        dataclass(frozen=True, kw_only=True)(cls)
        for name in parameters(cls):
            if name.startswith("_"):
                raise TypeError(f"{cls.__name__} has the field {name!r}; accepted: names that begin with a letter")
        register(cls)

    def __post_init__(self) -> None:
        for name, value in self.entries().items():
            object.__setattr__(self, name, _recorded(value))
        self.check()

    def check(self) -> None:
        """Refuses values that do not go together; a subclass says which.

        Raises:
            ValueError: with what is accepted.
        """

    def entries(self) -> dict[str, Any]:
        """The fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
