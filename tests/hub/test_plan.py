"""``mmblocks plan`` of repositories: configs and headers are asked for, and no weights."""

import json
from pathlib import Path

import torch
from huggingface_hub import constants
from typer.testing import CliRunner

from mmblocks import Decoder, LMHead, MultimodalModel, TextEmbedding
from mmblocks.cli import app as commands
from mmblocks.pipelines import plan_memory
from tests.roles.test_around import language_model


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def planned(name: str) -> dict:
    result = CliRunner().invoke(commands.app, ["plan", name, "--seq", "30", "--json"])
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


def downloaded() -> set[str]:
    return {path.suffix for path in Path(constants.HF_HUB_CACHE).rglob("*") if path.is_file()}


def test_a_language_model(hub, tmp_path) -> None:
    theirs = language_model("qwen2", tied=True).bfloat16()
    theirs.save_pretrained(tmp_path / "theirs")
    hub.commit("sea/qwen", files_of(tmp_path / "theirs"))
    found, wanted = planned("sea/qwen"), plan_memory(MultimodalModel.around(theirs), length=30)
    assert (found["total"], found["dtype"]) == (wanted.total, "bfloat16")
    assert ".safetensors" not in downloaded()


def test_a_model_of_ours(hub, tmp_path) -> None:
    torch.manual_seed(0)
    embedding, head = TextEmbedding(vocab_size=40, dim=32), LMHead(dim=32, vocab_size=40)
    head.weight = embedding.weight
    trunk = Decoder(dim=32, num_layers=2, num_heads=4, mlp_dim=48)
    model = MultimodalModel(inputs={"text": embedding}, trunk=trunk, outputs={"text": head}).eval()
    model.save_pretrained(tmp_path / "ours")
    hub.commit("sea/ours", files_of(tmp_path / "ours"))
    found, wanted = planned("sea/ours"), plan_memory(model, length=30)
    assert found["parts"] == [vars(part) for part in wanted.parts] and found["total"] == wanted.total
    assert ".safetensors" not in downloaded()
