"""The commands, as a shell meets them: output, files and exit codes."""

import io
import json
import tarfile
import warnings

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

import mmblocks
from mmblocks.block import Block
from mmblocks.checkpoints import finite
from mmblocks.checkpoints.golden import write_golden
from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.cli import app as commands
from mmblocks.cli import fitting
from mmblocks.encoders.image_folder import read_embeddings
from mmblocks.layers.images.pixels import pixels_of
from mmblocks.sequence.tokens import Latents


class Greyscale(Block):
    """A tokenizer: 4x4 patches of their mean brightness, as 16 codes."""

    layouts = (
        Layout(
            name="grey",
            rules=(Rule("model.*", "linear.*"),),
            ignored=("head.weight",),
            config=lambda published: {"dim": published["size"]},
            published_config=lambda ours: {"size": ours["dim"]},
        ),
    )

    def __init__(self, *, dim: int):
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def preprocess(self, image):
        width, height = (side - side % 4 for side in image.size)
        grey = image.crop((0, 0, width, height)).convert("L")
        values = torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8).reshape(1, height, width)
        return (values.float() / 255).expand(3, -1, -1)

    def encode(self, pixels):
        ids = (nn.functional.avg_pool2d(pixels.mean(1, keepdim=True), 4)[:, 0] * 15).round().long()
        return Latents(z=ids[..., None].float(), ids=ids)

    def decode(self, latents):
        return nn.functional.interpolate(latents.z.movedim(-1, 1) / 15, scale_factor=4).expand(-1, 3, -1, -1)


def run(*arguments, code: int = 0) -> str:
    result = CliRunner().invoke(commands.app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output if code else result.stdout


def picture(seed: int, size=(12, 9)) -> Image.Image:
    values = torch.randint(256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(values.numpy())


@pytest.fixture(autouse=True)
def few_classes(monkeypatch):
    """Importing every class of mmblocks takes long; one is enough here."""
    monkeypatch.setattr(mmblocks, "Greyscale", Greyscale, raising=False)
    monkeypatch.setattr(fitting, "_classes", lambda: iter([Greyscale]))


@pytest.fixture
def published(tmp_path):
    folder = tmp_path / "published"
    folder.mkdir()
    tensors = {"model.weight": torch.ones(2, 2), "model.bias": torch.ones(2), "head.weight": torch.ones(7, 2)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text('{"size": 2}')
    return folder


@pytest.fixture
def tokenizer(tmp_path):
    Greyscale(dim=2).save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for number in range(3):
        picture(number).save(folder / f"{number}.png")
    picture(3).save(folder / "deep" / "3.png")
    with tarfile.open(folder / "shard.tar", "w") as archive:
        content = io.BytesIO()
        picture(4).save(content, "png")
        member = tarfile.TarInfo("4.png")
        member.size = content.tell()
        content.seek(0)
        archive.addfile(member, content)
    return folder


def test_list():
    entries = json.loads(run("list", "*emu3_vq*", "--json"))
    assert [(entry["name"], entry["block"], entry["layout"]) for entry in entries] == [("emu3_vq.baai", "Emu3VQ", "emu3")]
    assert "emu3_vq.baai" in run("list", "*VQ*")


def test_info_of_a_published_folder(published):
    found = json.loads(run("info", published, "--json"))
    assert found["blocks"] == [{"block": "Greyscale", "layout": "grey", "num_parameters": 6}]
    assert found["tensors"]["head.weight"] == "float32 (7, 2)"
    assert found["num_elements"] == 20
    assert "Greyscale" in run("info", published)


def test_info_of_a_folder_of_ours(tokenizer):
    found = json.loads(run("info", tokenizer, "--json"))
    assert found["blocks"] == [{"block": f"{__name__}.Greyscale", "layout": "mmblocks", "parts": {}}]


def test_convert(published, tmp_path):
    run("convert", published, tmp_path / "ours")
    assert torch.equal(Greyscale.from_pretrained(tmp_path / "ours").linear.weight, torch.ones(2, 2))
    assert "exists; force replaces it" in run("convert", published, tmp_path / "ours", code=1)
    done = json.loads(run("convert", tmp_path / "ours", tmp_path / "back", "--to", "grey", "--json"))
    assert done["layout"] == "grey"
    assert set(load_file(tmp_path / "back" / "model.safetensors")) == {"model.weight", "model.bias"}
    assert "accepted: such as float32" in run("convert", published, tmp_path / "x", "--dtype", "float31", code=1)


def test_verify(tokenizer, tmp_path):
    assert json.loads(run("verify", tokenizer, "--json"))["num_tensors"] == 2
    file = tokenizer / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    message = run("verify", tokenizer, code=1)
    assert "the checksum of the tensors does not match" in message
    assert "Traceback" not in message
    broken = Greyscale(dim=2)
    nn.init.constant_(broken.linear.bias, float("nan"))
    broken.save_pretrained(tmp_path / "broken")
    message = run("verify", tmp_path / "broken", code=1)
    assert "not finite in linear.bias" in message and "warning" not in message


def test_verify_takes_masks(tmp_path):
    masked = Greyscale(dim=2)
    masked.linear.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    assert finite.not_finite(masked, set(), was_read=True) == []
    masked.linear.mask[0] = torch.inf
    assert finite.not_finite(masked, set(), was_read=True) == ["linear.mask"]


def test_warnings_are_a_line(images, tmp_path):
    broken = Greyscale(dim=2)
    nn.init.constant_(broken.linear.bias, float("nan"))
    broken.save_pretrained(tmp_path / "broken")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        done = CliRunner().invoke(commands.app, ["tokenize", str(tmp_path / "broken"), str(images), str(tmp_path / "tokens")])
    assert done.exit_code == 0, done.output
    assert done.stderr.splitlines() == ["warning: Greyscale: linear.bias hold NaN or infinity"]


def test_verify_compares_golden_numbers(tokenizer, tmp_path):
    assert "there are no golden numbers to compare it with" in run("verify", tokenizer)
    block = Greyscale.from_pretrained(tokenizer)
    file = write_golden(block, tokenizer / "golden.safetensors", {"encode": {"pixels": torch.rand(1, 3, 4, 8)}})
    found = json.loads(run("verify", tokenizer, "--json"))
    assert found["golden"] == {"encode.out.ids": 0.0, "encode.out.z": 0.0}
    assert f"gives the numbers in {file}" in run("verify", tokenizer)
    write_golden(block, tmp_path / "other.safetensors", {"decode": {"latents": Latents(z=torch.ones(1, 1, 2, 1))}})
    found = json.loads(run("verify", tokenizer, "--golden", tmp_path / "other.safetensors", "--json"))
    assert found["golden"] == {"decode.out": 0.0}
    tensors = load_file(file)
    with safe_open(file, framework="pt") as content:
        metadata = content.metadata()
    save_file(tensors | {"encode.out.ids": tensors["encode.out.ids"] + 1}, file, metadata=metadata)
    message = run("verify", tokenizer, code=1)
    assert "does not give the numbers in" in message and "encode.out.ids differs in 2 of 2 places" in message
    assert "No such file" in run("verify", tokenizer, "--golden", tmp_path / "none.safetensors", code=1)


def test_tokenize_goes_on_where_it_stopped(tokenizer, images, tmp_path):
    done = json.loads(run("tokenize", tokenizer, images, tmp_path / "tokens", "--shard-size", 2, "--json"))
    assert (done["num_images"], done["num_shards"]) == (5, 3)
    files = sorted((tmp_path / "tokens").iterdir())
    tokens = {name: ids for file in files for name, ids in load_file(file).items()}
    assert set(tokens) == {"0.png", "1.png", "2.png", "deep/3.png", "shard.tar/4.png"}
    expected = Greyscale(dim=2)
    pixels = expected.preprocess(picture(4))[None]
    assert torch.equal(tokens["shard.tar/4.png"], expected.encode(pixels).ids[0])
    whole = {file.name: file.read_bytes() for file in files}
    kept = files[0].stat().st_mtime_ns
    files[1].unlink()
    files[2].write_bytes(b"broken")
    (tmp_path / "tokens" / "tokens-00003.safetensors").write_bytes(b"of a run with more images")
    run("tokenize", tokenizer, images, tmp_path / "tokens", "--shard-size", 2)
    assert {file.name: file.read_bytes() for file in (tmp_path / "tokens").iterdir()} == whole
    assert files[0].stat().st_mtime_ns == kept


def test_tokenize_refuses(tokenizer, images, tmp_path):
    (images / "bad.jpg").write_bytes(b"no image")
    assert "bad.jpg cannot be read as an image" in run("tokenize", tokenizer, images, tmp_path / "tokens", code=1)
    (tmp_path / "empty").mkdir()
    assert "holds no images" in run("tokenize", tokenizer, tmp_path / "empty", tmp_path / "tokens", code=1)


class Averages(Block):
    """An encoder: the mean colour."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def preprocess(self, image):
        return pixels_of(image.resize((2, 2)))

    def embed(self, pixels):
        return pixels.mean(dim=(2, 3)) * self.scale


def test_embed(images, tokenizer, tmp_path):
    Averages().save_pretrained(tmp_path / "encoder")
    target = tmp_path / "features.safetensors"
    done = json.loads(run("embed", tmp_path / "encoder", images, target, "--batch-size", 3, "--json"))
    assert done == {"target": str(target), "shape": [4, 3]}  # an image inside a .tar file is none of the folder's
    files, embeddings = read_embeddings(target)
    assert files == ["0.png", "1.png", "2.png", "deep/3.png"]
    assert torch.equal(embeddings[3], Averages().preprocess(picture(3)).mean(dim=(1, 2)))
    assert "exists; --force replaces it" in run("embed", tmp_path / "encoder", images, target, code=1)
    assert "4 vectors of 3 numbers" in run("embed", tmp_path / "encoder", images, target, "--force")
    assert "lacks preprocess, or encode_image or embed" in run("embed", tokenizer, images, tmp_path / "x.safetensors", code=1)
    assert "accepted: a name that ends in .safetensors" in run("embed", tmp_path / "encoder", images, tmp_path / "x.pt", code=1)
    (images / "bad.jpg").write_bytes(b"no image")
    assert "bad.jpg cannot be read as an image" in run("embed", tmp_path / "encoder", images, target, "--force", code=1)


def test_reconstruct(tokenizer, images, tmp_path):
    flat = tmp_path / "flat.png"
    Image.new("RGB", (9, 8), (17, 17, 17)).save(flat)
    found = json.loads(run("reconstruct", tokenizer, flat, tmp_path / "out.png", "--json"))
    assert found["psnr"] > 100
    with Image.open(tmp_path / "out.png") as written:
        assert written.size == (16, 8)
    assert "exists; --force replaces it" in run("reconstruct", tokenizer, flat, tmp_path / "out.png", code=1)
    assert "PSNR" in run("reconstruct", tokenizer, images / "0.png", tmp_path / "out.png", "--force", "--size", 8)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["verify", "missing"], 1, "no such folder: missing"),
        (["info", "missing"], 1, "no such folder: missing"),
        (["verify", "x", "--block", "Nothing"], 1, "accepted: the name of a Block of mmblocks"),
        (["verify", "x", "--arguments", "["], 1, "accepted: a JSON object"),
        (["verify"], 2, "Missing argument"),
        (["fly"], 2, "No such command"),
    ],
)
def test_errors(arguments, code, text):
    output = run(*arguments, code=code)
    assert text in output
    assert "Traceback" not in output
