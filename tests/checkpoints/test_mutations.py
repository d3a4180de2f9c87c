"""Folders that were damaged at random: an error of a stated type, or exactly the tensors that were saved."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.preprocessing import (
    FILE,
    Preprocessor,
    count,
    normalisation,
    published_normalisation,
    shortest_edge,
)
from mmblocks.checkpoints.layouts.published_config import only

STATED = (ValueError, TypeError, OSError)


class Leaf(Block):
    def __init__(self, *, dim: int = 2, name: str = "leaf"):
        super().__init__()
        self.linear = nn.Linear(dim, dim)
        self.register_buffer("steps", torch.tensor(7))


class Tree(Block):
    """Two parts of one shape that could be mistaken for each other, and a tensor that is shared."""

    def __init__(self, *, layers: tuple[Block, ...], trunk: Block, scale: float = 0.5):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.trunk = trunk
        self.head = nn.Linear(2, 2)
        self.head.weight = trunk.linear.weight
        self.small = nn.Parameter(torch.randn(3).bfloat16())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("saved") / "tree"
    tree = Tree(layers=(Leaf(), Leaf()), trunk=Leaf())
    tree.save_pretrained(folder, max_shard_size=40)
    return folder, {key: tensor.clone() for key, tensor in tree.state_dict().items()}


@st.composite
def damages(draw):
    """What to do to which file: a number chooses among those that are there."""
    kind = draw(
        st.sampled_from(["flip", "flip", "flip", "set", "insert", "remove", "cut", "empty", "delete", "swap", "copy", "digit"])
    )
    return kind, draw(st.integers(0, 1000)), draw(st.integers(0, 10**6)), draw(st.integers(0, 255)), draw(st.integers(1, 16))


def damage(folder: Path, kind: str, which: int, where: int, value: int, length: int) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    file, other = files[which % len(files)], files[(which + value) % len(files)]
    content = bytearray(file.read_bytes())
    place = where % max(len(content), 1)
    if kind == "flip" and content:
        content[place] ^= 1 << value % 8
    elif kind == "set":
        content[place : place + length] = bytes([value]) * length
    elif kind == "insert":
        content[place:place] = bytes([value]) * length
    elif kind == "remove":
        del content[place : place + length]
    elif kind == "cut":
        del content[place:]
    elif kind == "empty":
        content.clear()
    elif kind == "digit":
        digits = [at for at, byte in enumerate(content) if chr(byte).isdigit()]
        if digits:
            content[digits[where % len(digits)]] = ord("0") + value % 10
    elif kind == "delete":
        file.unlink()
        return
    elif kind == "swap":
        file.write_bytes(other.read_bytes())
        other.write_bytes(content)
        return
    elif kind == "copy":
        content = bytearray(other.read_bytes())
    file.write_bytes(content)


@settings(max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(damages=st.lists(damages(), min_size=1, max_size=2))
def test_error_or_the_same_tensors(saved, damages):
    folder, tensors = saved
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "tree"
        shutil.copytree(folder, copy)
        for one in damages:
            damage(copy, *one)
        try:
            loaded = Block.from_pretrained(copy)
        except STATED:
            return
        found = loaded.state_dict()
        assert found.keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert found[key].dtype == tensor.dtype and torch.equal(found[key], tensor), key


@pytest.mark.parametrize("names", [("layers/0", "layers/1"), ("layers/0", "trunk")])
def test_parts_that_were_swapped(saved, tmp_path, names):
    folder, _ = saved
    shutil.copytree(folder, tmp_path / "tree")
    first, second = (tmp_path / "tree" / name for name in names)
    first.rename(tmp_path / "aside")
    second.rename(first)
    (tmp_path / "aside").rename(second)
    with pytest.raises(ValueError, match=r"the checksum of the part .* does not match: the files are damaged, or were changed"):
        Block.from_pretrained(tmp_path / "tree")


def test_parts_that_are_handed_in_need_no_file(saved):
    folder, _ = saved
    loaded = Block.from_pretrained(folder, trunk=Leaf())
    assert isinstance(loaded, Tree)


def test_folder_without_checksums(saved, tmp_path):
    """Those of earlier versions have none."""
    folder, tensors = saved
    shutil.copytree(folder, tmp_path / "tree")
    for file in (tmp_path / "tree").rglob("config.json"):
        content = json.loads(file.read_text())
        del content["_checksums"]
        file.write_text(json.dumps(content))
    found = Block.from_pretrained(tmp_path / "tree").state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in tensors.items())


def _entries_read(entries, arguments):
    only(entries, "do_resize", True)
    return {"image_size": shortest_edge(entries, "size", 9), "step": count(entries, "step", 2), **normalisation(entries)}


def _entries_written(arguments):
    sizes = {"do_resize": True, "size": {"shortest_edge": arguments["image_size"]}, "step": arguments["step"]}
    return {**sizes, **published_normalisation(arguments["mean"], arguments["std"])}


class Pictures(Block):
    """A published part with an image processor."""

    layouts = (
        Layout(
            "pictures",
            (Rule("stem.*", "linear.*"),),
            config=lambda published: {"dim": published["hidden_size"]},
            published_config=lambda ours: {"hidden_size": ours["dim"]},
            preprocessor=Preprocessor(_entries_read, _entries_written, harmless=("do_pad",)),
        ),
    )

    def __init__(
        self,
        *,
        dim: int,
        image_size: int = 5,
        step: int = 1,
        mean: tuple[float, ...] = (0.5,) * 3,
        std: tuple[float, ...] = (0.5,) * 3,
    ):
        super().__init__()
        self.linear = nn.Linear(dim, dim)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A published folder with a config of its image processor."""
    folder = tmp_path_factory.mktemp("published") / "pictures"
    Pictures(dim=2).to_upstream(folder)
    return folder, json.loads((folder / FILE).read_text())


SIDES = st.dictionaries(st.sampled_from(["shortest_edge", "height", "width"]), st.integers(0, 300), max_size=2)
NUMBERS = st.one_of(st.integers(-3, 2000), st.floats(), st.lists(st.floats(-1, 2), max_size=4))
VALUES = st.one_of(st.none(), st.booleans(), st.text(max_size=4), NUMBERS, SIDES)
ENTRIES = (
    "do_resize",
    "size",
    "step",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "do_pad",
    "novelty",
)


@settings(max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(changes=st.dictionaries(st.sampled_from(ENTRIES), VALUES, max_size=3), removed=st.sets(st.sampled_from(ENTRIES), max_size=2))
def test_an_image_processor_s_entries_are_followed_or_refused(published, changes, removed):
    """What is loaded says the same when it is written back."""
    folder, entries = published
    wanted = {name: value for name, value in {**entries, **changes}.items() if name not in removed}
    with tempfile.TemporaryDirectory() as place:
        copy, again = Path(place) / "copy", Path(place) / "again"
        shutil.copytree(folder, copy)
        (copy / FILE).write_text(json.dumps(wanted))
        try:
            loaded = Pictures.from_pretrained(copy)
        except STATED:
            return
        loaded.to_upstream(again)
        found = Pictures.from_pretrained(again).config
        written = json.loads((again / FILE).read_text())
    assert all(found[name] == pytest.approx(value) for name, value in loaded.config.items())
    size = wanted.get("size") or 9
    assert written["size"]["shortest_edge"] == (size["shortest_edge"] if isinstance(size, dict) else size)
    assert written["step"] == (wanted.get("step") or 2) and wanted.get("do_resize") in (None, True)
    assert wanted.get("novelty") in (None, {})  # which say nothing


@settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(one=damages())
def test_an_image_processor_s_file_that_was_damaged(published, one):
    folder, _ = published
    with tempfile.TemporaryDirectory() as place:
        alone, copy = Path(place) / "alone", Path(place) / "copy"
        alone.mkdir()
        shutil.copy(folder / FILE, alone)
        damage(alone, *one)
        shutil.copytree(folder, copy)
        (copy / FILE).unlink()
        shutil.copytree(alone, copy, dirs_exist_ok=True)
        try:
            Pictures.from_pretrained(copy)
        except STATED:
            return
