"""``mmblocks info`` of a repository: headers alone; ``verify`` with its golden numbers."""

import json

import torch
from safetensors.torch import save
from torch import nn
from typer.testing import CliRunner

from mmblocks.block import Block
from mmblocks.checkpoints.golden import write_golden
from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.cli import app as commands
from mmblocks.cli import fitting


class Fin(Block):
    layouts = (
        Layout(name="fin", rules=(Rule("model.fin.*", "linear.*"),), ignored=("model.tail.*",), config=lambda _: {"dim": 2}),
    )

    def __init__(self, *, dim: int):
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, x):
        return self.linear(x)


def test_info_of_a_repository(hub, monkeypatch):
    monkeypatch.setattr(fitting, "_classes", lambda: iter([Fin]))
    tensors = {"model.fin.weight": torch.ones(2, 2), "model.fin.bias": torch.ones(2), "model.tail.weight": torch.ones(300, 300)}
    hub.commit("sea/fin", {"model.safetensors": save(tensors), "config.json": b"{}"})
    result = CliRunner().invoke(commands.app, ["info", "sea/fin", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["blocks"] == [{"block": "Fin", "layout": "fin", "num_parameters": 6}]
    assert found["tensors"]["model.tail.weight"] == "float32 (300, 300)"
    assert Fin(dim=1).linear.weight.shape == (1, 1)


def test_info_of_what_is_pickled(hub):
    hub.commit("sea/fin", {"a.pt": b"x"})
    result = CliRunner().invoke(commands.app, ["info", "sea/fin"])
    assert result.exit_code == 1
    assert "a.pt of sea/fin is pickled" in result.output


def test_verify_with_golden_numbers_of_a_repository(hub, tmp_path):
    fin = Fin(dim=2)
    fin.save_pretrained(tmp_path / "fin")
    write_golden(fin, tmp_path / "fin" / "golden.safetensors", {"forward": {"x": torch.ones(1, 2)}})
    files = {f"deep/{file.name}": file.read_bytes() for file in (tmp_path / "fin").iterdir()}
    hub.commit("sea/fin", files)
    result = CliRunner().invoke(commands.app, ["verify", "sea/fin/deep", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["golden"] == {"forward.out": 0.0}
    Fin(dim=2).save_pretrained(tmp_path / "other")
    files["deep/config.json"], files["deep/model.safetensors"] = (
        (tmp_path / "other" / name).read_bytes() for name in ("config.json", "model.safetensors")
    )
    hub.commit("sea/fin", files)
    result = CliRunner().invoke(commands.app, ["verify", "sea/fin", "--subfolder", "deep"])
    assert result.exit_code == 1
    assert "forward.out differs by up to" in result.output
    hub.commit("sea/fin", {name: content for name, content in files.items() if "golden" not in name})
    result = CliRunner().invoke(commands.app, ["verify", "sea/fin/deep"])
    assert "there are no golden numbers" in result.output
