"""Conversion between layouts, with and without interruptions, and folders that are read while they are replaced."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mmblocks.block import Block
from mmblocks.checkpoints.convert import convert
from mmblocks.checkpoints.layouts.layout import Layout, Rule

REPOSITORY = Path(__file__).parents[2]


class Fish(Block):
    layouts = (
        Layout(
            name="fish",
            rules=(Rule("model.*", "linear.*"),),
            config=lambda published: {"dim": published["size"]},
            published_config=lambda ours: {"size": ours["dim"]},
        ),
        Layout(name="shark", rules=(Rule("shark.*", "linear.*"),), config=lambda published: {"dim": 3}),
    )

    def __init__(self, *, dim: int):
        super().__init__()
        self.linear = nn.Linear(dim, dim)


class School(Block):
    def __init__(self, *, fish: tuple[Block, ...]):
        super().__init__()
        self.fish = nn.ModuleList(fish)
        self.weight = nn.Parameter(torch.randn(2))


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def published(tmp_path):
    folder = tmp_path / "published"
    folder.mkdir()
    save_file(
        {"model.weight": torch.randn(3, 3), "model.bias": torch.randn(3)}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    (folder / "config.json").write_text('{"size": 3}')
    return folder


def test_there_and_back(published, tmp_path):
    seen = []
    done = convert(Fish, published, tmp_path / "ours", max_shard_size=20, finished=lambda *step: seen.append(step))
    assert done.origin == ("published", "fish", None)
    assert [(number, total) for _, number, total in seen] == [(1, 2), (2, 2)]
    direct = Fish.from_pretrained(published)
    direct.save_pretrained(tmp_path / "saved", max_shard_size=20)
    assert contents(tmp_path / "ours") == contents(tmp_path / "saved")
    convert(Fish, tmp_path / "ours", tmp_path / "theirs", to="fish")
    back, there = load_file(tmp_path / "theirs" / "model.safetensors"), load_file(published / "model.safetensors")
    assert back.keys() == there.keys() and all(torch.equal(back[key], there[key]) for key in there)
    assert json.loads((tmp_path / "theirs" / "config.json").read_text()) == {"size": 3}
    convert(Fish, published, tmp_path / "shark", to="shark")
    assert set(load_file(tmp_path / "shark" / "model.safetensors")) == {"shark.weight", "shark.bias"}
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["ours", "published", "saved", "shark", "theirs"]


def test_folder_with_parts(tmp_path):
    school = School(fish=(Fish(dim=2), Fish(dim=3)))
    school.save_pretrained(tmp_path / "school")
    convert(Block, tmp_path / "school", tmp_path / "half", dtype=torch.float16)
    half = School.from_pretrained(tmp_path / "half")
    assert half.weight.dtype == torch.float16
    assert torch.equal(half.fish[1].linear.weight, school.fish[1].linear.weight.half())


def test_refusals(published, tmp_path):
    convert(Fish, published, tmp_path / "ours")
    with pytest.raises(FileExistsError, match="exists; force replaces it"):
        convert(Fish, published, tmp_path / "ours")
    convert(Fish, published, tmp_path / "ours", force=True)
    with pytest.raises(ValueError, match="layout is 'whale'; Fish has: fish, shark"):
        convert(Fish, published, tmp_path / "whale", to="whale")


def test_files_of_another_source_are_not_taken(published, tmp_path):
    beside = tmp_path / ".ours.converting"
    beside.mkdir()
    save_file({"linear.weight": torch.zeros(3, 3), "linear.bias": torch.zeros(3)}, beside / "model.safetensors")
    (beside / "source.json").write_text('{"source": "another"}')
    convert(Fish, published, tmp_path / "ours")
    assert torch.equal(
        Fish.from_pretrained(tmp_path / "ours").linear.bias, load_file(published / "model.safetensors")["model.bias"]
    )


KILLED = """
import sys
from pathlib import Path
import torch
from torch import nn
from mmblocks.block import Block
from mmblocks.checkpoints.convert import convert
from tests.shared.killed import contents, kill_at_random_steps

class Part(Block):
    def __init__(self, *, dim, version):
        super().__init__()
        self.tensors = nn.ParameterList([nn.Parameter(torch.full((dim,), float(version))) for _ in range(3)])

class Whole(Block):
    def __init__(self, *, part, version):
        super().__init__()
        self.part = part
        self.weight = nn.Parameter(torch.full((9,), float(version)))

place = Path(sys.argv[1])
source, target, straight, old = (place / name for name in ("source", "target", "straight", "old"))
Whole(part=Part(dim=8, version=2), version=2).save_pretrained(source)
Whole(part=Part(dim=8, version=1), version=1).save_pretrained(old)
convert(Block, source, straight, max_shard_size=60)

def work():
    convert(Block, source, target, max_shard_size=60, force=True)

print(*kill_at_random_steps(work, target, old, contents(straight), unfinished=place / ".target.converting"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="folders are exchanged in one step on Linux alone")
def test_kill_at_random_steps_and_go_on(tmp_path):
    result = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    old, new = map(int, result.stdout.split())
    assert old > 10 and new > 0


READERS = """
import os, sys, time
from pathlib import Path
import torch
from torch import nn
from mmblocks.block import Block

class Part(Block):
    def __init__(self, *, version):
        super().__init__()
        self.weight = nn.Parameter(torch.full((50,), float(version)))

class Whole(Block):
    def __init__(self, *, part, version):
        super().__init__()
        self.part = part
        self.weight = nn.Parameter(torch.full((50,), float(version)))

os.fsync = lambda descriptor: None
target, stop = Path(sys.argv[1]), Path(sys.argv[2])
Whole(part=Part(version=0), version=0).save_pretrained(target)

def read():
    versions = set()
    while not stop.exists() or not versions:
        whole = Block.from_pretrained(target)
        found = {whole.config["version"], whole.part.config["version"], *whole.weight.tolist(), *whole.part.weight.tolist()}
        if len(found) != 1:
            os._exit(1)
        versions |= found
    os._exit(0 if len(versions) > 1 else 2)

children = []
for _ in range(2):
    child = os.fork()
    if child == 0:
        try:
            read()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(3)
    children.append(child)
for version in range(1, 30):
    Whole(part=Part(version=version), version=version).save_pretrained(target)
    time.sleep(0.01)  # a pause in which readers can come to an end
stop.touch()
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="folders are exchanged in one step on Linux alone")
def test_two_read_while_one_saves(tmp_path):
    command = [sys.executable, "-c", READERS, str(tmp_path / "model"), str(tmp_path / "stop")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr


PEAK = """
import os, resource, sys
import torch
from safetensors.torch import save_file
from torch import nn
from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout, Rule

class Large(Block):
    layouts = (Layout(name="large", rules=(Rule("model.*", "layers.*"),), config=lambda published: {"num_layers": 24}),)

    def __init__(self, *, num_layers):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(1024, 1024, bias=False) for _ in range(num_layers)])

def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

folder = sys.argv[1]
torch.set_num_threads(1)
large = Large(num_layers=24)
large.save_pretrained(folder + "/own")
for kind in ("published", "pickled"):
    os.mkdir(folder + "/" + kind)
tensors = {"model." + key: tensor for key, tensor in large.layers.state_dict().items()}
save_file(tensors, folder + "/published/model.safetensors")
torch.save(tensors, folder + "/pickled/model.pt")
Large(num_layers=1).save_pretrained(folder + "/small")
save_file({"model.0.weight": torch.ones(1024, 1024)}, folder + "/small.safetensors")
torch.save({"model.0.weight": torch.ones(1024, 1024)}, folder + "/small.pt")
del large, tensors
for kind in ("own", "published", "pickled"):
    for dtype in (None, torch.bfloat16):
        sys.stdout.flush()
        child = os.fork()  # whose peak is its own
        if child == 0:
            for small in ("/small", "/small.safetensors", "/small.pt"):  # whatever loading imports and touches
                Large.from_pretrained(folder + small, dtype=dtype, num_layers=1)
            before = peak()
            loaded = Large.from_pretrained(folder + "/" + kind, dtype=dtype)
            print(kind, dtype, (peak() - before) / sum(p.nbytes for p in loaded.parameters()))
            sys.stdout.flush()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere what is mapped stays until it is needed")
def test_peak_memory_is_the_weights_once(tmp_path):
    """Also where they are cast, which needs the file's bytes and the result."""
    result = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    found = [line.split() for line in result.stdout.splitlines()]
    assert len(found) == 6
    assert [line for line in found if float(line[2]) > 1.1] == []
