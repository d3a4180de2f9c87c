"""Which tensors a folder holds, and folders that mean harm."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmblocks.checkpoints.files.stored import choose, open_own, open_published

WEIGHT = torch.arange(6.0).reshape(2, 3)


def write_index(folder: Path, weight_map, name: str = "model.safetensors.index.json") -> None:
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.bool, torch.uint8])
def test_headers_tell_shape_and_dtype(tmp_path, dtype):
    save_file({"a": WEIGHT.to(dtype), "scalar": torch.ones((), dtype=dtype), "empty": torch.ones(0, 3)}, tmp_path / "x.safetensors")
    stored = open_published(tmp_path, None)
    assert {key: tuple(tensor.shape) for key, tensor in stored.meta.items()} == {"a": (2, 3), "scalar": (), "empty": (0, 3)}
    assert stored.meta["a"].dtype == dtype
    assert stored.meta["a"].is_meta
    assert torch.equal(stored["a"].float(), WEIGHT.to(dtype).float())
    assert set(stored) == {"a", "scalar", "empty"}
    assert len(stored) == 3


@pytest.mark.parametrize("suffix", ["bin", "pt", "pth", "ckpt"])
def test_pickles(tmp_path, suffix):
    torch.save({"a": WEIGHT}, tmp_path / f"anything.{suffix}")
    assert torch.equal(open_published(tmp_path, None)["a"], WEIGHT)


def test_pickle_is_unwrapped_only_by_name(tmp_path):
    torch.save({"state_dict": {"a": WEIGHT}, "epoch": 3}, tmp_path / "a.pt")
    assert torch.equal(open_published(tmp_path, "state_dict")["a"], WEIGHT)
    with pytest.raises(ValueError, match="entry 'state_dict' is a dict; expected names and dense tensors alone"):
        open_published(tmp_path, None)
    with pytest.raises(ValueError, match=r"under 'model': expected a dict of tensors, but found NoneType"):
        open_published(tmp_path, "model")
    torch.save(WEIGHT, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="expected a dict of tensors, but found"):
        open_published(tmp_path, None)


class Harmful:
    def __reduce__(self):
        return os.system, ("touch harmed",)


def test_pickle_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Harmful()}, tmp_path / "a.bin")
    with pytest.raises(ValueError, match="cannot be read as plain tensors"):
        open_published(tmp_path, None)
    assert not (tmp_path / "harmed").exists()


def test_pickle_larger_than_its_data(tmp_path):
    torch.save({"a": torch.ones(1).expand(2**40)}, tmp_path / "a.bin")
    with pytest.raises(ValueError, match=r"a of shape \(1099511627776,\) is larger than its data"):
        open_published(tmp_path, None)


@pytest.mark.parametrize("content", [b"", b"no weights", b"\xff" * 100])
@pytest.mark.parametrize("name", ["a.safetensors", "a.bin"])
def test_broken_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"is no valid safetensors file|cannot be read as plain tensors"):
        open_published(tmp_path, None)


def test_truncated_file(tmp_path):
    file = tmp_path / "a.safetensors"
    save_file({"a": WEIGHT}, file)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is no valid safetensors file"):
        open_published(tmp_path, None)


def test_which_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        open_published(tmp_path, None)
    torch.save({"bin": WEIGHT}, tmp_path / "pytorch_model.bin")
    torch.save({"optimizer": WEIGHT}, tmp_path / "optimizer.bin")
    assert list(open_published(tmp_path, None)) == ["bin"]  # a usual name before any other
    save_file({"a": WEIGHT}, tmp_path / "a.safetensors")
    assert list(open_published(tmp_path, None)) == ["a"]  # safetensors before a pickle
    save_file({"b": WEIGHT}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"several sets of weights: a.safetensors, b.safetensors; name one"):
        open_published(tmp_path, None)
    assert list(open_published(tmp_path / "b.safetensors", None)) == ["b"]
    (tmp_path / "c.txt").touch()
    with pytest.raises(ValueError, match=r"c\.txt is no file of weights; accepted"):
        open_published(tmp_path / "c.txt", None)


def test_of_several_sets_of_weights_that_of_a_layout_s_name_is_read() -> None:
    names = ["ae.safetensors", "ema.safetensors", "model.safetensors.index.json"]
    assert choose(names, "folder") == "model.safetensors.index.json"
    assert [choose(names, "folder", [name]) for name in ("ae", "ema", "model")] == [*names[:2], names[2]]
    assert choose([*names[:2], "ema.bin"], "folder", ["ema", "diffusion_pytorch_model"]) == "ema.safetensors"
    with pytest.raises(ValueError, match=r"several sets of weights: ae\.safetensors, ema\.safetensors"):
        choose(names[:2], "folder", ["ae", "ema"])


def test_index(tmp_path):
    save_file({"a": WEIGHT, "unused": WEIGHT + 1}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": WEIGHT + 1}, tmp_path / "model-00002-of-00002.safetensors")
    write_index(tmp_path, {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"})
    for stored in (open_published(tmp_path, None), open_own(tmp_path)):
        assert list(stored) == ["a", "b"]
        assert torch.equal(stored["b"], WEIGHT + 1)
    save_file({"a": WEIGHT}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="holds both"):
        open_own(tmp_path)


@pytest.mark.parametrize("kind", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("name", ["../outside", "/{outside}", "deep/inside", "deep\\inside", "C:inside"])
def test_index_that_leads_out(tmp_path, kind, name):
    folder, suffix = tmp_path / "folder", Path(kind).suffix
    (folder / "deep").mkdir(parents=True)
    for file in (tmp_path / "outside", folder / "deep" / "inside"):
        torch.save({"a": WEIGHT}, f"{file}.bin")
        save_file({"a": WEIGHT}, f"{file}.safetensors")
    write_index(folder, {"a": name.format(outside=tmp_path / "outside") + suffix}, f"{kind}.index.json")
    with pytest.raises(ValueError, match=r"accepted: names of .* files in the same folder"):
        open_published(folder, None)


def test_index_of_another_kind(tmp_path):
    torch.save({"a": WEIGHT}, tmp_path / "a.bin")
    write_index(tmp_path, {"a": "a.bin"})
    with pytest.raises(ValueError, match=r"accepted: names of \.safetensors files"):
        open_published(tmp_path, None)


def test_index_that_names_a_link_leading_out(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file({"a": WEIGHT}, tmp_path / "outside.safetensors")
    save_file({"a": WEIGHT}, folder / "inside.safetensors")
    (folder / "a.safetensors").symlink_to("../outside.safetensors")
    write_index(folder, {"a": "a.safetensors"})
    with pytest.raises(ValueError, match="a link that leads out of the folder"):
        open_published(folder, None)
    (folder / "a.safetensors").unlink()
    (folder / "a.safetensors").symlink_to("inside.safetensors")
    assert list(open_published(folder, None)) == ["a"]


def test_index_in_the_hubs_cache(tmp_path):
    """There every file is a link from the snapshot to a blob of the same repository, and of no other."""
    for repository in ("ours", "theirs"):
        (tmp_path / repository / "blobs").mkdir(parents=True)
        save_file({"a": WEIGHT}, tmp_path / repository / "blobs" / "0123abcd")
    folder = tmp_path / "ours" / "snapshots" / "revision" / "trunk"
    folder.mkdir(parents=True)
    (folder / "a.safetensors").symlink_to("../../../blobs/0123abcd")
    write_index(folder, {"a": "a.safetensors"})
    assert torch.equal(open_published(folder, None)["a"], WEIGHT)
    (folder / "a.safetensors").unlink()
    (folder / "a.safetensors").symlink_to(tmp_path / "theirs" / "blobs" / "0123abcd")
    with pytest.raises(ValueError, match="a link that leads out of the folder"):
        open_published(folder, None)


def test_index_of_missing_things(tmp_path):
    write_index(tmp_path, {"a": "a.safetensors"})
    with pytest.raises(FileNotFoundError, match=r"names 'a\.safetensors', which is not there"):
        open_published(tmp_path, None)
    save_file({"b": WEIGHT}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"says that a is in a\.safetensors, but it is not"):
        open_published(tmp_path / "model.safetensors.index.json", None)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3, "b": "c"}}', '{"weight_map": {"a": 3}}']
)
def test_index_that_is_none(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match="is not an index"):
        open_own(tmp_path)
