"""The config of a published checkpoint, read whole: what a layout has not looked at is found, and refused. And the way back.

    def llama(config: Mapping[str, Any]) -> dict[str, Any]:
        check_model(config, "llama", "mistral")
        only(config, "hidden_act", "silu", "swish")
        return {"dim": config["hidden_size"], **read_own(config, {"bias": False})}

    def published_llama(arguments: Arguments) -> dict[str, Any]:
        check_arguments(arguments, gated=True)
        return {"hidden_size": arguments["dim"], "hidden_act": "silu", **written_own(arguments, {"bias": False})}

A reader takes single entries. An entry that it gives to the Block as it is, such as a dict of arguments, counts as read.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from mmblocks.checkpoints.layouts.rules import Arguments


class PublishedConfig(Mapping[str, Any]):
    """A config that notes which of its entries are read.

    ``in``, ``len`` and iterating look at names alone, and note nothing; dicts inside it are configs of this kind too.

    Args:
        content: what the file holds.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._content = content
        self._path = ""
        self._read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        value = self._content[key]
        path = self.title(key)
        if isinstance(value, Mapping):
            return self._inside(value, path)
        if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            found = (
                self._inside(item, f"{path}.{number}") if isinstance(item, Mapping) else item for number, item in enumerate(value)
            )
            self._read |= {f"{path}.{number}" for number, item in enumerate(value) if not isinstance(item, Mapping)}
            return list(found)
        self._read.add(path)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)

    def __contains__(self, key: object) -> bool:
        return key in self._content

    def __repr__(self) -> str:
        return repr(dict(self._content))

    def title(self, key: str) -> str:
        """The entry's name from the top of the file, with dots."""
        return f"{self._path}.{key}" if self._path else key

    def whole(self) -> dict[str, Any]:
        """All of it, as plain dicts and lists; everything in it counts as read."""
        return {key: plain(self[key]) for key in self}

    def unread(self) -> dict[str, Any]:
        """The entries that nobody has looked at, by their names from the top of the file. None says nothing, and is left out."""
        return {path: value for path, value in _leaves(self._content, self._path) if value is not None and path not in self._read}

    def _inside(self, content: Mapping[str, Any], path: str) -> "PublishedConfig":
        inner = PublishedConfig(content)
        inner._path, inner._read = path, self._read
        return inner


class WithDefaults(Mapping[str, Any]):
    """A config in which some entries have the values that their own code gives them where they are missing, or None.

    Args:
        config: the config, which notes what is read of it.
        defaults: the values by name.
    """

    def __init__(self, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self.config, self.defaults = config, defaults

    def __getitem__(self, key: str) -> Any:
        found = self.config.get(key)
        return self.defaults[key] if found is None and key in self.defaults else self.config[key]

    def __iter__(self) -> Iterator[str]:
        return iter({**dict.fromkeys(self.config), **dict.fromkeys(self.defaults)})

    def __len__(self) -> int:
        return len(list(iter(self)))

    def title(self, key: str) -> str:
        """The entry's name from the top of the file, with dots."""
        return title(self.config, key)


def plain(value: object) -> Any:
    """A value with plain dicts in place of configs, all of which counts as read."""
    if isinstance(value, PublishedConfig):
        return value.whole()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(item) for item in value)
    return value


def title(config: Mapping[str, Any], key: str) -> str:
    """What an entry is called in errors: its name from the top of the file where that is known."""
    return config.title(key) if isinstance(config, PublishedConfig | WithDefaults) else key


def only(config: Mapping[str, Any], key: str, *accepted: object) -> None:
    """Refuses an entry that says what the Block does not do.

    Args:
        config: the config.
        key: the entry's name. An entry that is missing, or None, says nothing.
        accepted: what it may be.

    Raises:
        ValueError: it is something else.
    """
    value = config.get(key)
    if value is None or any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in accepted):
        return
    raise ValueError(f"{title(config, key)} is {shown(value)}; accepted: {', '.join(map(repr, accepted))}")


class OtherModelError(ValueError):
    """A config of another model than a layout's.

    Args:
        found: what the config says, in words.
        accepted: the models that it may name.
    """

    def __init__(self, found: str, accepted: tuple[str, ...]) -> None:
        super().__init__(f"{found}; accepted: {', '.join(accepted)}")
        self.found, self.accepted = found, accepted


def check_model(config: Mapping[str, Any], *accepted: str) -> None:
    """Refuses the config of another model, by its ``model_type`` and by the class that ``architectures`` names.

    Args:
        config: the config. One that names no model is taken.
        accepted: values of ``model_type``, in which case and punctuation do not count. A class fits that is called like one of
            them, as ``LlamaForCausalLM`` is for "llama", and ``Gemma3ForCausalLM`` for "gemma3_text".

    Raises:
        ValueError: it is another model's.
    """
    kind = config.get("model_type")
    if kind is not None and _letters(str(kind)) not in map(_letters, accepted):
        raise OtherModelError(f"{title(config, 'model_type')} is {shown(kind)}", accepted)
    names = "|".join(re.escape(_letters(part)) for name in accepted for part in (name, name.removesuffix("_text")))
    architectures = config.get("architectures")
    if architectures is not None and (not isinstance(architectures, list | tuple) or not architectures):
        raise ValueError(f"{title(config, 'architectures')} is {shown(architectures)}; accepted: a list of classes, or none at all")
    for architecture in architectures or ():
        if not re.fullmatch(rf"(?:{names})(?:for\w+|model|lmheadmodel)?", _letters(str(architecture))):
            raise ValueError(
                f"{title(config, 'architectures')} names {shown(architecture)}; accepted: classes of {', '.join(accepted)}"
            )


def stated(config: Mapping[str, Any], key: str, default: object) -> Any:
    """An entry, or ``default`` where it is missing or None, which says nothing. 0 and the like say something."""
    value = config.get(key)
    return default if value is None else value


def shown(value: object) -> str:
    """A value in an error: short, whatever a file holds."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def check_arguments(arguments: Arguments, **accepted: object) -> None:
    """Refuses to write a Block that the authors' config has no words for.

    Args:
        arguments: the Block's.
        accepted: by name, what alone can be said.

    Raises:
        ValueError: an argument is something else.
    """
    for name, value in accepted.items():
        given = arguments[name]
        if (tuple(given) if isinstance(given, list) else given) != value:
            raise ValueError(
                f"{name} is {shown(arguments[name])}; accepted in this layout: {value!r}, which its config cannot change"
            )


def read_own(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that a published config has no entries for, from entries under their own names, as ``written_own`` adds them.

    Args:
        config: the config.
        defaults: by name, what the arguments are where the config has no such entry, as no published file has.
    """
    return {name: as_tuples(config.get(name, default)) for name, default in defaults.items()}


def written_own(arguments: Arguments, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Entries for the arguments that are not as the defaults are."""
    return {name: arguments[name] for name, default in defaults.items() if arguments[name] != default}


def as_tuples(value: object) -> Any:
    """Lists as Blocks record them."""
    return tuple(map(as_tuples, value)) if isinstance(value, list | tuple) else value


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", name.lower())


def _has_configs(value: object) -> TypeGuard[list[Any]]:
    return isinstance(value, list) and any(isinstance(item, Mapping) for item in value)


def _leaves(value: object, path: str) -> Iterator[tuple[str, Any]]:
    """The values that are neither dicts nor lists of dicts, by their names with dots."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif _has_configs(value):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{path}.{number}")
    else:
        yield path, value
