"""Block: a module that remembers how it was built, and so can be saved, loaded and taken apart."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.checkpoints.origin import Origin
from mmblocks.configurable import Configurable


class Block(Configurable, has_name=False):
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
    - A function may be an argument. Its name is noted when saving. When loading, a function at the top of a module that is imported
      by then is found by that name, if the module is yours, or holds rules of mmblocks; any other is handed in again.

    Lists and tuples are recorded, and handed in when loading, as tuples.

    Attributes:
        layouts: the published checkpoints that the class can read; see ``mmblocks.checkpoints.layouts.layout``.
        former: names that tensors had in earlier versions, as a layout; see ``Configurable``.
        origin: the published checkpoint that the Block was loaded from, however often it was saved since; None if there is none.

    Raises:
        TypeError: positional arguments; or, when a class is defined, a constructor that takes anything but keywords.

    Examples:
        >>> import torch
        >>> from mmblocks import Block
        >>> from mmblocks.connectors import MLPProjector
        >>> projector = MLPProjector(in_dim=4, dim=8)
        >>> projector.save_pretrained("projector")
        >>> again = Block.from_pretrained("projector")
        >>> x = torch.randn(2, 4)
        >>> again.config == projector.config, torch.equal(again(x), projector(x))
        (True, True)
    """

    layouts: ClassVar[tuple[Layout, ...]] = ()
    former: ClassVar[Layout | None] = None
    origin: Origin | None = None

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
        **overrides: Any,  # the class's own arguments
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

        return load.load(
            cls,
            id_or_path,
            overrides,
            revision=revision,
            subfolder=subfolder,
            dtype=dtype,
            device=device,
            device_map=device_map,
            layout=layout,
            ignored=ignored_entries,
        )
