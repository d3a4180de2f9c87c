"""Replacing a folder in one step, whatever happens in between."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmblocks.checkpoints.files import folders, leftovers

REPOSITORY = Path(__file__).parents[2]

KILLED_AT_EVERY_STEP = """
import shutil, sys
from pathlib import Path
import torch
from torch import nn
from mmblocks.block import Block
from tests.shared.killed import steps_of

class Part(Block):
    def __init__(self, *, version):
        super().__init__()
        self.weight = nn.Parameter(torch.full((64,), float(version)))
        self.bias = nn.Parameter(torch.full((64,), float(version)))

class Whole(Block):
    def __init__(self, *, version, part):
        super().__init__()
        self.part = part
        self.weight = nn.Parameter(torch.full((64,), float(version)))

target = Path(sys.argv[1])

def build(version):
    return Whole(version=version, part=Part(version=version))

def save(version):
    build(version).save_pretrained(target, max_shard_size=300)

def version_on_disk():
    whole = Block.from_pretrained(target)
    found = {whole.config["version"], whole.part.config["version"], *(v for p in whole.parameters() for v in p.tolist())}
    assert len(found) == 1, found
    return int(found.pop())

def kill_at_every_step(prepare):
    "How often nothing, the old version and the new one were found after a kill."
    found = {0: 0, 1: 0, 2: 0}
    for step in range(1, 1000):
        shutil.rmtree(target, ignore_errors=True)
        prepare()
        complete = steps_of(lambda: save(2), killed_at=step) is not None
        version = version_on_disk() if target.exists() else 0
        if complete:
            assert version == 2
            return list(found.values())
        found[version] += 1
        steps_of(lambda: save(2))  # the second run completes
        assert version_on_disk() == 2

def prepare_old():
    steps_of(lambda: save(1))
    (target / "README.md").write_text("kept")

save(0)  # what is imported late is imported now
old = kill_at_every_step(prepare_old)
assert (target / "README.md").read_text() == "kept"
new = kill_at_every_step(lambda: None)
strays = [path.name for path in target.parent.iterdir() if path != target]
assert all(name.startswith(".model.saving-") for name in strays), strays
print(*old, *new)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="folders are exchanged in one step on Linux alone")
def test_kill_at_any_step_leaves_the_old_or_the_new(tmp_path):
    command = [sys.executable, "-c", KILLED_AT_EVERY_STEP, str(tmp_path / "model")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    gone, before, after, nothing, mixed, complete = map(int, result.stdout.split())
    assert gone == mixed == 0
    assert before + after + nothing + complete >= 50
    assert before > 20  # steps before the exchange ...
    assert after > 0  # ... and after it, while the old version is removed
    assert nothing > 20  # the same where there was no old version
    assert complete > 0


@pytest.mark.skipif(sys.platform != "linux", reason="folders are exchanged in one step on Linux alone")
def test_what_a_killed_save_leaves_is_removed_by_the_next(tmp_path):
    script = "import os, sys; from pathlib import Path; from mmblocks.checkpoints.files import folders\n"
    script += "with folders.replacing(Path(sys.argv[1])) as folder:\n    (folder / 'a').write_text('half'); os.kill(os.getpid(), 9)"
    for target in (tmp_path / "model", tmp_path / "model.old"):
        subprocess.run([sys.executable, "-c", script, str(target)], cwd=REPOSITORY)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert len(left) == 4  # a folder and a lock for each
    with folders.replacing(tmp_path / "model") as folder:
        fill(folder, a="new")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*(name for name in left if "old" in name), "model"])


def test_a_running_save_is_left_alone(tmp_path):
    """In this process, which holds two locks, and in another."""
    target = tmp_path / "model"
    script = "import sys; from pathlib import Path; from mmblocks.checkpoints.files import folders\n"
    script += (
        "with folders.replacing(Path(sys.argv[1])) as folder:\n    (folder / 'a').write_text('other'); print('ready', flush=True)"
    )
    script += "; input()"
    command = [sys.executable, "-c", script, str(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as other:
        assert other.stdout.readline() == "ready\n"
        with folders.replacing(target) as first:
            fill(first, a="first")
            with folders.replacing(target) as second:
                fill(second, a="second")
            assert (first / "a").read_text() == "first" and (target / "a").read_text() == "second"
        assert (target / "a").read_text() == "first"
        assert len(list(tmp_path.iterdir())) == 3  # the target, and the other's folder and lock
        other.communicate("\n")
        assert other.returncode == 0
    assert (target / "a").read_text() == "other"
    assert list(tmp_path.iterdir()) == [target]


def test_leftovers_without_a_lock(tmp_path):
    """Of an earlier version, which locked nothing: the process in the name tells."""
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    names = [f".model.saving-{gone.pid}-01234567", f".model.replaced-{gone.pid}-01234567"]
    kept = [f".model.saving-{os.getpid()}-01234567", ".model.saving-notes", f".models.saving-{gone.pid}-01234567"]
    for name in names + kept:
        (tmp_path / name).mkdir()
        fill(tmp_path / name, a="")
    (tmp_path / f".model.saving-{gone.pid}-89abcdef").symlink_to(tmp_path / kept[2])
    with folders.replacing(tmp_path / "model"):
        assert (tmp_path / names[1]).exists()  # perhaps all that there is, until something new is in place
    left = {path.name for path in tmp_path.iterdir() if not path.is_symlink()}
    assert left == {*kept, "model"}
    assert (tmp_path / kept[2] / "a").exists()


@pytest.mark.skipif(os.name == "nt", reason="there is no flock")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS], ids=errno.errorcode.get)
def test_file_system_without_locks(tmp_path, monkeypatch, number):
    """As NFS, FUSE and SMB have it."""
    left = tmp_path / f".model.saving-{os.getpid()}-01234567.lock"
    left.touch()

    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    with folders.replacing(tmp_path / "model") as folder:
        fill(folder, a="new")
        assert sorted(tmp_path.iterdir()) == sorted([folder, left])
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "model", left])
    assert (tmp_path / "model" / "a").read_text() == "new"


@pytest.mark.skipif(os.name == "nt", reason="there is no flock")
def test_work_that_is_done_once_at_a_time(tmp_path, monkeypatch):
    with leftovers.alone(tmp_path / "model", "converts to"):
        again = leftovers.alone(tmp_path / "model", "converts to")
        with pytest.raises(FileExistsError, match=r"another process converts to .*model right now"), again:
            pass
        with leftovers.alone(tmp_path / "other", "converts to"):
            pass

    def refuse(*arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with leftovers.alone(tmp_path / "model", "converts to"):  # as far as there are locks
        pass


def fill(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / name).write_text(text)


def test_failure_leaves_no_trace(tmp_path):
    target = tmp_path / "model"
    with pytest.raises(FileNotFoundError), folders.replacing(target) as folder:
        fill(folder, **{"a": "new", "missing/b": "new"})
    assert list(tmp_path.iterdir()) == []


def test_failure_keeps_the_old(tmp_path, monkeypatch):
    target = tmp_path / "model"
    target.mkdir()
    fill(target, a="old")
    monkeypatch.setattr(folders, "exchange", lambda first, second: os.rename(first, target / "missing" / "b"))
    with pytest.raises(FileNotFoundError), folders.replacing(target) as folder:
        fill(folder, a="new")
    assert [path.read_text() for path in target.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("library", ["own", "old"])
def test_exchange(tmp_path, monkeypatch, library):
    if library == "old":  # it has no renameat2
        monkeypatch.setattr(folders.ctypes, "CDLL", lambda *_, **__: SimpleNamespace())
    target = tmp_path / "model"
    target.mkdir()
    fill(target, a="old", notes="kept")
    with folders.replacing(target) as folder:
        assert folder.name.startswith(f".model.saving-{os.getpid()}-")
        fill(folder, a="new")
    assert {path.name: path.read_text() for path in target.iterdir()} == {"a": "new", "notes": "kept"}
    assert list(tmp_path.iterdir()) == [target]


def test_rename_that_fails_half_way_is_undone(tmp_path, monkeypatch):
    target = tmp_path / "model"
    target.mkdir()
    fill(target, a="old")
    rename = os.rename

    def refuse(first, second):
        if ".saving-" in Path(first).name:
            raise OSError("no space")
        rename(first, second)

    monkeypatch.setattr(folders, "_exchange_in_one_step", lambda first, second: False)
    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OSError, match="no space"), folders.replacing(target) as folder:
        fill(folder, a="new")
    assert (target / "a").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_files_of_others_survive_and_ours_do_not(tmp_path):
    target = tmp_path / "model"
    (target / "part").mkdir(parents=True)
    (target / "onnx" / "deep").mkdir(parents=True)
    ours = {"_class_name": "Any", "_mmblocks_version": "1", "trunk": {"_block": "part"}}
    fill(target, **{"config.json": json.dumps(ours), "README.md": "mine", "tokenizer.json": "mine"})
    fill(target, **{"model-00001-of-00002.safetensors": "", "model.safetensors.index.json": "", "model.safetensors": ""})
    fill(target / "part", **{"config.json": "{}", "model.safetensors": "", "notes.txt": "mine"})
    fill(target / "onnx" / "deep", **{"config.json": "mine", "model.safetensors": "mine"})
    (target / "link").symlink_to("onnx")
    with folders.replacing(target) as folder:
        fill(folder, **{"config.json": "new", "tokenizer.json": "new"})
    found = {path.relative_to(target).as_posix(): path.read_text() for path in target.rglob("*") if path.is_file()}
    assert found == {
        "config.json": "new",
        "tokenizer.json": "new",
        "README.md": "mine",
        "part/notes.txt": "mine",
        "onnx/deep/config.json": "mine",
        "onnx/deep/model.safetensors": "mine",
    }
    assert os.readlink(target / "link") == "onnx"


@pytest.mark.parametrize("text", ["{", '{"_class_name": "A", "_mmblocks_version": "1", "part": {"_block": "../.."}}'])
def test_broken_config_does_not_stand_in_the_way(tmp_path, text):
    target = tmp_path / "model"
    target.mkdir()
    fill(target, **{"config.json": text, "a": "mine"})
    with folders.replacing(target) as folder:
        fill(folder, **{"config.json": "new"})
    assert sorted(path.read_text() for path in target.iterdir()) == ["mine", "new"]


def test_files_are_copied_where_links_are_impossible(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError("no links")

    monkeypatch.setattr(os, "link", refuse)
    target = tmp_path / "model"
    target.mkdir()
    fill(target, a="mine")
    with folders.replacing(target):
        pass
    assert (target / "a").read_text() == "mine"


def test_link_to_a_folder_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "model").symlink_to("disk")
    with folders.replacing(tmp_path / "model") as folder:
        fill(folder, a="new")
    assert (tmp_path / "model").is_symlink()
    assert (tmp_path / "disk" / "a").read_text() == "new"


def test_file_is_no_target(tmp_path):
    (tmp_path / "model").write_text("a file")
    with pytest.raises(NotADirectoryError, match="it is not a folder"), folders.replacing(tmp_path / "model"):
        pass


def test_folder_gets_the_usual_permissions(tmp_path):
    (tmp_path / "usual").mkdir()
    with folders.replacing(tmp_path / "model"):
        pass
    assert (tmp_path / "model").stat().st_mode == (tmp_path / "usual").stat().st_mode
    os.chmod(tmp_path / "model", 0o750)
    with folders.replacing(tmp_path / "model"):
        pass
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o750
