"""``mmblocks plan``: folders of ours, of transformers and of pipelines, with weights or with configs alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from mmblocks import MultimodalModel
from mmblocks.cli import app as commands
from mmblocks.models import NEO
from mmblocks.pipelines import plan_memory
from tests.roles.test_around import language_model
from tests.shared.tiny import tiny_model
from tests.shared.tiny_pipelines import emu3, image_tokenizer, pipeline


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(commands.app, ["plan", *map(str, arguments)], terminal_width=300)
    assert result.exit_code == code, (result.output, result.exception)
    return result.stdout if code == 0 else result.stderr


def said(*arguments: object) -> dict[str, Any]:
    return json.loads(run(*arguments, "--json"))


def check(found: dict[str, Any], model: torch.nn.Module, **options: Any) -> None:
    wanted = plan_memory(model, **options)
    assert found["parts"] == [vars(part) for part in wanted.parts]
    assert (found["weights"], found["cache"], found["activations"]) == (wanted.weights, wanted.cache, wanted.activations)
    assert found["total"] == wanted.total and found["parameters"] == wanted.parameters and found["unknown"] is None


def test_a_folder_of_ours(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path)
    found = said(tmp_path, "--batch", 3, "--seq", 20)
    assert found["dtype"] == "float32" and found["devices"] == []
    check(found, model, batch=3, length=20)


def test_weights_are_in_the_dtype_of_the_files_or_in_the_one_named(tmp_path: Path) -> None:
    model = tiny_model().bfloat16()
    model.save_pretrained(tmp_path)
    found = said(tmp_path, "--seq", 20)
    assert found["dtype"] == "bfloat16"
    check(found, model, length=20)
    check(said(tmp_path, "--seq", 20, "--dtype", "float32"), model.float(), length=20)


@pytest.mark.parametrize("kind", ["gemma3_text", "gpt2"])
def test_a_language_model_of_transformers(kind: str, tmp_path: Path) -> None:
    theirs = language_model(kind, tied=True).bfloat16()
    theirs.save_pretrained(tmp_path)
    found = said(tmp_path, "--seq", 30)
    assert found["dtype"] == "bfloat16"
    check(found, MultimodalModel.around(theirs), length=30)
    (tmp_path / "model.safetensors").unlink()
    assert said(tmp_path, "--seq", 30) == found  # from its config alone


def test_one_part_of_it(tmp_path: Path) -> None:
    theirs = language_model("llama")
    theirs.save_pretrained(tmp_path)
    found = said(tmp_path, "--block", "Decoder")
    assert found["weights"] == sum(parameter.nbytes for parameter in MultimodalModel.around(theirs).trunk.parameters())
    assert found["cache"] == 0 and found["activations"] == 0


def test_a_pipeline_with_its_other_components(tmp_path: Path) -> None:
    pipeline("gen").save_pretrained(tmp_path)
    found = said(tmp_path, "--seq", 30)
    check(found, emu3(), length=30, beside={"image_tokenizer": image_tokenizer()})


def test_a_published_model_whose_class_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "Emu3-Stage1"
    model = emu3()
    model.to_upstream(folder, layout="emu3")
    text = run(folder, "--block", "Emu3", "--seq", 30)
    assert "outputs.text" in text and "30 tokens in float32" in text
    check(said(folder, "--block", "Emu3", "--seq", 30), model, length=30)


def test_a_published_model_that_the_name_of_its_folder_tells(tmp_path: Path) -> None:
    vision = {"hidden_dim": 16, "patch_size": 4, "merge_size": 2}
    model = NEO(vocab_size=64, dim=16, num_layers=2, num_heads=2, mlp_dim=16, vision=vision, tie_embeddings=True).eval()
    folder = tmp_path / "NEO1_0-2B-SFT"
    model.to_upstream(folder)
    check(said(folder, "--seq", 30), model, length=30)
    own = tmp_path / "own" / "Emu3-Gen"  # a name whose image tokenizer would lie elsewhere
    model.save_pretrained(own)
    check(said(own, "--seq", 30), model, length=30)


def test_where_it_goes(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path)
    found = said(tmp_path, "--seq", 24, "--devices", "100KB, 150KB")
    wanted = plan_memory(model, length=24, devices=["100KB", "150KB"])
    assert found["device_map"] == wanted.device_map
    assert found["device_map"]["inputs.text"] == 0 and found["device_map"]["trunk"] == 1
    assert [device["needed"] for device in found["devices"]] == [load.needed for load in wanted.devices]
    shown = run(tmp_path, "--seq", 24, "--devices", "100KB, 150KB")
    assert "100.00 KB" in shown and "inputs.text, inputs.vision" in shown
    error = run(tmp_path, "--seq", 24, "--devices", "90KB,60KB", code=1)
    assert "the model does not fit devices of 90.00 KB, 60.00 KB" in error and "are lacking" in error
