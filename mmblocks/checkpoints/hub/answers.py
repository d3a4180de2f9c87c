"""What a Hub's server answers, checked before huggingface_hub acts on it.

huggingface_hub makes paths of headers: of the commit's hash (``X-Repo-Commit``) and of the ETag, without looking at either. It
takes a body of any length before it compares the length with the one that was stated, and unpacks compressed ones. Hooks of its
HTTP client see every answer first. They are idle but inside ``checked``, so that other users of huggingface_hub notice nothing.

What Xet's own client transfers goes past them: such a file is compared with its checksum once it is there.
"""

import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module
from threading import Lock
from typing import Any, Protocol, TypeVar, runtime_checkable
from urllib.parse import urlsplit

from huggingface_hub import errors, get_session
from huggingface_hub.utils import _http

TRANSPORT: type[Exception] = vars(errors)["HTTPError"]
"""What the HTTP client in use raises; which client that is differs between versions of huggingface_hub."""

COMMIT = re.compile(r"[0-9a-f]{40}")
"""A commit's hash."""

LARGEST_LISTING = 64 * 2**20
"""Bytes of what the Hub says about a repository; a file takes about three hundred."""

LARGEST_REFUSAL = 2**20
"""Bytes that come with an error, a redirection or a token."""

MOST_REDIRECTIONS = 20

_ETAG = re.compile(r"[\w+-][\w.+-]{0,199}", re.ASCII)
_XET_HASH = re.compile(r"[0-9a-f]{64}")
_COUNT = re.compile(r"[0-9]{1,18}")
_XET_TOKEN = "X-Xet-Access-Token"
_FACTORY = "_GLOBAL_CLIENT_FACTORY"
_lock = Lock()


@runtime_checkable
class _Request(Protocol):
    """Of httpx, or of what has followed it."""

    method: str
    headers: MutableMapping[str, str]


@runtime_checkable
class _Response(Protocol):
    status_code: int
    headers: Mapping[str, str]
    request: _Request
    stream: "_Stream"


@runtime_checkable
class _Stream(Protocol):
    def __iter__(self) -> Iterator[bytes]: ...

    def close(self) -> None: ...


@runtime_checkable
class _Client(Protocol):
    event_hooks: dict[str, list[Callable[..., Any]]]


C = TypeVar("C", bound=_Client)


@dataclass
class _Expected:
    """What answers have to agree with.

    Attributes:
        title: of what is requested, in errors.
        commit: the only commit they may be of; None where it is not known yet.
        size: of the file, in bytes; None where it is not stated yet.
        largest: bytes of a body where no file is requested; None for a file.
        redirections: so far.
    """

    title: str
    commit: str | None
    size: int | None
    largest: int | None
    redirections: int = 0


_expected: ContextVar[_Expected | None] = ContextVar("expected", default=None)


@contextmanager
def checked(title: str, *, commit: str | None = None, size: int | None = None, largest: int | None = None) -> Iterator[None]:
    """Inside, what huggingface_hub is answered in this thread has to be sound.

    Args:
        title: of what is requested.
        commit: the only commit that answers may be of.
        size: of the requested file; None takes what the server states before the download.
        largest: bytes of an answer that is no file of the repository.

    Raises:
        ValueError: an answer is not sound. Nothing of it has been written; of a body that is too long no more than ``size`` bytes.
        ConnectionError: somebody has given huggingface_hub another HTTP client meanwhile, so that answers may have gone unchecked.
    """
    _watch()
    token = _expected.set(_Expected(title, commit, size, largest))
    try:
        yield
    finally:
        _expected.reset(token)
    if _check not in get_session().event_hooks["response"]:
        raise ConnectionError(f"{title}: huggingface_hub was given another HTTP client meanwhile, whose answers are not checked")


def _watch() -> None:
    """Puts the hooks into the client that huggingface_hub has now, and into those that it will make.

    It makes one after a fork, when it is told to, and between two attempts where the first has reached nothing. Its own
    ``set_client_factory`` would close the client that others are at work with.
    """
    with _lock:
        factory = vars(_http).get(_FACTORY)
        if factory is not None and not isinstance(factory, _Watched):
            setattr(_http, _FACTORY, _Watched(factory))
        _hook(get_session())


@dataclass(frozen=True)
class _Watched:
    """Makes HTTP clients with the hooks.

    Attributes:
        factory: makes them without.
    """

    factory: Callable[[], _Client]

    def __call__(self) -> _Client:
        return _hook(self.factory())


def _hook(client: C) -> C:
    """The client, with the hooks."""
    hooks = client.event_hooks
    if _check not in hooks["response"]:
        client.event_hooks = {"request": [*hooks["request"], _ask_plainly], "response": [*hooks["response"], _check]}
    return client


def _ask_plainly(request: _Request) -> None:
    """A compressed body may be a thousand times as long as it looks."""
    if _expected.get() is not None:
        request.headers["Accept-Encoding"] = "identity"


def _check(response: _Response) -> None:
    expected = _expected.get()
    if expected is None:
        return
    is_redirection, is_good = 300 <= response.status_code < 400, 200 <= response.status_code < 300
    if is_redirection:
        expected.redirections += 1
        if expected.redirections > MOST_REDIRECTIONS:
            raise _refused(expected, f"more than {MOST_REDIRECTIONS} redirections")
    _check_names(response, expected, is_redirection)
    if expected.largest is None and response.request.method == "HEAD" and (is_good or is_redirection):
        _check_stated(response, expected, is_redirection)
    if is_good and response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise _refused(expected, f"an encoded body ({response.headers['Content-Encoding']}); accepted: plain ones, as requested")
    if response.request.method != "HEAD":
        response.stream = _Bounded(response.stream, _limit(response, expected) if is_good else LARGEST_REFUSAL, expected)


def _check_names(response: _Response, expected: _Expected, is_redirection: bool) -> None:
    """The headers that huggingface_hub makes paths of."""
    commit = response.headers.get("X-Repo-Commit")
    if commit is not None and (not COMMIT.fullmatch(commit) or commit != (expected.commit or commit)):
        raise _refused(expected, f"the commit {commit[:200]!r}; accepted: {expected.commit or 'a hash of 40 hexadecimal digits'}")
    xet_hash = response.headers.get("X-Xet-Hash")
    if xet_hash is not None and not _XET_HASH.fullmatch(xet_hash):
        raise _refused(expected, f"the Xet hash {xet_hash[:200]!r}; accepted: 64 hexadecimal digits")
    linked, own = response.headers.get("X-Linked-Etag"), response.headers.get("ETag")
    # A redirection within the server is followed, and what it says of itself is not used.
    is_passed_over = is_redirection and not urlsplit(response.headers.get("Location", "")).netloc
    found = linked or (None if is_passed_over else own)
    if response.request.method == "HEAD" and found and not _ETAG.fullmatch(found.lstrip("W/").strip('"')):
        raise _refused(expected, f"the ETag {found[:200]!r}; accepted: letters, digits and _ . + -")


def _check_stated(response: _Response, expected: _Expected, is_redirection: bool) -> None:
    """The size that is stated before a download; it stands from then on."""
    stated = response.headers.get("X-Linked-Size") or (None if is_redirection else response.headers.get("Content-Length"))
    if stated is None:
        return
    if not _COUNT.fullmatch(stated):
        raise _refused(expected, f"the size {stated[:200]!r}; accepted: a number of bytes")
    if expected.size is None:
        expected.size = int(stated)
    if int(stated) != expected.size:
        raise _refused(expected, f"the size {stated}, but the repository lists {expected.size} bytes")


def _limit(response: _Response, expected: _Expected) -> int:
    """How many bytes the body may have."""
    if expected.largest is not None:
        return expected.largest
    if _XET_TOKEN in response.headers:  # no file: huggingface_hub reads the header alone
        return LARGEST_REFUSAL
    if expected.size is None:
        raise _refused(expected, "a body, but states its size nowhere")
    length = response.headers.get("Content-Length")
    if length is not None and response.status_code != 206 and length != str(expected.size):
        raise _refused(expected, f"a body of {length[:200]} bytes; stated: {expected.size}")
    return expected.size


def _refused(expected: _Expected, what: str) -> ValueError:
    return ValueError(f"{expected.title}: the server answers with {what}")


class _Bounded(import_module(TRANSPORT.__module__.partition(".")[0]).SyncByteStream):  # type: ignore[misc]
    """A body that ends with an error where it goes on for too long."""

    def __init__(self, stream: _Stream, limit: int, expected: _Expected) -> None:
        self._stream, self._limit, self._expected = stream, limit, expected

    def __iter__(self) -> Iterator[bytes]:
        taken = 0
        for piece in self._stream:
            taken += len(piece)
            if taken > self._limit:
                raise _refused(self._expected, f"a body of more than {self._limit} bytes, which is cut off")
            yield piece

    def close(self) -> None:
        """Of the connection."""
        self._stream.close()
