"""A server that means harm: nothing outside the cache is written, and no more is taken than it has stated."""

import gzip
import json
import os
from itertools import repeat
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi, close_session, constants, file_download, hf_hub_download, set_client_factory
from huggingface_hub.utils import _http, _xet
from packaging import version
from safetensors.torch import save

from mmblocks.block import Block
from mmblocks.checkpoints.files import untrusted
from mmblocks.checkpoints.files.safetensors_files import LARGEST_HEADER
from mmblocks.checkpoints.hub import answers
from mmblocks.checkpoints.hub import repository as hubs
from mmblocks.checkpoints.hub.answers import LARGEST_LISTING

# huggingface_hub's own use of its HTTP client.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

MEGABYTE = bytes(2**20)


class Crab(Block):
    def __init__(self, *, dim: int):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(dim))


@pytest.fixture
def crab(hub, tmp_path):
    Crab(dim=3).save_pretrained(tmp_path / "crab")
    return hub.commit("sea/crab", {file.name: file.read_bytes() for file in (tmp_path / "crab").iterdir()})


def written(folder: Path) -> list[str]:
    """Every file under a folder, but for the cache and what the test itself has put there."""
    found = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() or path.is_symlink()]
    return [name for name in found if name.split("/")[0] not in ("cache", "assets", "crab")]


def refused(folder: Path, match: str, **options) -> str:
    """Nothing lands beside the cache, and the refusal is one short sentence."""
    with pytest.raises(ValueError, match=match) as caught:
        Crab.from_pretrained("sea/crab", **options)
    assert written(folder) == []
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 600
    return str(caught.value)


NO_HASHES = ["../../../../../pwned", "/tmp/pwned", "main", "", "A" * 40, "a" * 39, "a" * 41, "a" * 40 + "\n", None, 7, ["a" * 40]]


@pytest.mark.parametrize("sha", NO_HASHES, ids=repr)
def test_commit_of_a_listing(hub, crab, tmp_path, sha):
    hub.listing = lambda answer: answer | {"sha": sha}
    refused(tmp_path, "names the commit .*; accepted: a hash of 40 hexadecimal digits")
    assert not (tmp_path / "assets").exists() or not any((tmp_path / "assets").rglob("*.json"))


def test_another_commit_than_was_requested(hub, crab, tmp_path):
    hub.listing = lambda answer: answer | {"sha": "b" * 40}
    refused(tmp_path, f"names the commit b+; accepted: {crab}", revision=crab)


@pytest.mark.parametrize(
    "name",
    ["../../../pwned", "/tmp/pwned", "a/../../pwned", "a//b", "a/./b", "", ".", "..", "a/", "..\\pwned", "\\\\host\\share",
     "C:pwned", "c:\\pwned", "a\0b", "a\nb", "x" * 5000, 7, None, ["config.json"]],
    ids=lambda name: repr(name)[:20],
)  # fmt: skip
def test_name_of_a_file(hub, crab, tmp_path, name):
    """It is never a file of the repository; the other files are there all the same."""
    hub.listing = lambda answer: answer | {"siblings": [*answer["siblings"], {"rfilename": name, "size": 1, "blobId": "0" * 40}]}
    whole = hubs.find("sea/crab", None)
    assert set(whole.files) == set(hub.files("sea/crab")[1])
    hub.requests.clear()
    with pytest.raises(ValueError, match=r"sea/crab: .* is no path of a file inside it"):
        whole.get(name if isinstance(name, str) else "..")
    assert hub.requests == [] and written(tmp_path) == []
    assert torch.equal(Crab.from_pretrained("sea/crab").weight, torch.zeros(3))


@pytest.mark.parametrize(
    "changes",
    [{"size": -1}, {"size": "360"}, {"size": 360.0}, {"size": True}, {"size": 2**60}, {"size": [360]}, {"blobId": "../pwned"},
     {"blobId": ""}, {"blobId": 7}, {"blobId": "0" * 39}, {"lfs": {"sha256": "", "size": 1, "pointerSize": 1}, "size": 1},
     {"lfs": {"sha256": "0" * 64, "size": 5, "pointerSize": 1}}],
    ids=repr,
)  # fmt: skip
def test_size_and_checksum_of_a_file(hub, crab, tmp_path, changes):
    hub.listing = lambda answer: answer | {"siblings": [row | changes for row in answer["siblings"] if "lfs" not in row]}
    refused(tmp_path, "lists '.*' with the (size|checksum|sizes)")


@pytest.mark.parametrize(
    "siblings", ["config.json", [7], [{}], [None], {"rfilename": "x"}, [{"rfilename": "config.json", "lfs": 7}]], ids=repr
)
def test_listing_that_is_none(hub, crab, tmp_path, siblings):
    hub.listing = lambda answer: answer | {"siblings": siblings}
    refused(tmp_path, "the server's listing makes no sense|accepted: ")


def test_listing_with_a_name_twice(hub, crab, tmp_path):
    hub.listing = lambda answer: answer | {"siblings": answer["siblings"] * 2}
    refused(tmp_path, "lists '.*' twice")


def test_listing_without_end(hub, crab, tmp_path):
    hub.bodies = {"/api/models/*": repeat(b" " * 2**20)}
    refused(tmp_path, f"a body of more than {LARGEST_LISTING} bytes, which is cut off")
    assert hub.num_sent < LARGEST_LISTING + 64 * 2**20  # what the sockets hold, generously


def test_listing_that_is_nested_without_end(hub, crab, tmp_path):
    hub.bodies = {"/api/models/*": [b'{"id":' + b"[" * 200_000]}
    refused(tmp_path, "no JSON, or nested without end")


def test_names_that_differ_in_case_alone(hub, crab, tmp_path):
    files = hub.files("sea/crab")[1]
    hub.commit("sea/crab", files | {"Config.json": b"{}"})
    refused(tmp_path, "lists 'config.json' and 'Config.json', which are one file where case does not count")
    hub.commit("sea/crab", files | {"Notes.md": b"a", "notes.md": b"b", "at 12:30.png": b"c"})  # are not needed
    assert torch.equal(Crab.from_pretrained("sea/crab").weight, torch.zeros(3))


@pytest.mark.parametrize("name", ["aux", "nul.json", "notes/a:b.json", "a./config.json"])
def test_names_that_windows_keeps(hub, name):
    hub.commit("sea/crab", {name: b"{}"})
    with pytest.raises(ValueError, match="is no name of a file on Windows"):
        hubs.find("sea/crab", None).get(name)


@pytest.mark.parametrize(
    "revision", ["../../x", "a..b", "/a", "a/", "-a", "a b", "a:b", "a\\b", "a\0b", "a~1", "x.lock", ".a", "a@{1}"]
)
def test_revision_that_is_none(hub, crab, revision, tmp_path):
    refused(tmp_path, r"revision is .*; accepted: the name of a branch or tag", revision=revision)
    assert hub.requests == []


@pytest.mark.parametrize("revision", ["v1.0", "refs/pr/1", "feature/long-name_2", "1a2b3c4"])
def test_revision_that_there_might_be(hub, crab, revision):
    with pytest.raises(FileNotFoundError, match="has no revision"):
        Crab.from_pretrained("sea/crab", revision=revision)


@pytest.mark.parametrize(
    ("headers", "match"),
    [
        ({"ETag": '"../../../../pwned"'}, "the ETag"),
        ({"ETag": '"/tmp/mmblocks-pwned"'}, "the ETag"),
        ({"X_Linked_Etag": '"../../../../pwned"'}, "the ETag"),
        ({"ETag": 'W/".."'}, "the ETag"),
        ({"ETag": '"a\\b"'}, "the ETag"),
        ({"X_Repo_Commit": "../../../../pwned"}, "the commit"),
        ({"X_Repo_Commit": "b" * 40}, "the commit"),
        ({"X_Xet_Hash": "../../pwned", "X_Xet_Refresh_Route": "http://127.0.0.1:1/"}, "the Xet hash"),
        ({"X_Linked_Size": "-1"}, "the size '-1'"),
        ({"X_Linked_Size": "9" * 30}, "the size '999"),
        ({"X_Linked_Size": "3.5"}, "the size '3.5'"),
        ({"X_Linked_Size": "1"}, "the size 1, but the repository lists"),
    ],
)
def test_headers_of_a_file(hub, crab, tmp_path, headers, match):
    hub.headers = {"*/config.json": headers}
    refused(tmp_path, f"config.json of sea/crab: the server answers with {match}")


def test_commit_of_a_file_that_is_not_there(hub, crab, tmp_path):
    """huggingface_hub notes, under the commit that the server names, that there is no such file."""
    hub.statuses = {"*/config.json": 404}
    hub.headers = {"*/config.json": {"X_Repo_Commit": "../../../../pwned", "X_Error_Code": "EntryNotFound"}}
    refused(tmp_path, "the server answers with the commit")


def test_body_longer_than_stated_is_cut_off(hub, crab, tmp_path):
    size = len(hub.files("sea/crab")[1]["config.json"])
    hub.bodies = {"*/resolve/*/config.json": repeat(MEGABYTE, 300)}
    assert f"a body of more than {size} bytes, which is cut off" in refused(tmp_path, "config.json of sea/crab")
    assert hub.num_sent < 32 * 2**20  # what the sockets hold
    assert sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*") if file.is_file()) < 1000


def test_body_whose_length_is_another_than_stated_is_not_begun(hub, crab, tmp_path):
    content = hub.files("sea/crab")[1]
    whole = hubs.find("sea/crab", None)
    content["config.json"] += b" " * 5000
    with pytest.raises(ValueError, match=r"the size \d+, but the repository lists \d+ bytes"):
        whole.get("config.json")
    hub.headers = {"*/config.json": {"X_Linked_Size": str(whole.files["config.json"].size)}}
    with pytest.raises(ValueError, match=r"a body of \d+ bytes; stated: \d+"):
        whole.get("config.json")
    assert written(tmp_path) == []


@pytest.mark.skipif(version.parse(huggingface_hub.__version__).major < 2, reason="huggingface_hub appends all to the first part")
def test_resumed_download_where_ranges_are_ignored(hub, crab, monkeypatch):
    """As some proxies do."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 16)
    hub.damage = {"model.safetensors": "no ranges"}
    file = hubs.find("sea/crab", None).get("model.safetensors")
    assert file.read_bytes() == hub.files("sea/crab")[1]["model.safetensors"]
    assert len(hub.paths("GET")) == 2


def test_size_that_is_stated_nowhere(hub, crab, tmp_path):
    hub.listing = lambda answer: answer | {"siblings": [{**row, "size": None} for row in answer["siblings"] if "lfs" not in row]}
    hub.headers = {"*/config.json": {"Content_Length": None}}
    hub.bodies = {"*/config.json": [b"{}"]}
    with pytest.raises((ValueError, ConnectionError), match=r"a body, but states its size nowhere|not in the cache"):
        Crab.from_pretrained("sea/crab")  # huggingface_hub 1 refuses it by itself
    assert written(tmp_path) == [] and hub.num_sent <= 2


def test_size_that_is_stated_before_the_download_alone(hub, crab, tmp_path):
    hub.listing = lambda answer: answer | {"siblings": [{**row, "size": None} for row in answer["siblings"] if "lfs" not in row]}
    hub.bodies = {"*/resolve/*/config.json": repeat(MEGABYTE, 300)}
    refused(tmp_path, "which is cut off")
    assert hub.num_sent < 32 * 2**20


def test_compressed_body(hub, crab, tmp_path):
    size = len(hub.files("sea/crab")[1]["config.json"])
    hub.headers = {"*/config.json": {"Content_Encoding": "gzip", "X_Linked_Size": str(size)}}
    hub.bodies = {"*/resolve/*/config.json": [gzip.compress(bytes(2**24))[: size - 1]]}
    refused(tmp_path, "an encoded body")


def test_redirections_without_end(hub, crab, tmp_path):
    hub.statuses = {"*/resolve/*/config.json": 302}
    hub.headers = {"*/resolve/*/config.json": {"Location": f"/sea/crab/resolve/{crab}/config.json"}}
    with pytest.raises((ValueError, ConnectionError), match="redirect"):
        Crab.from_pretrained("sea/crab")
    assert len(hub.requests) < 40


def test_refusal_without_end(hub, crab, tmp_path):
    hub.statuses = {"*/resolve/*/config.json": 500}
    hub.bodies = {"*/resolve/*/config.json": repeat(MEGABYTE)}
    with pytest.raises((ValueError, ConnectionError)):
        Crab.from_pretrained("sea/crab")
    assert hub.num_sent < 64 * 2**20


def test_client_that_is_closed_meanwhile(hub, crab, tmp_path):
    hub.headers = {"*/config.json": {"ETag": '"../../../../pwned"'}}
    with answers.checked("config.json", commit=crab):
        close_session()
        with pytest.raises(ValueError, match="the ETag"):
            hf_hub_download("sea/crab", "config.json", revision=crab)
    assert written(tmp_path) == []


def test_client_of_anothers_factory(hub, crab, monkeypatch):
    """It is used, and watched; one that comes in the middle of a download makes the download fail."""
    original = vars(_http)["_GLOBAL_CLIENT_FACTORY"]
    made = []

    def factory():
        made.append(_http.default_client_factory())
        return made[-1]

    try:
        set_client_factory(factory)
        Crab.from_pretrained("sea/crab")
        assert len(made) == 1
        with pytest.raises(ConnectionError, match="another HTTP client"), answers.checked("config.json", commit=crab):
            set_client_factory(factory)
    finally:
        set_client_factory(original)


# Xet


def test_file_in_xets_storage(hub, tmp_path, monkeypatch):
    """The token is requested in the midst of the download; the transfer itself is Xet's."""
    content = save({"a": torch.arange(1000.0)})
    asked = []

    def transferred(*, incomplete_path, xet_file_data, headers, **options):
        asked.append(_xet.refresh_xet_connection_info(file_data=xet_file_data, headers=headers).access_token)
        Path(incomplete_path).write_bytes(content)

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    monkeypatch.setattr(file_download, "is_xet_available", lambda: True)
    monkeypatch.setattr(file_download, "xet_get", transferred)
    hub.commit("sea/crab", {"model.safetensors": content})
    hub.damage = {"model.safetensors": "xet"}
    whole = hubs.find("sea/crab", None)
    content = bytes(len(content))
    with pytest.raises(ValueError, match="was damaged on the way"):
        whole.get("model.safetensors")
    content = hub.files("sea/crab")[1]["model.safetensors"]
    assert whole.get("model.safetensors").read_bytes() == content
    assert set(asked) == {"token"} and not hub.paths("GET")


@pytest.mark.parametrize("is_reached", [True, False])
def test_token_without_end(hub, monkeypatch, is_reached):
    """huggingface_hub makes a new HTTP client after an attempt that has reached nothing, which a server can bring about."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.elsewhere = "" if is_reached else "http://127.0.0.1:1"
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    monkeypatch.setattr(file_download, "is_xet_available", lambda: True)
    hub.commit("sea/crab", {"model.safetensors": b"x" * 2**22})
    hub.damage = {"model.safetensors": "xet"}
    hub.bodies = {"*/xet-read-token/*": repeat(MEGABYTE, 300)}
    match = f"a body of more than {answers.LARGEST_REFUSAL} bytes, which is cut off"
    # Early versions of huggingface_hub do not try again.
    with pytest.raises((ValueError, ConnectionError), match=match if is_reached else f"{match}|cannot be reached"):
        hubs.find("sea/crab", None).get("model.safetensors")
    assert hub.elsewhere == "" and hub.num_sent < 32 * 2**20


# Headers of safetensors files


def header_of(hub, content: bytes, pieces=None):
    hub.commit("sea/crab", {"model.safetensors": content})
    if pieces is not None:
        hub.bodies = {"*/model.safetensors": pieces}
    return hubs.find("sea/crab", None).headers("model.safetensors")


def raw(header: object) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


def test_header_of_a_file(hub):
    assert header_of(hub, save({"a": torch.ones(2, 3)}))["a"].shape == (2, 3)


def test_header_without_end(hub):
    with pytest.raises(ValueError, match=f"a body of more than {LARGEST_HEADER} bytes, which is cut off"):
        header_of(hub, b"x", repeat(MEGABYTE))
    assert hub.num_sent < LARGEST_HEADER + 64 * 2**20


@pytest.mark.parametrize("shape", [[-1], ["2"], [2.5], [True], 7, None, [[2]], [2**62], {"0": 2}], ids=repr)
def test_shape_in_a_header(hub, shape):
    with pytest.raises(ValueError, match=r"impossible shape|is no valid safetensors file"):
        header_of(hub, raw({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 8]}}))


@pytest.mark.parametrize(
    "header",
    [[], 7, {"a": 7}, {"a": {}}, {"a": {"dtype": [], "shape": [2], "data_offsets": [0, 8]}}, b"[" * 50_000, b"\xff", {"a": None}],
    ids=lambda header: repr(header)[:30],
)
def test_header_that_is_none(hub, header):
    with pytest.raises(ValueError, match=r"is no valid safetensors file|unknown dtype"):
        header_of(hub, raw(header))


# What lies in the cache


@pytest.mark.parametrize(
    "note",
    ['"../../pwned"', "7", "{", '["x"]', "[" * 100_000],
    ids=lambda note: note[:12],
)
def test_note_of_a_branch(hub, crab, tmp_path, monkeypatch, note):
    Crab.from_pretrained("sea/crab")
    (file,) = (tmp_path / "assets").rglob("main.ref.json")
    (file.parent / "pwned.json").write_text("{}")
    file.write_text(note)
    Crab.from_pretrained("sea/crab")  # notes it anew
    assert json.loads(file.read_text()) == crab
    file.write_text(note)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hubs._known("sea/crab", "main", file.parent) is None


@pytest.mark.parametrize(
    "content",
    [[], {"../x": ["", 1]}, {"config.json": 7}, {"config.json": ["", -1]}, {"config.json": ["", "1"]}, {"config.json": ["x", 1]},
     {"config.json": ["", True]}, {"config.json": [""]}, {"config.json": None}],
    ids=repr,
)  # fmt: skip
def test_note_of_a_commit(hub, crab, tmp_path, content):
    Crab.from_pretrained("sea/crab")
    (file,) = (tmp_path / "assets").rglob(f"{crab}.json")
    file.write_text(json.dumps(content))
    hub.requests.clear()
    Crab.from_pretrained("sea/crab", revision=crab)
    assert any("/api/models/" in path for _, path, _ in hub.requests)  # the Hub is asked again
    assert json.loads(file.read_text())["config.json"][1] > 0


def test_note_without_sizes(hub, crab, tmp_path):
    """As earlier versions wrote it."""
    Crab.from_pretrained("sea/crab")
    (file,) = (tmp_path / "assets").rglob(f"{crab}.json")
    file.write_text(json.dumps({name: row[0] for name, row in json.loads(file.read_text()).items()}))
    hub.requests.clear()
    Crab.from_pretrained("sea/crab", revision=crab)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_link_in_the_cache_that_leads_out(hub, crab, tmp_path, name):
    Crab.from_pretrained("sea/crab")
    (link,) = (tmp_path / "cache").rglob(f"snapshots/*/{name}")
    (tmp_path / "crab" / "secret").write_bytes(link.read_bytes())
    link.unlink()
    link.symlink_to(tmp_path / "crab" / "secret")
    refused(tmp_path, "a link that leads out of the folder")


def test_link_to_what_repositories_share(tmp_path):
    """As huggingface_hub 2 lays its cache out."""
    digest = "ab" * 32
    snapshot, store = tmp_path / "models--sea--crab" / "snapshots" / ("c" * 40), tmp_path / "blobs" / "ab"
    for folder in (snapshot, store, tmp_path / "models--sea--crab" / "blobs"):
        folder.mkdir(parents=True)
    (store / digest).write_bytes(b"{}")
    (store / "notes").write_bytes(b"{}")
    (tmp_path / "models--sea--crab" / "blobs" / "etag").symlink_to(store / digest)
    (snapshot / "config.json").symlink_to("../../blobs/etag")
    (snapshot / "b.json").symlink_to(store / "notes")
    assert untrusted.inside(snapshot, snapshot / "config.json", "") == snapshot / "config.json"
    with pytest.raises(ValueError, match="leads out"):
        untrusted.inside(snapshot, snapshot / "b.json", "")
    (tmp_path / "plain").mkdir()
    os.symlink(store / digest, tmp_path / "plain" / "config.json")
    with pytest.raises(ValueError, match="leads out"):
        untrusted.inside(tmp_path / "plain", tmp_path / "plain" / "config.json", "")


def test_others_are_not_watched(hub, crab):
    Crab.from_pretrained("sea/crab")
    hub.listing = lambda answer: answer | {"sha": "main"}
    assert HfApi().model_info("sea/crab").sha == "main"
    hub.headers = {"*/model.safetensors": {"ETag": '"odd~name"'}}
    hub.commit("sea/fish", {"model.safetensors": b"x"})
    assert Path(hf_hub_download("sea/fish", "model.safetensors")).read_bytes() == b"x"
