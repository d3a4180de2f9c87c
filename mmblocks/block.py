"""Block: a module that remembers how it was built, and so can be saved, loaded and taken apart."""

import inspect
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import nn

from mmblocks.checkpoints import classes

if TYPE_CHECKING:
    from mmblocks.checkpoints.layouts.layout import Layout
    from mmblocks.checkpoints.origin import Origin


class Block(nn.Module):
    """An ``nn.Module`` whose keyword-only constructor arguments are JSON values, other Blocks, or lists and dicts of these.

        class Projector(Block):
            def __init__(self, *, dim: int, num_layers: int = 2):
                super().__init__()
                ...

        projector = Projector(dim=64)
        projector.config                                # {"dim": 64, "num_layers": 2}
        projector.save_pretrained("my-projector")
        Projector.from_pretrained("my-projector")       # or Block.from_pretrained, which finds the class by name

    What a subclass has to keep to:

    - It keeps a Block it is given under the argument's name (``self.trunk = trunk``, ``self.inputs = nn.ModuleDict(inputs)``). A
      part that is replaced there later is the one that ``config`` shows and that is saved.
    - Its constructor works under ``torch.device("meta")``, where tensors have shapes but no values: numbers that it computes with
      tensors and needs at once are computed on an explicit ``device="cpu"``.
    - Tensors that are in no checkpoint, such as non-persistent buffers, have no values after loading. A module that has some
      defines ``reset_buffers(self, device)`` and creates them there, and may call it from its constructor too.
    - A function may be an argument. Its name is noted when saving, and the function is handed in again when loading.

    Lists and tuples are recorded, and handed in when loading, as tuples.

    Attributes:
        layouts: the published checkpoints that the class can read; see ``mmblocks.checkpoints.layouts.layout``.
        origin: the published checkpoint that the Block was loaded from, however often it was saved since; None if there is none.

    Raises:
        TypeError: positional arguments; or, when a class is defined, a constructor that takes anything but keywords.
    """

    layouts: ClassVar[tuple["Layout", ...]] = ()
    origin: "Origin | None" = None

    _built: tuple[type["Block"], dict[str, Any]]
    """The class and arguments of the constructor call. Libraries that wrap modules may change the class afterwards."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        _check_constructor(cls)
        classes.register(cls)

    def __new__(cls, *args: Any, **arguments: Any) -> Self:
        """Records the arguments, whichever class in the family they go to."""
        if args:
            names = ", ".join(f"{name}=..." for name in parameters(cls))
            raise TypeError(f"{cls.__name__} takes keyword arguments only: {cls.__name__}({names})")
        self = super().__new__(cls)
        defaults = {name: p.default for name, p in parameters(cls).items() if p.default is not p.empty}
        recorded = {name: _recorded(value) for name, value in (defaults | arguments).items()}
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

    def save_pretrained(self, folder: str | Path, *, max_shard_size: int | str = "5GB") -> None:
        """Writes ``config.json`` and ``model.safetensors``, and each Block among the arguments to a subfolder likewise.

        The folder is replaced in one step: a process that is killed leaves the old content whole. Files in it that are not a
        Block's, such as a README, survive. Tensors above ``max_shard_size`` in all go to several files with an index.

        Raises:
            TypeError: an argument that cannot be written; nothing has been written then.
            ValueError: a tensor that has no values here (meta device, or sharded over processes), a low-rank adapter that is not
                merged, or a part that has been replaced without the config knowing; nothing has been written then.
        """
        from mmblocks.checkpoints import save  # here, since safetensors is not needed to build a Block

        save.save(self, Path(folder), max_shard_size)

    def to_upstream(self, folder: str | Path, *, layout: str | None = None, max_shard_size: int | str = "5GB") -> None:
        """Writes the Block as a published checkpoint: safetensors under the published names, and ``config.json`` where it is known.

        Args:
            folder: replaced in one step, as by ``save_pretrained``.
            layout: the name of one of the class's ``layouts``; None is the one that the Block was loaded from, or the only one.
            max_shard_size: tensors above it go to several files with an index.

        Raises:
            ValueError: no such layout, several to choose from, or one that has no place for a tensor.
        """
        from mmblocks.checkpoints import upstream

        upstream.save(self, Path(folder), layout, max_shard_size)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        commit_message: str = "Upload with mmblocks",
        revision: str | None = None,
        max_shard_size: int | str = "5GB",
    ) -> str:
        """Uploads what ``save_pretrained`` writes, with a model card where the repository has none.

        Args:
            repo_id: ``organisation/name``; created where it is not there yet.
            private: whether a repository that is created is private; None is the organisation's default.
            commit_message: of the one commit that this is.
            revision: the branch; None is the main one.
            max_shard_size: as for ``save_pretrained``.

        Returns:
            The address of the commit.

        Raises:
            PermissionError, ConnectionError, FileNotFoundError: the Hub refuses, or cannot be reached, or lacks the branch.
            TypeError, ValueError: as ``save_pretrained``.
        """
        from mmblocks.checkpoints.hub import pushing

        return pushing.push(self, repo_id, private, commit_message, revision, max_shard_size)

    @classmethod
    def from_pretrained(
        cls,
        id_or_path: str | Path,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | int | None = None,
        device_map: Mapping[str, torch.device | str | int] | str | None = None,
        layout: str | None = None,
        ignored_entries: Collection[str] = (),
        **overrides: Any,
    ) -> Self:
        """A Block from a folder that ``save_pretrained`` wrote, or from a published checkpoint in one of the class's ``layouts``.

        Of a repository on the Hub only the files that the Block needs are downloaded, and compared with the Hub's checksums; with
        a commit's hash as ``revision`` there is no request at all once they are cached.

        Strict: what does not match exactly is an error, raised before any tensor is read. Tensors are read one at a time, so that
        the peak memory is that of the weights once. On a CPU they stay mapped to the files, which must not be changed in place.

        Args:
            id_or_path: the folder; or ``organisation/name`` on the Hub, which a path inside the repository may follow; or a name of
                ``list_pretrained()``. For published checkpoints also a single file of weights.
            revision: branch, tag or commit on the Hub.
            subfolder: load the part in this subfolder alone, such as ``"inputs/image"``.
            dtype: cast floating-point tensors; None keeps what the files hold.
            device: where to put the tensors; None is torch's default device.
            device_map: instead of ``device``: name of a module -> device, "disk" for what stays in the files and is read
                whenever it is used, or "meta" for what is left without values; ``""`` names all the rest. With "auto" accelerate,
                which it needs, finds room. ``forward`` moves its inputs, other methods do not.
            layout: the name of a published layout, where it shall not be detected. Which one was found is in ``origin``.
            ignored_entries: entries of a published config that are left out, such as ``"text_config.my_note"``: those that the
                layout does not know, and of which you know that they change no numbers. ``"preprocessor_config.json"`` is that file
                as a whole, ``"preprocessor_config.json/resample"`` one entry of it.
            overrides: constructor arguments that replace those of the config. A Block among them is taken as it is.

        Returns:
            The Block, in evaluation mode.

        Raises:
            FileNotFoundError: no such folder or repository, or no weights in it.
            PermissionError, ConnectionError: the Hub refuses, or cannot be reached.
            ImportError: a ``device_map`` without accelerate.
            TypeError: the folder holds a Block of a class that is not a ``cls``.
            ValueError: anything else that does not match: the class is unknown, arguments are missing or unknown, tensors are
                missing, unexpected or misshapen, no layout or several fit, an index or a link leads out of the folder, a checksum
                differs.
        """
        from mmblocks.checkpoints import load
        from mmblocks.checkpoints.hub import locating

        if device is not None and device_map is not None:
            raise ValueError(f"device is {device!r} and device_map {device_map!r}; accepted: one of them")
        where = torch.get_default_device() if device is None else torch.device(device)
        place = locating.locate(cls, id_or_path, subfolder, revision, layout, overrides, tuple(ignored_entries))
        loaded = load.load(place, overrides, dtype, where, device_map)
        if not isinstance(loaded, cls):
            raise TypeError(f"{id_or_path} is a {type(loaded).__name__}, which is not a {cls.__name__}")
        return loaded

    def _current(self, name: str, given: Any) -> Any:
        """An argument as it is now: parts may have been replaced, added or removed where they are kept."""
        kept: Any = self._modules.get(name)
        if isinstance(given, Block) and isinstance(kept, Block):
            return kept
        if isinstance(given, dict) and hasattr(kept, "items"):  # nn.ModuleDict or the like
            now = dict(kept.items())
            return now if _only_blocks(*given.values(), *now.values()) else _recorded(given)
        if isinstance(given, tuple) and isinstance(kept, nn.ModuleList) and _only_blocks(*given, *kept):
            return tuple(kept)
        return _recorded(given)


def parameters(cls: type[Block]) -> dict[str, inspect.Parameter]:
    """The constructor's arguments by name."""
    return dict(list(inspect.signature(cls.__init__).parameters.items())[1:])


def parts(value: Any) -> Iterator[Block]:
    """The Blocks inside an argument, or inside a dict of arguments, however deep in lists and dicts."""
    if isinstance(value, Block):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from parts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from parts(item)


def _recorded(value: Any) -> Any:
    """A copy of the lists and dicts, so that what is recorded does not change with them."""
    if isinstance(value, list | tuple):
        return tuple(_recorded(item) for item in value)
    if isinstance(value, dict):
        return {key: _recorded(item) for key, item in value.items()}
    return value


def _only_blocks(*values: Any) -> bool:
    return all(isinstance(value, Block) for value in values)


def _check_constructor(cls: type[Block]) -> None:
    reserved = set(inspect.signature(Block.from_pretrained).parameters) - {"overrides"}
    for name, parameter in parameters(cls).items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            raise TypeError(f"{cls.__name__}.__init__ takes {parameter}; a Block takes keyword-only arguments: (self, *, ...)")
        if name.startswith("_") or name in reserved:
            raise TypeError(f"{cls.__name__}.__init__ takes {name!r}, a name that config.json or from_pretrained uses itself")
