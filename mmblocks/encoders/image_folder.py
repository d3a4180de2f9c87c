"""Embeddings of all images of a folder, in one file."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from PIL import Image as PILImage
from PIL import UnidentifiedImageError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmblocks.block import Block
from mmblocks.checkpoints.files.safetensors_files import open_safetensors
from mmblocks.roles import Preprocessing

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Names of files that are taken for images end like this, in capitals too."""


class FolderEmbeddings(NamedTuple):
    """What ``embed_folder`` has written.

    Attributes:
        files: names of the images, relative to their folder, with ``/`` between folders.
        embeddings: one row for each.
    """

    files: list[str]
    embeddings: Float[Tensor, "N E"]


@runtime_checkable
class _EncodesImages(Protocol):
    """Towers of images and of texts."""

    def encode_image(self, pixels: Tensor, /) -> Tensor: ...


@runtime_checkable
class _Embeds(Protocol):
    """A tower of images alone."""

    def embed(self, pixels: Tensor, /) -> Tensor: ...


def embed_folder(encoder: Block, folder: str | Path, file: str | Path, *, batch_size: int = 32, progress: bool = True) -> Path:
    """Embeds every image in a folder and the folders in it, and writes a safetensors file, which ``read_embeddings`` reads.

    Each batch is kept beside the file, in ``<file>.parts``, until all are done: called again after it was interrupted, the
    function goes on where it stopped. Its first batch is computed again and compared, so that parts of another model are not
    taken. The file itself appears in one step.

    Args:
        encoder: has ``preprocess``, and ``encode_image`` (``EVACLIP``) or ``embed`` (``EVACLIPVision``, ``OpenClipEncoder``,
            ``TimmEncoder``).
        folder: of the images; see ``IMAGES``.
        file: where to write to, ending in ``.safetensors``: "embeddings" (N, E) in float32, sorted by name, and the names.
        batch_size: images at a time.
        progress: show a bar in a terminal.

    Returns:
        The file's path.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        TypeError: an encoder without these methods.
        ValueError: a batch of no image, another ending, or a file that is no image: the message names it.

    Examples:
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from mmblocks.encoders import EVACLIPVision, embed_folder
        >>> from mmblocks.encoders.image_folder import read_embeddings
        >>> Path("photos").mkdir()
        >>> for name in ("a", "b"):
        ...     Image.new("RGB", (40, 30)).save(f"photos/{name}.png")
        >>> tower = {"dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16, "image_size": (28, 28), "patch_size": 14}
        >>> file = embed_folder(EVACLIPVision(tower=tower, embed_dim=8).eval(), "photos", "photos.safetensors", progress=False)
        >>> found = read_embeddings(file)
        >>> tuple(found.embeddings.shape), found.files
        ((2, 8), ['a.png', 'b.png'])
    """
    folder, file = Path(folder), Path(file)
    if not isinstance(encoder, Preprocessing) or not isinstance(encoder, _EncodesImages | _Embeds):
        raise TypeError(f"encoder {type(encoder).__name__} lacks preprocess, or encode_image or embed; accepted: one that has both")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; accepted: at least 1")
    names = check_places(folder, file)
    parts = file.with_name(f"{file.name}.parts")
    parts.mkdir(parents=True, exist_ok=True)
    was_training = encoder.training
    encoder.eval()
    try:
        embeddings = _all_parts(encoder, folder, names, parts, batch_size, progress)
    finally:
        encoder.train(was_training)
    _write(file, {"embeddings": torch.cat(embeddings)}, {"files": json.dumps(names)})
    shutil.rmtree(parts)
    return file


def read_embeddings(file: str | Path) -> FolderEmbeddings:
    """What ``embed_folder`` has written.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that ``embed_folder`` has not written.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"no such file: {file}")
    embeddings, names = _kept(Path(file), "files")
    try:
        files = json.loads(names or "")
    except (ValueError, RecursionError):
        files = None
    fits = isinstance(files, list) and embeddings is not None and embeddings.ndim == 2 and len(files) == len(embeddings)
    if embeddings is None or not fits or not all(map(_is_inside, files)):
        raise ValueError(f"{file} holds no embeddings of a folder; accepted: a file that embed_folder has written")
    return FolderEmbeddings(files, embeddings)


def _all_parts(encoder: Block, folder: Path, names: list[str], parts: Path, batch_size: int, progress: bool) -> list[Tensor]:
    """The embeddings of each batch, computed or, where they are kept already, read."""
    from tqdm import tqdm  # here, since nothing else needs it; huggingface-hub brings it

    embeddings: list[Tensor] = []
    with tqdm(total=len(names), desc=folder.name, unit="image", disable=None if progress else True) as bar:
        for start in range(0, len(names), batch_size):
            batch = names[start : start + batch_size]
            kept = parts / f"{start:09d}-{batch_size}.safetensors"
            seen = json.dumps([_state(folder / name, name) for name in batch])
            rows = _read_part(kept, seen, len(batch))
            if start == 0:
                before, rows = rows, _embedded(encoder, folder, batch)
                is_same = before is not None and before.shape == rows.shape and torch.allclose(rows, before, atol=1e-4)
                if not is_same:  # of another model, or other images
                    for part in parts.iterdir():
                        part.unlink()
                _write(kept, {"embeddings": rows}, {"seen": seen})
            elif rows is None:
                rows = _embedded(encoder, folder, batch)
                _write(kept, {"embeddings": rows}, {"seen": seen})
            embeddings.append(rows)
            bar.update(len(batch))
    return embeddings


def check_places(folder: Path, file: Path) -> list[str]:
    """The names of a folder's images, sorted.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        ValueError: a file to write to that has another ending than ``.safetensors``.
    """
    if file.suffix != ".safetensors":
        raise ValueError(f"file is {str(file)!r}; accepted: a name that ends in .safetensors")
    if folder.is_file():
        raise NotADirectoryError(f"{folder} is a file; accepted: a folder of images")
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    found = [path for path in folder.rglob("*") if path.suffix.lower() in IMAGES and path.is_file()]
    if not found:
        raise FileNotFoundError(f"{folder} holds no images; accepted: files ending in {', '.join(IMAGES)}")
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _state(path: Path, name: str) -> list[Any]:
    """What changes when an image does."""
    state = path.stat()
    return [name, state.st_size, state.st_mtime_ns]


@torch.no_grad()
def _embedded(encoder: Block, folder: Path, names: Sequence[str]) -> Tensor:
    pixels, preprocess = [], cast(Preprocessing, encoder).preprocess
    for name in names:
        try:
            with PILImage.open(folder / name) as image:
                pixels.append(preprocess(image))
        except (UnidentifiedImageError, PILImage.DecompressionBombError, OSError, ValueError) as error:
            raise ValueError(f"{folder / name} cannot be read as an image: {error}") from error
    device = next(encoder.parameters()).device
    embed = encoder.encode_image if isinstance(encoder, _EncodesImages) else cast(_Embeds, encoder).embed
    return embed(torch.stack(pixels).to(device)).float().cpu()


def _read_part(file: Path, seen: str, num_rows: int) -> Tensor | None:
    """What is kept of the same images; None where there is nothing, or nothing sound."""
    if not file.is_file():
        return None
    try:
        rows, mark = _kept(file, "seen")
    except ValueError:  # a broken file: its batch is computed again
        return None
    return rows if rows is not None and mark == seen and rows.ndim == 2 and len(rows) == num_rows else None


def _kept(file: Path, mark: str) -> tuple[Tensor | None, str | None]:
    """The embeddings in a file, and an entry of its metadata.

    Raises:
        ValueError: it is no safetensors file.
    """
    entry = open_safetensors(file).get("embeddings")
    with safe_open(file, framework="pt") as content:
        found = (content.metadata() or {}).get(mark)
    return None if entry is None else entry.read(), found


def _is_inside(name: object) -> bool:
    """Whether it is the path of a file inside the folder: whoever reads it joins the two."""
    return isinstance(name, str) and "\0" not in name and not {"", ".", ".."} & set(name.split("/"))


def _write(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Beside it first, so that a file is there whole or not at all."""
    beside = file.with_name(f"{file.name}.new")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, beside, metadata=metadata)
    with beside.open("rb") as written:
        os.fsync(written.fileno())
    os.replace(beside, file)
