"""Folders that mean harm. Nothing in them runs, nothing outside them is read or written, and memory stays small."""

import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mmblocks.block import Block
from mmblocks.checkpoints import building, load  # noqa: F401  load: its own libraries are opened before anybody looks
from mmblocks.checkpoints.files.stored import open_own, open_published
from mmblocks.checkpoints.layouts.layout import Layout, Rule

REPOSITORY = Path(__file__).parents[2]
MOST_MEMORY = 200 * 2**20


class Victim(Block):
    layouts = (
        Layout(
            name="victim", rules=(Rule("a.weight", "linear.weight"), Rule("b.weight", "linear.weight"), Rule("bias", "linear.bias"))
        ),
    )

    def __init__(self, *, dim: int = 2, num_layers: int = 0, options=None, part=None):
        super().__init__()
        self.linear = nn.Linear(dim, dim)
        self.layers = nn.ModuleList([nn.Linear(dim, dim) for _ in range(num_layers)])
        self.part = part


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A sound folder, inside one that must not change."""
    monkeypatch.chdir(tmp_path)
    Victim().save_pretrained(tmp_path / "folder")
    return tmp_path / "folder"


SEEN: list[tuple[str, str]] | None = None
"""What Python opens, runs or calls up while a folder is loaded; None while nobody looks. A hook can never be taken off again."""

HARM = {
    *(f"os.{name}" for name in ("system", "exec", "fork", "posix_spawn", "remove", "rename", "link", "symlink", "mkdir", "rmdir")),
    *("subprocess.Popen", "socket.connect", "socket.getaddrinfo", "shutil.rmtree", "ctypes.dlopen"),
}

CODE = (".py", ".pyc", ".so")


def note(event: str, arguments: tuple) -> None:
    if SEEN is not None and (event == "open" or event in HARM):
        SEEN.append((event, os.fspath(arguments[0]) if arguments and isinstance(arguments[0], str | Path) else ""))


sys.addaudithook(note)


def refused(folder: Path, match: str, kind=ValueError) -> None:
    """The folder is refused in one sentence, and neither the place around it nor memory is touched."""
    global SEEN
    around = sorted(folder.parent.rglob("*"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    SEEN = []
    try:
        with pytest.raises(kind, match=match) as caught:
            Victim.from_pretrained(folder)
    finally:
        seen, SEEN = SEEN, None
    assert [event for event, _ in seen if event != "open"] == []
    opened = {path for _, path in seen if not path.endswith(CODE)}
    assert {path for path in opened if path and not Path(path).is_relative_to(folder)} == set()
    message = str(caught.value)
    assert len(message.splitlines()) <= 4  # a grouped difference has a title and a few lines
    assert len(message) < 1000
    assert sorted(folder.parent.rglob("*")) == around
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < MOST_MEMORY


def edit(folder: Path, **changes) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | changes))


# Configs


@pytest.mark.parametrize(
    ("changes", "match", "kind"),
    [
        ({"auto_map": {"AutoModel": "modeling.Model"}}, "unknown argument 'auto_map'", ValueError),
        ({"_class_name": "os.system"}, "unknown class 'os.system'", ValueError),
        ({"_class_name": "modeling.Model"}, "unknown class", ValueError),
        ({"_class_name": "__import__"}, "unknown class '__import__'", ValueError),
        ({"_class_name": "import_module"}, "unknown class", ValueError),
        ({"_class_name": "Modality"}, "unknown class", ValueError),
        ({"__class__": "x"}, "unknown argument '__class__'", ValueError),
        ({"self": 1}, "unknown argument 'self'", ValueError),
        ({"dim": "2"}, "dim|int", (ValueError, TypeError)),
        ({"dim": None}, "dim|None", (ValueError, TypeError)),
        ({"dim": -1}, "negative", ValueError),
        ({"dim": 2.5}, "dim|float", (ValueError, TypeError)),
        ({"dim": 2**70}, r".", (ValueError, TypeError)),
        ({"dim": {"__class__": "int"}}, "dim|dict", (ValueError, TypeError)),
        ({"dim": 10**9}, "does not match", ValueError),
        ({"num_layers": 10**9}, "asks for more than 3000 modules and tensors", ValueError),
        ({"part": {"_block": "../folder"}}, "accepted: the path of a subfolder", ValueError),
        ({"part": {"_block": "/etc"}}, "accepted: the path of a subfolder", ValueError),
        ({"part": {"_block": "."}}, "accepted: the path of a subfolder", ValueError),
        ({"part": {"_block": ["x"]}}, "accepted: the path of a subfolder", ValueError),
        ({"part": {"_block": "missing"}}, "there is no folder", FileNotFoundError),
        ({"_checksums": []}, "makes no sense", ValueError),
        ({"_checksums": {"tensors": "", "parts": {}}}, "does not match", ValueError),
        ({"_origin": {"source": 1, "layout": "x"}}, "_origin", ValueError),
        ({"_origin": {"source": "x", "layout": "x", "__init__": "x"}}, "_origin", ValueError),
        ({"_shared_tensors": {"linear.bias": "linear.weight"}}, "another shape", ValueError),
    ],
)
def test_config(folder, monkeypatch, changes, match, kind):
    monkeypatch.setattr(building, "MOST_ENTRIES", 3000)  # reached faster
    edit(folder, **changes)
    refused(folder, match, kind)


class Tabled(Block):
    """Holds a table that no file does."""

    def __init__(self, *, length: int):
        super().__init__()
        self.register_buffer("table", torch.zeros(length, 64), persistent=False)

    def reset_buffers(self, device):
        self.table = torch.zeros(self.config["length"], 64, device=device)


@pytest.mark.parametrize("length", [2**40, 2**26])
def test_buffers_that_no_file_holds(tmp_path, length):
    Tabled(length=2).save_pretrained(tmp_path / "folder")
    edit(tmp_path / "folder", length=length)
    with pytest.raises(ValueError, match=r"asks for \d+ bytes of buffers that are in no checkpoint; accepted: 8589934592"):
        Tabled.from_pretrained(tmp_path / "folder")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"[" * 10**6, "config.json"),
        (b'{"a":' * 10**6, "config.json"),
        (b"[" * 900 + b"]" * 900, "nested more than 64 levels"),
        (b"[" + b"[]," * 10**6 + b"[]]", "more than 500000 objects and lists"),
        (b'{"a": "' + b"x" * 2**24 + b'"}', "accepted: JSON of up to"),
        (b"[1]", "holds a list"),
        (b'{"a": ' + b"9" * 10**5 + b"}", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"", "is not JSON"),
    ],
    ids=lambda value: value[:8] if isinstance(value, bytes) else "",
)
def test_config_that_is_none(folder, text, match):
    (folder / "config.json").write_bytes(text)
    refused(folder, match)


def test_config_with_a_name_twice(folder):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"dim": 2', '"dim": 2, "dim": 3'))
    refused(folder, "the name 'dim' occurs twice")


@pytest.mark.parametrize("content", [{"hidden_size": "x", "auto_map": {"AutoModel": "x.y"}}, {"a": None}])
def test_published_config_runs_nothing(folder, content):
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "x").mkdir()
    (folder / "x" / "y.py").write_text("raise SystemExit")
    refused(folder, "fits no layout of Victim")


def test_the_hook_sees(folder):
    """What it does not note was not done."""
    global SEEN
    SEEN = []
    try:
        Victim.from_pretrained(folder)
        os.system("true")
    finally:
        seen, SEEN = SEEN, None
    assert ("open", str(folder / "config.json")) in seen
    assert "os.system" in [event for event, _ in seen]


def test_two_names_onto_one(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file({"a.weight": torch.ones(2, 2), "b.weight": torch.ones(2, 2), "bias": torch.ones(2)}, folder / "model.safetensors")
    refused(folder, "a.weight, b.weight all map onto linear.weight")


# Links and names that lead out


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_link_out_of_the_folder(folder, name):
    (folder / name).rename(folder.parent / name)
    (folder / name).symlink_to(folder.parent / name)
    refused(folder, "a link that leads out of the folder")


@pytest.mark.parametrize("target", ["/dev/zero", "/proc/self/mem", "missing", "model.safetensors"])
def test_link_to_what_is_no_file(folder, target):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(target)
    refused(folder, "does not match|leads out", ValueError)


def test_pipe(folder):
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    refused(folder, "does not match")


def test_link_to_a_published_file(tmp_path):
    (tmp_path / "folder").mkdir()
    torch.save({"a.weight": torch.ones(2, 2)}, tmp_path / "secret.pt")
    (tmp_path / "folder" / "a.pt").symlink_to(tmp_path / "secret.pt")
    refused(tmp_path / "folder", "a link that leads out of the folder")


def test_subfolder_that_is_a_link(folder):
    (folder / "link").symlink_to(folder.parent)
    with pytest.raises(ValueError, match="subfolder is 'link', a link"):
        Victim.from_pretrained(folder, subfolder="link")


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/x.safetensors", "CON.safetensors", "nul.safetensors", "com1.safetensors", "a\0.safetensors", "..", "",
     "C:x.safetensors", "\\\\host\\x.safetensors", "x.pkl"],
)  # fmt: skip
def test_index(folder, name):
    (folder / "model.safetensors").rename(folder.parent / "x.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"linear.weight": name}}))
    refused(folder, "accepted: names of .* files in the same folder")


@pytest.mark.parametrize(
    "content", ["[", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {}, "weight_map": {}}']
)
def test_index_that_is_none(folder, content):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    refused(folder, "is not an index")


# Safetensors


def write(file: Path, header: bytes | dict, data: bytes = b"", claimed: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text) if claimed is None else claimed) + text + data)


def entry(start: int, end: int, shape=(2,), dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "data", "claimed"),
    [
        ({"a": entry(0, 8)}, bytes(8), 2**60),
        ({"a": entry(0, 8)}, bytes(8), 2**63 + 5),
        (b" " * (8 * 2**20 + 1), b"", None),
        ({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12), None),
        ({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8), None),
        ({"a": entry(0, 8), "b": entry(12, 20)}, bytes(20), None),
        ({"a": entry(0, 8)}, bytes(4), None),
        ({"a": entry(0, 8)}, bytes(12), None),
        ({"a": entry(0, 8, (3,))}, bytes(8), None),
        ({"a": entry(0, 8, (2**31, 2**31, 2**31))}, bytes(8), None),
        ({"a": entry(0, 0, (0, 2**62))}, b"", None),
        ({"a": entry(0, 0, (2**62, 0, 2**40))}, b"", None),
        ({"a": entry(0, 8, dtype="F99")}, bytes(8), None),
        (json.dumps({"a": entry(0, 8)}).encode()[:-1] + b', "a": ' + json.dumps(entry(0, 8)).encode() + b"}", bytes(8), None),
        (b'{"a": {"dtype": "F32", "dtype": "I32", "shape": [2], "data_offsets": [0, 8]}}', bytes(8), None),
        (b"[" * 10**6, b"", None),
        (b'{"__metadata__": {"a": ' + b"[" * 1000 + b"]" * 1000 + b"}}", b"", None),
    ],
)  # fmt: skip
def test_safetensors(folder, header, data, claimed):
    write(folder / "model.safetensors", header, data, claimed)
    refused(folder, "is no valid safetensors file|impossible shape")


def test_names_that_are_paths(folder):
    save_file({"../../outside": torch.ones(2), "linear.weight": torch.ones(2, 2)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"unexpected \(1\):\n  \.\./\.\./outside"):
        Victim.from_pretrained(folder)


def test_empty_tensors_are_fine(tmp_path):
    save_file({"a": torch.empty(0, 768)}, tmp_path / "model.safetensors")
    assert open_own(tmp_path)["a"].shape == (0, 768)


# Pickles


class Harmful:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "harm",
    [
        Harmful(os.system, "touch harmed"),
        Harmful(eval, "open('harmed', 'w')"),
        Harmful(exec, "open('harmed', 'w')"),
        Harmful(Path.touch, Path("harmed")),
        Harmful(subprocess.Popen, ("touch", "harmed")),
        Harmful(getattr, Path, "cwd"),
        Harmful(bytearray, 2**40),
        Harmful(torch.load, "/etc/passwd"),
        nn.Linear(1, 1),
        Path("harmed"),
    ],
    ids=["system", "eval", "exec", "touch", "popen", "getattr", "bytearray", "load", "module", "path"],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_pickle(tmp_path, monkeypatch, harm, legacy):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    torch.save({"a": harm}, tmp_path / "folder" / "a.pt", _use_new_zipfile_serialization=not legacy)
    refused(tmp_path / "folder", "cannot be read as plain tensors")


def test_bare_pickle(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.bin").write_bytes(pickle.dumps({"a": Harmful(os.system, "touch harmed")}))
    refused(tmp_path / "folder", "cannot be read as plain tensors")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_torchscript(tmp_path):
    (tmp_path / "folder").mkdir()
    torch.jit.save(torch.jit.trace(nn.Linear(1, 1), torch.ones(1)), tmp_path / "folder" / "a.pt")
    refused(tmp_path / "folder", "cannot be read as plain tensors")


def pack(file: Path, members: dict[str, bytes], compression=zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"a/{name}", content)


def members(file: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def test_compressed_archive(tmp_path):
    (tmp_path / "folder").mkdir()
    file = tmp_path / "folder" / "a.pt"
    torch.save({"a": torch.ones(2)}, file)
    pack(file, members(file) | {"data/0": bytes(2**24)}, zipfile.ZIP_DEFLATED)
    refused(tmp_path / "folder", "is compressed, which torch.save never does")


def test_tensor_larger_than_the_file(tmp_path):
    """The pickle claims a storage of 2**40 elements; the file has two."""
    (tmp_path / "folder").mkdir()
    file = tmp_path / "folder" / "a.pt"
    torch.save({"a": torch.ones(513)}, file)
    claims = members(file)
    claims["data.pkl"] = claims["data.pkl"].replace(b"M\x01\x02", b"\x8a\x06" + (2**40).to_bytes(6, "little"))
    pack(file, claims)
    refused(tmp_path / "folder", "cannot be read as plain tensors|is larger than its data")


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (torch.ones(1).expand(2**40), "is larger than its data"),
        (torch.ones(2, 2).to_sparse(), "dense tensors alone"),
        (torch.empty(2**40, device="meta"), "has no values"),
        ({"a": torch.ones(2)}, "dense tensors alone"),
        (3, "dense tensors alone"),
    ],
)
def test_pickled_value(tmp_path, value, match):
    (tmp_path / "folder").mkdir()
    torch.save({"a": value}, tmp_path / "folder" / "a.pt")
    refused(tmp_path / "folder", match)


def test_unsound_pickles_never_crash(tmp_path):
    """One byte after the other of a small pickle is changed."""
    file = tmp_path / "a.pt"
    torch.save({"a": torch.ones(2)}, file)
    sound = members(file)
    for place in range(0, len(sound["data.pkl"]), 3):
        broken = bytearray(sound["data.pkl"])
        broken[place] ^= 0x15
        pack(file, sound | {"data.pkl": bytes(broken)})
        try:
            found = open_published(file, None)
        except ValueError:
            continue
        assert all(found[key].numel() <= 2 for key in found)


def test_memory_of_a_fresh_process(tmp_path):
    """The high-water mark of this process may hide what one folder takes; that of a fresh one does not."""
    write(tmp_path / "a.safetensors", b"[" * 10**6)
    torch.save({"a": torch.ones(1).expand(2**40)}, tmp_path / "b.pt")
    (tmp_path / "config.json").write_text('{"a":' * 10**6)
    program = """
import resource, sys
from pathlib import Path
from mmblocks.checkpoints import config
from mmblocks.checkpoints.files import stored as files
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
folder = Path(sys.argv[1])
reads = [lambda name=name: files.open_published(folder / name, None) for name in ("a.safetensors", "b.pt")]
for read in (*reads, lambda: config.read(folder)):
    try:
        read()
    except ValueError:
        continue
    sys.exit("was not refused")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    result = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    assert 1024 * int(result.stdout) < MOST_MEMORY
