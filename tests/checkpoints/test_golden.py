"""Golden numbers beside the weights: written, compared, and read from files that mean harm."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from mmblocks.block import Block
from mmblocks.checkpoints.files.stored import choose
from mmblocks.checkpoints.golden import compare_golden, write_golden
from mmblocks.sequence.tokens import Latents, TokenTable


class Coder(Block):
    def __init__(self, *, dim: int = 2):
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, embeds, table, options=None):
        return {"hidden": self.linear(embeds) * (table.document >= 0)[..., None] + (options or {"shift": 0})["shift"]}

    def encode(self, images):
        z = torch.stack([self.linear(image) for image in images])
        return Latents(z=z, ids=(z > 0).long())

    def decode(self, latents):
        return self.linear(latents.z)

    def draw(self, x):
        return x + torch.randn(())

    def name(self):
        return "coder"


LATENTS = Latents(z=torch.ones(1, 3, 2))
CALLS = {
    "forward": {"embeds": torch.ones(1, 3, 2), "table": TokenTable.text(1, 3), "options": {"shift": 2.5}},
    "encode": {"images": [torch.ones(3, 2), torch.zeros(3, 2)]},
    "decode": {"latents": LATENTS},
}
OUTPUTS = {"forward.out.hidden", "encode.out.z", "encode.out.ids", "decode.out"}


@pytest.fixture
def coder():
    torch.manual_seed(0)
    return Coder()


@pytest.fixture
def file(coder, tmp_path):
    coder.train()
    written = write_golden(coder, tmp_path / "golden.safetensors", CALLS)
    assert coder.training
    return written


def test_same_block_gives_the_same(coder, file):
    assert compare_golden(coder, file) == (dict.fromkeys(OUTPUTS, 0.0), {})
    assert choose(["golden.safetensors", "model.safetensors"], "") == "model.safetensors"
    assert choose(["golden.safetensors", "weights.safetensors"], "") == "weights.safetensors"


def test_another_block_does_not(coder, file):
    with torch.no_grad():
        coder.linear.bias[0] += 1e-5
    assert compare_golden(coder, file).wrong == {}
    assert 0 < compare_golden(coder, file).differences["decode.out"] < 1e-4
    with torch.no_grad():
        coder.linear.bias[0] += 100
    found = compare_golden(coder, file)
    assert set(found.wrong) == OUTPUTS
    assert found.wrong["decode.out"] == "differs by up to 100"
    assert found.wrong["encode.out.ids"].endswith("of 12 places")


def test_not_a_number_is_never_right(coder, file):
    nn.init.constant_(coder.linear.weight, float("nan"))
    assert "decode.out" in compare_golden(coder, file).wrong


def test_outputs_that_came_and_went(coder, file, monkeypatch):
    monkeypatch.setattr(Coder, "decode", lambda self, latents: {"pixels": latents.z})
    assert compare_golden(coder, file).wrong == {"decode.out": "is not there any more", "decode.out.pixels": "is new"}
    monkeypatch.setattr(Coder, "decode", lambda self, latents: latents.z[0])
    assert "(3, 2) instead of torch.float32 (1, 3, 2)" in compare_golden(coder, file).wrong["decode.out"]


@pytest.mark.parametrize(
    ("calls", "error", "match"),
    [
        ({"fly": {}}, ValueError, "Coder has no method 'fly'"),
        ({"linear": {}}, ValueError, "Coder has no method 'linear'"),
        ({"draw": {"x": torch.ones(1)}}, ValueError, "draw.out of Coder is another each time; hand in what is drawn"),
        ({"name": {}}, TypeError, "name of Coder gives no tensors"),
        ({"decode": {"latents": "a.pt"}}, TypeError, r"decode\.in\.latents is a str; accepted: tensors, numbers, Latents"),
    ],
)
def test_what_cannot_be_written(coder, tmp_path, calls, error, match):
    with pytest.raises(error, match=match):
        write_golden(coder, tmp_path / "golden.safetensors", calls)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"calls": {"push_to_hub": {"repo_id": "me/stolen"}}}, "has no method 'push_to_hub'"),
        ({"calls": {"save_pretrained": {"folder": "harmed"}}}, "has no method 'save_pretrained'"),
        ({"calls": {"apply": {"fn": 1}}}, "has no method 'apply'"),
        ({"calls": {"__init__": {}}}, "has no method '__init__'"),
        ({"calls": {"_method": {}}}, "has no method '_method'"),
        ({"calls": {"encode": {"images": "harmed"}}}, "text such as 'harmed' is no tensor or number"),
        ({"calls": {"encode": {"pictures": []}}}, "encode of Coder does not take these inputs"),
        ({"calls": {"decode": {"latents": {"_tensor": "x"}}}}, "there is no tensor 'x'"),
        ({"calls": {"decode": {"latents": {"_record": "Latents", "w": 1}}}}, "does not take these inputs"),
        ({"calls": {"decode": {"latents": {"_record": []}}}}, "does not take these inputs"),
        ({"calls": {"decode": 3}}, "holds no golden numbers"),
        ({"calls": []}, "holds no golden numbers"),
        ({"atol": -1}, "holds no golden numbers"),
        ({"atol": "nan"}, "holds no golden numbers"),
        ({"atol": None}, "holds no golden numbers"),
        ({"rtol": "inf"}, "holds no golden numbers"),
        ({"rtol": float("nan")}, "holds no golden numbers"),
        ({"calls": {"encode": {"images": 10**12}}}, "the number 1000000000000 is too large"),
        ({"calls": {"encode": {"images": [-(10**12)]}}}, "the number -1000000000000 is too large"),
    ],
    ids=str,
)
def test_files_that_mean_harm(coder, file, change, match, monkeypatch):
    monkeypatch.chdir(file.parent)
    with safe_open(file, framework="pt") as content:
        described = json.loads(content.metadata()["golden"])
    save_file(load_file(file), file, metadata={"golden": json.dumps(described | change)})
    with pytest.raises(ValueError, match=match):
        compare_golden(coder, file)
    assert [path.name for path in file.parent.iterdir()] == ["golden.safetensors"]


def test_file_without_numbers(coder, tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"a\.safetensors holds no golden numbers"):
        compare_golden(coder, tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"b")
    with pytest.raises(ValueError, match="no valid safetensors file"):
        compare_golden(coder, tmp_path / "b.safetensors")
