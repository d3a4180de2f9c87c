"""The Hub: what a repository holds, getting single files of it, and putting a folder there.

Downloads go through huggingface_hub and its cache. What it leaves open is done here: every file is compared with the checksum
that the Hub states, and what a commit holds is noted beside the cache, so that loading a pinned revision again needs no
network at all. Whatever a server says is checked before it is used: see ``answers`` and ``listing``.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from huggingface_hub import HfApi, cached_assets_path, constants, errors, hf_hub_download, try_to_load_from_cache
from torch import Tensor

from mmblocks.checkpoints.files import untrusted
from mmblocks.checkpoints.files.safetensors_files import LARGEST_HEADER, meta_tensor
from mmblocks.checkpoints.hub import answers, listing
from mmblocks.checkpoints.hub.listing import Listed

_NAME = r"[\w-][\w.-]*"
_ID = re.compile(rf"(?P<repo>{_NAME}/{_NAME})(?:/(?P<path>[^\\:]+))?")


class Repository(NamedTuple):
    """What one commit of a repository holds.

    Attributes:
        name: ``organisation/name``.
        commit: the commit's hash.
        files: by path.
    """

    name: str
    commit: str
    files: dict[str, Listed]

    def get(self, path: str) -> Path:
        """A file of it, downloaded unless the cache has it.

        Raises:
            FileNotFoundError, PermissionError, ConnectionError: it cannot be had.
            ValueError: what came is not what the Hub's checksum or size says, or the name is not that of one file on every system.
        """
        listing.check_wanted(path, self.files, self.name)
        known = try_to_load_from_cache(self.name, path, revision=self.commit)
        if isinstance(known, str):
            return Path(known)
        expected, size = self.files.get(path, Listed("", None))
        with _readable_errors(self.name, self.commit), answers.checked(f"{path} of {self.name}", commit=self.commit, size=size):
            file = Path(hf_hub_download(self.name, path, revision=self.commit))
        if expected and expected != _checksum(file, expected.partition(":")[0]):
            file.resolve().unlink(missing_ok=True)
            file.unlink(missing_ok=True)
            raise ValueError(f"{path} of {self.name} was damaged on the way: its checksum is not the one that the Hub states")
        return file

    def headers(self, path: str) -> dict[str, Tensor]:
        """The tensors of a safetensors file, on the meta device; nothing but its header is downloaded.

        Raises:
            ConnectionError: the Hub does not give it.
            ValueError: it is no such file.
        """
        title = f"{path} of {self.name}"
        with _readable_errors(self.name, self.commit), answers.checked(title, commit=self.commit, largest=LARGEST_HEADER):
            try:
                found = HfApi().parse_safetensors_file_metadata(self.name, path, revision=self.commit)
            # What huggingface_hub does not look for: a header that is no object, or is nested without end.
            except (errors.SafetensorsParsingError, RecursionError, TypeError, AttributeError, KeyError, IndexError) as error:
                raise ValueError(f"{title} is no valid safetensors file: {_first_line(error)}") from error
        return {key: meta_tensor(f"{path}: {key}", entry.shape, entry.dtype) for key, entry in found.tensors.items()}

    def folder(self, path: str = "") -> list[str]:
        """Names of the files in a folder, without those in folders inside."""
        prefix = f"{path}/" if path else ""
        names = [name.removeprefix(prefix) for name in self.files if name.startswith(prefix)]
        return [name for name in names if "/" not in name]


def split_id(text: str) -> tuple[str, str] | None:
    """``organisation/name`` and the path inside it that follows, if that is what the text is."""
    found = _ID.fullmatch(text)
    if found is None or {".", ".."} & set(text.split("/")):
        return None
    return found["repo"], found["path"] or ""


def find(repo: str, revision: str | None) -> Repository:
    """What a revision of a repository holds. A commit's hash that is known already costs no request.

    Raises:
        FileNotFoundError: there is no such repository or revision.
        PermissionError: it is not for everyone.
        ConnectionError: there is no network, and it is not known from before.
        TypeError, ValueError: no name of a revision, or an answer that is not sound.
    """
    wanted = revision or constants.DEFAULT_REVISION
    listing.check_revision(wanted)
    notes = cached_assets_path("mmblocks", namespace=repo, subfolder="listings", assets_dir=constants.HF_ASSETS_CACHE)
    if answers.COMMIT.fullmatch(wanted):
        known = _known(repo, wanted, notes)
        if known is not None:
            return known
    title = f"{repo} on {constants.ENDPOINT}"
    try:
        with _readable_errors(repo, revision), answers.checked(title, largest=answers.LARGEST_LISTING):
            info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    except ConnectionError:
        known = _known(repo, wanted, notes) or _in_cache(repo, wanted)
        if known is None:
            raise
        return known
    # What huggingface_hub takes apart without looking at it.
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{title}: the server's listing makes no sense: {type(error).__name__}: {_first_line(error)}") from error
    found = Repository(repo, listing.checked_commit(info.sha, title, wanted), listing.files(info, title))
    _note(notes / f"{found.commit}.json", listing.to_note(found.files))
    _note(notes / f"{quote(wanted, safe='')}.ref.json", found.commit)
    return found


def push(folder: Path, repo: str, *, private: bool | None, message: str, revision: str | None, stale: list[str]) -> str:
    """Uploads a folder as one commit, and gives the commit's address.

    Args:
        folder: what to upload.
        repo: where to; it is created if it is not there.
        private: whether a repository that is created is private; None is the organisation's default.
        message: of the commit.
        revision: the branch; None is the main one.
        stale: patterns of files that are deleted in the same commit unless they are uploaded.
    """
    api = HfApi()
    with _readable_errors(repo, revision):
        name = api.create_repo(repo, private=private, exist_ok=True).repo_id
        keeps_card = api.file_exists(name, "README.md", revision=revision)
        commit = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message=message,
            revision=revision,
            ignore_patterns=["README.md"] if keeps_card else None,
            delete_patterns=stale,
        )
    return str(commit.commit_url)


def _known(repo: str, revision: str, notes: Path) -> Repository | None:
    """What was noted about a revision, if anything. A note that is not sound is none: it is written anew."""
    try:
        commit = revision
        if not answers.COMMIT.fullmatch(revision):
            commit = listing.checked_commit(untrusted.read_json(notes / f"{quote(revision, safe='')}.ref.json"), repo, revision)
        file = notes / f"{commit}.json"
        return Repository(repo, commit, listing.from_note(untrusted.read_json(file, unique=True), str(file)))
    except (OSError, ValueError):
        return None


def _in_cache(repo: str, revision: str) -> Repository | None:
    """What another program has downloaded of a revision, if it looks like a model."""
    config = try_to_load_from_cache(repo, "config.json", revision=revision)
    if not isinstance(config, str):
        return None
    snapshot = Path(config).parent
    if not answers.COMMIT.fullmatch(snapshot.name):
        return None
    files = (file for file in snapshot.rglob("*") if file.is_file())
    return Repository(repo, snapshot.name, {file.relative_to(snapshot).as_posix(): Listed("", None) for file in files})


def _note(file: Path, content: object) -> None:
    """In one step, so that a reader reads all of it. A cache that cannot be written to is no reason to fail."""
    beside = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        beside.write_text(json.dumps(content), encoding="utf-8")
        os.replace(beside, file)
    except OSError:
        beside.unlink(missing_ok=True)


def _checksum(file: Path, kind: str) -> str:
    digest = hashlib.sha256()
    if kind == "git":
        digest = hashlib.sha1(b"blob %d\0" % file.stat().st_size, usedforsecurity=False)
    with file.open("rb") as content:
        while piece := content.read(2**20):
            digest.update(piece)
    return f"{kind}:{digest.hexdigest()}"


@contextmanager
def _readable_errors(repo: str, revision: str | None) -> Iterator[None]:
    """huggingface_hub's errors as Python's own, in one sentence."""
    where = f"{repo} on {constants.ENDPOINT}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise PermissionError(f"{where} is gated: ask for access on its page, and log in with `hf auth login`") from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(f"there is no {where}, or it is private and the token in use does not open it") from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"{where} has no revision {revision!r}") from error
    except errors.RemoteEntryNotFoundError as error:
        raise FileNotFoundError(f"{where} lacks a file: {_first_line(error)}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise ConnectionError(f"{where} cannot be reached, and what is needed of it is not in the cache") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise PermissionError(f"{where} refuses the token in use, or asks for one: log in with `hf auth login`") from error
        raise ConnectionError(f"{where} answers with an error: {_first_line(error)}") from error
    except errors.HFValidationError as error:
        raise ValueError(f"{repo!r} is no name of a repository: {_first_line(error)}") from error
    except (answers.TRANSPORT, errors.FileMetadataError) as error:
        raise ConnectionError(f"{where} cannot be reached: {_first_line(error)}") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where} answers with what is no JSON, or nested without end: {_first_line(error)}") from error
    except (FileNotFoundError, PermissionError, ConnectionError):
        raise
    except (OSError, RuntimeError) as error:  # bodies of the wrong length, and uploads that fail
        raise ConnectionError(f"a download from {where} failed: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
