"""A hub of one's own: the routes that huggingface_hub asks for, on 127.0.0.1, over repositories in memory."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """What the server holds, what it was asked, and how it misbehaves.

    Attributes:
        commits: repository -> its commits, the newest last: (hash, {path: content}).
        token: where it is set, every request must bear it.
        damage: pattern of paths -> "truncated", "corrupted", "redirect", "no ranges" (the first answer is truncated, and all of the
            file is sent where its rest is wanted) or "xet" (the file is said to be in Xet's storage).
        elsewhere: where "redirect" leads, and the first request for a token of Xet's.
        listing: changes what is said of a repository.
        headers: pattern of paths -> headers of every answer about these files; None takes one away.
        statuses: pattern of paths -> the status of every answer about these files.
        bodies: pattern of paths -> pieces that are sent in place of these files, of a length that is not stated.
        num_sent: bytes of such pieces.
        requests: ("GET", path, authorization) of each request.
    """

    commits: dict[str, list[tuple[str, dict[str, bytes]]]] = field(default_factory=dict)
    token: str | None = None
    damage: dict[str, str] = field(default_factory=dict)
    elsewhere: str = ""
    listing: Callable[[dict], object] = lambda answer: answer
    headers: dict[str, dict[str, str | None]] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    bodies: dict[str, Iterable[bytes]] = field(default_factory=dict)
    num_sent: int = 0
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    url: str = ""

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        name = hashlib.sha1(
            json.dumps([repo, sorted((k, hashlib.sha1(v).hexdigest()) for k, v in files.items())]).encode()
        ).hexdigest()
        self.commits.setdefault(repo, []).append((name, files))
        return name

    def files(self, repo: str, revision: str = "main") -> tuple[str, dict[str, bytes]] | None:
        for name, files in reversed(self.commits.get(repo, [])):
            if revision in ("main", name):
                return name, files
        return None

    def paths(self, method: str = "GET") -> list[str]:
        """Of the files that were downloaded."""
        return [path.split("/", 5)[5] for verb, path, _ in self.requests if verb == method and "/resolve/" in path]


def is_lfs(path: str) -> bool:
    return path.endswith((".safetensors", ".pt", ".bin"))


def describe(path: str, content: bytes) -> dict:
    about = {"rfilename": path, "size": len(content)}
    about["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    if is_lfs(path):
        about["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 1}
    return about


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments):
        pass

    def reply(self, status: int, content: object = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        place = unquote(urlsplit(self.path).path)
        headers.setdefault("Content_Length", str(len(body)))
        pieces = next((pieces for pattern, pieces in self.hub.bodies.items() if fnmatch(place, pattern)), None)
        if status >= 300:
            pieces = None
        if pieces is not None and self.command == "GET":
            del headers["Content_Length"]
            headers["Transfer_Encoding"] = "chunked"
        for pattern, changes in self.hub.headers.items():
            if fnmatch(place, pattern):
                headers = {name: value for name, value in (headers | changes).items() if value is not None}
        self.send_response(next((number for pattern, number in self.hub.statuses.items() if fnmatch(place, pattern)), status))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if pieces is None:
            self.wfile.write(body)
        else:
            self.send(pieces)

    def send(self, pieces: Iterable[bytes]) -> None:
        """As long as somebody listens."""
        self.close_connection = True
        with suppress(OSError):
            for piece in pieces:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                self.hub.num_sent += len(piece)
            self.wfile.write(b"0\r\n\r\n")

    def refuse(self, code: str, status: int = 404) -> None:
        self.reply(status, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    def begin(self) -> tuple[str, bytes] | None:
        """The path and the body, unless the token is wrong."""
        path = unquote(urlsplit(self.path).path)
        length = int(self.headers.get("Content-Length") or 0)
        body = self.chunks() if "chunked" in self.headers.get("Transfer-Encoding", "") else self.rfile.read(length)
        self.hub.requests.append((self.command, path, self.headers.get("Authorization")))
        if (
            self.hub.token is not None
            and self.headers.get("Authorization") != f"Bearer {self.hub.token}"
            and "/lfs-put/" not in path
        ):
            self.refuse("RepoNotFound", 401)
            return None
        return path, body

    def chunks(self) -> bytes:
        """A body whose length is told piece by piece."""
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        begun = self.begin()
        if begun is None:
            return
        path = begun[0]
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self.model_info(found[1], found[2] or "main")
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?", path):
            self.tree(found[1], found[2])
        elif re.fullmatch(r"/api/models/[^/]+/[^/]+/xet-read-token/[^/]+", path):
            self.xet_token()
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.resolve(found[1], found[2], found[3])
        else:
            self.refuse("EntryNotFound")

    def model_info(self, repo: str, revision: str) -> None:
        if repo not in self.hub.commits:
            return self.refuse("RepoNotFound")
        found = self.hub.files(repo, revision)
        if found is None:
            return self.refuse("RevisionNotFound")
        siblings = [describe(path, content) for path, content in found[1].items()]
        answer = {"id": repo, "modelId": repo, "sha": found[0], "siblings": siblings, "private": False}
        return self.reply(200, self.hub.listing(answer))

    def tree(self, repo: str, revision: str) -> None:
        found = self.hub.files(repo, revision)
        if found is None:
            return self.refuse("RevisionNotFound")
        listed = [{"type": "file", "path": path, "size": len(content), "oid": "0" * 40} for path, content in found[1].items()]
        return self.reply(200, listed)

    def xet_token(self) -> None:
        place, self.hub.elsewhere = self.hub.elsewhere, ""
        if place:
            return self.reply(302, b"", Location=f"{place}{self.path}")
        answer = {"accessToken": "token", "exp": 2**40, "casUrl": self.hub.url}
        headers = {"X_Xet_Access_Token": "token", "X_Xet_Token_Expiration": str(2**40), "X_Xet_Cas_Url": self.hub.url}
        return self.reply(200, answer, **headers)

    def resolve(self, repo: str, revision: str, path: str) -> None:
        found = self.hub.files(repo, revision)
        if found is None:
            return self.refuse("RepoNotFound" if repo not in self.hub.commits else "RevisionNotFound")
        if path not in found[1]:
            return self.refuse("EntryNotFound")
        content = found[1][path]
        etag = hashlib.sha256(content).hexdigest() if is_lfs(path) else describe(path, content)["blobId"]
        harm = next((kind for pattern, kind in self.hub.damage.items() if fnmatch(path, pattern)), None)
        headers = {"X_Repo_Commit": found[0], "ETag": f'"{etag}"'}
        if harm == "redirect":
            place = f"{self.hub.elsewhere}{self.path}"
            return self.reply(302, b"", Location=place, X_Linked_Etag=f'"{etag}"', X_Linked_Size=str(len(content)), **headers)
        if harm == "xet":
            headers["X_Xet_Hash"] = "5" * 64
            headers["X_Xet_Refresh_Route"] = f"{self.hub.url}/api/models/{repo}/xet-read-token/{found[0]}"
        if self.command == "GET" and harm == "corrupted":
            content = bytes([content[-1] ^ 1]).join([content[:-1], b""])
        if self.command == "GET" and (harm == "truncated" or (harm == "no ranges" and not self.headers.get("Range"))):
            self.close_connection = True
            return self.reply(200, content[: len(content) // 2], Content_Length=str(len(content)), **headers)
        if self.command == "HEAD":
            headers["Content_Length"] = str(len(content))
        elif self.headers.get("Range") and harm != "no ranges":
            first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"]).groups()
            content = content[int(first) : int(last) + 1 if last else None]
            return self.reply(206, content, **headers)
        return self.reply(200, content, **headers)

    def do_PUT(self):
        begun = self.begin()
        if begun is not None:
            self.hub.objects[begun[0].rpartition("/")[2]] = begun[1]
            self.reply(200)

    def do_POST(self):
        begun = self.begin()
        if begun is None:
            return
        path, body = begun
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
            known = repo in self.hub.commits
            if not known:
                self.hub.commit(repo, {})
            self.reply(409 if known else 200, {"url": f"{self.hub.url}/{repo}"})
        elif path == "/api/validate-yaml":
            self.reply(200, {"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", path):
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "lfs" if is_lfs(name) else "regular", "shouldIgnore": False} for name in names]
            self.reply(200, {"files": modes})
        elif found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            href = f"{self.hub.url}/lfs-put/"
            objects = [{**o, "actions": {"upload": {"href": href + o["oid"]}}} for o in json.loads(body)["objects"]]
            self.reply(200, {"transfer": "basic", "objects": objects})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", path):
            self.reply(200, self.commit(found[1], body))
        else:
            self.refuse("EntryNotFound")

    def commit(self, repo: str, body: bytes) -> dict:
        files = dict(self.hub.files(repo)[1])
        for line in body.splitlines():
            step = json.loads(line)
            value = step["value"]
            if step["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif step["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif step["key"] == "deletedFile":
                del files[value["path"]]
        name = self.hub.commit(repo, files)
        return {"commitOid": name, "commitUrl": f"{self.hub.url}/{repo}/commit/{name}", "pullRequestUrl": None}


class Running:
    """A hub after an address, from ``with`` to its end."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub

    def __enter__(self) -> Hub:
        handler = type("Bound", (Handler,), {"hub": self.hub})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.hub.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        return self.hub

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
