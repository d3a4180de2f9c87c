"""The classes that a config.json may name.

A class registers itself when it is defined. A name in a file never causes an import, save for the public names of mmblocks itself:
whoever writes a config.json must not choose which code runs.
"""

from difflib import get_close_matches

_classes: dict[str, type] = {}


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
    """Public names of mmblocks are looked up lazily; looking one up imports, and so registers it."""
    import mmblocks

    if name in mmblocks.__all__ and not name.startswith("_"):
        getattr(mmblocks, name)


def _is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "mmblocks"
