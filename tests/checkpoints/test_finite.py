"""Loading says which tensors hold NaN or infinity."""

import json
import warnings
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mmblocks import Block
from mmblocks.checkpoints import finite
from mmblocks.checkpoints.files import checksums, mapped
from mmblocks.checkpoints.layouts.layout import Derived, Layout, Rule
from mmblocks.embedders import EVE2PatchEmbedding
from mmblocks.tokenizers.bottlenecks import IndexBackpropagation
from mmblocks.tokenizers.bottlenecks.ema import EMAVectorQuantizer


class Two(Block):
    def __init__(self, *, dim: int = 3) -> None:
        super().__init__()
        self.first = nn.Linear(dim, dim)
        self.second = nn.Linear(dim, dim)
        self.register_buffer("steps", torch.tensor(7))


def spoiled(value: float, *names: str) -> Two:
    block = Two()
    with torch.no_grad():
        for name in names:
            block.get_parameter(name)[-1] = value
    return block


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_a_folder_of_ours(value: float, dtype: torch.dtype | None, tmp_path: Path) -> None:
    spoiled(value, "first.bias", "second.weight").save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"^Two: first.bias, second.weight hold NaN or infinity$"):
        Block.from_pretrained(tmp_path, dtype=dtype)


def test_many_names_are_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finite, "SHOWN", 1)
    spoiled(float("nan"), "first.bias", "second.weight", "second.bias").save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"first.bias and 2 more hold NaN"):
        Block.from_pretrained(tmp_path)


@pytest.mark.parametrize("value", [0.0, 3e38])
def test_finite_values_are_passed_over(value: float, tmp_path: Path) -> None:
    block = Two()
    with torch.no_grad():
        block.first.weight.fill_(value)  # whose sum is too large
    block.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Block.from_pretrained(tmp_path)


def test_a_published_codebook(tmp_path: Path) -> None:
    codes = torch.ones(4, 3)
    codes[2, 1] = torch.nan
    save_file({"embedding.weight": codes}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"n_e": 4, "e_dim": 3}))
    with pytest.warns(UserWarning, match="IndexBackpropagation: codes hold NaN or infinity"):
        IndexBackpropagation.from_pretrained(tmp_path)


class Masked(Two):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.zeros(3, 3))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_buffer_may_mask(value: float, tmp_path: Path) -> None:
    block = Masked()
    block.mask[0, 1:] = -torch.inf
    block.mask[0, 1] = value
    block.save_pretrained(tmp_path)
    with warnings.catch_warnings() if value == -torch.inf else pytest.warns(UserWarning, match="^Masked: mask hold NaN"):
        Block.from_pretrained(tmp_path)


def test_a_codebook_in_a_buffer_may_not(tmp_path: Path) -> None:
    block = EMAVectorQuantizer(num_codes=4, dim=3)
    block.codes[1, 1] = -torch.inf
    block.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="^EMAVectorQuantizer: codes hold NaN or infinity"):
        Block.from_pretrained(tmp_path)


class Ramp(Block):
    """Its published files hold a table next to the weights, which loading compares."""

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "ramp",
            (Rule("scale", "scale"),),
            derived=(Derived("ramp", lambda table, arguments: float((table - torch.arange(8192)).abs().max())),),
        ),
    )

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))


def test_comparing_a_table_reads_no_other_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten = []
    monkeypatch.setattr(mapped, "forget", lambda tensor: forgotten.append(tuple(tensor.shape)))
    save_file({"scale": torch.tensor(torch.nan), "ramp": torch.arange(8192.0)}, tmp_path / "model.safetensors")
    Ramp.from_pretrained(tmp_path)  # without a warning: the scale is only mapped
    assert (8192,) not in forgotten
    with pytest.warns(UserWarning, match="Ramp: scale hold NaN"):
        Ramp.from_pretrained(tmp_path, dtype=torch.float16)
    assert (8192,) in forgotten


def test_a_folder_of_ours_without_checksums_is_only_mapped(tmp_path: Path) -> None:
    spoiled(float("nan"), "first.bias").save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    del content[checksums.NAME]
    (tmp_path / "config.json").write_text(json.dumps(content))
    Block.from_pretrained(tmp_path)  # without a warning


def test_published_files_that_are_only_mapped_are_not_read(tmp_path: Path) -> None:
    stem = EVE2PatchEmbedding(dim=4, hidden_dim=4, patch_size=2)
    nn.init.constant_(stem.patch.bias, float("nan"))
    names = {"patch": "patch_embedding.0", "merge": "patch_embedding.2", "class_token": "class_embedding"}
    names["split_token"] = "split_embedding"
    save_file(
        {f"model.vision_tower.{names[n.split('.')[0]]}{n[len(n.split('.')[0]) :]}": v for n, v in stem.state_dict().items()},
        tmp_path / "model.safetensors",
    )
    arguments = {"dim": 4, "hidden_dim": 4, "patch_size": 2}
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 4, "mm_hidden_size": 4}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EVE2PatchEmbedding.from_pretrained(tmp_path, **arguments)
    with pytest.warns(UserWarning, match="patch.bias hold NaN or infinity"):
        EVE2PatchEmbedding.from_pretrained(tmp_path, dtype=torch.float16, **arguments)
