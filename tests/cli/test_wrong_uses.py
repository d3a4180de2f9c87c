"""Wrong uses of each command: an exit code other than 0, no traceback, and a message that names what is wrong and what is taken."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

import mmblocks
from mmblocks.checkpoints import convert
from mmblocks.cli import app as commands
from mmblocks.cli import fitting
from tests.cli.test_commands import Averages, Greyscale

TOKENIZE, RECONSTRUCT, EMBED = ("tokenize", "tokenizer"), ("reconstruct", "tokenizer"), ("embed", "encoder")

HEAVY = {"torch", "timm", "transformers", "numpy", "diffusers", "huggingface_hub", "PIL", "safetensors"}

WRONG = [
    # command, arguments, exit code, what the message says
    (["list", "nothing*"], 1, ["'nothing*'", "accepted: a name, class or id"]),
    (["list", "nothing*", "--json"], 1, ["'nothing*'", "accepted: a name, class or id"]),
    (["list", ""], 1, ["''", "accepted: a name, class or id"]),
    (["list", "["], 1, ["'['", "accepted"]),
    (["list", "emu3_vq.baai", "more"], 2, ["unexpected extra argument", "more"]),
    (["list", "--layout", "x"], 2, ["No such option", "--layout"]),
    (["list", "--json=yes"], 2, ["--json", "does not take a value"]),
    (["list", "emu3_vq"], 1, ["'emu3_vq'", "with * for any characters"]),
    (["list", "a" * 3000], 1, ["accepted: a name, class or id"]),
    (["list", "*\n*"], 1, ["accepted: a name, class or id"]),
    #
    (["info"], 2, ["Missing argument", "SOURCE"]),
    (["info", ""], 2, ["SOURCE", "it is empty"]),
    (["info", "missing"], 1, ["missing", "accepted: a folder, organisation/name on the Hub"]),
    (["info", "empty"], 1, ["empty holds no weights", "accepted: .safetensors"]),
    (["info", "text.txt"], 1, ["text.txt", "accepted: .safetensors"]),
    (["info", "broken.safetensors"], 1, ["broken.safetensors"]),
    (["info", "broken.pt"], 1, ["broken.pt"]),
    (["info", "bad_config"], 1, ["bad_config/config.json is not JSON"]),
    (["info", "list_config"], 1, ["list_config/config.json holds a list", "expected an object"]),
    (["info", "tokenizer", "--revision", "main"], 1, ["revision is 'main'", "tokenizer", "accepted: a repository on the Hub"]),
    (["info", "tokenizer", "--subfolder", "missing"], 1, ["tokenizer holds no folder 'missing'"]),
    (["info", "tokenizer", "--subfolder", "../encoder"], 1, ["subfolder is '../encoder'", "accepted: the path of a subfolder"]),
    #
    (["convert", "tokenizer"], 2, ["Missing argument", "TARGET"]),
    (["convert", "tokenizer", ""], 2, ["TARGET", "it is empty"]),
    (["convert", "missing", "out"], 1, ["missing", "accepted: a folder, organisation/name on the Hub"]),
    (["convert", "empty", "out"], 1, ["empty holds no weights"]),
    (["convert", "tokenizer", "images"], 1, ["images exists", "force replaces it"]),
    (["convert", "tokenizer", "text.txt"], 1, ["text.txt exists"]),
    (["convert", "tokenizer", "text.txt/out"], 1, ["text.txt"]),
    (["convert", "tokenizer", "text.txt", "--force"], 1, ["text.txt"]),
    (["convert", "tokenizer", "out", "--to", "nonsense"], 1, ["'nonsense'", "grey"]),
    (["convert", "published", "out", "--layout", "nonsense"], 1, ["layout is 'nonsense'", "grey"]),
    (["convert", "tokenizer", "out", "--dtype", "float31"], 1, ["--dtype is 'float31'", "accepted: such as float32"]),
    (["convert", "tokenizer", "out", "--dtype", "int8"], 1, ["--dtype is 'int8'", "accepted: such as float32"]),
    (["convert", "tokenizer", "out", "--max-shard-size", "much"], 1, ["'much'", "accepted"]),
    (["convert", "tokenizer", "out", "--block", "nonsense"], 1, ["'nonsense'", "accepted: the name of a Block"]),
    #
    (["verify", "missing"], 1, ["missing", "accepted"]),
    (["verify", ""], 2, ["SOURCE", "it is empty"]),
    (["verify", "empty"], 1, ["empty holds no weights"]),
    (["verify", "text.txt"], 1, ["text.txt", "accepted: .safetensors"]),
    (["verify", "tokenizer", "--arguments", "{"], 1, ["--arguments is '{'", "accepted: a JSON object"]),
    (["verify", "tokenizer", "--arguments", "[1]"], 1, ["--arguments is '[1]'", "accepted: a JSON object"]),
    (["verify", "tokenizer", "--arguments", '{"depth": 3}'], 1, ["unknown argument 'depth'", "accepted: dim"]),
    (["verify", "tokenizer", "--arguments", '{"dim": "two"}'], 1, ["dim"]),
    (["verify", "tokenizer", "--arguments", '{"dim": 3}'], 1, ["linear.weight"]),
    (["verify", "tokenizer", "--arguments", '{"device": "cpu"}'], 1, ["--arguments names 'device'", "accepted: arguments of"]),
    (["verify", "tokenizer", "--golden", "missing.safetensors"], 1, ["missing.safetensors"]),
    (["verify", "tokenizer", "--golden", "images"], 1, ["images"]),
    (["verify", "tokenizer", "--golden", "text.txt"], 1, ["text.txt"]),
    (["verify", "tokenizer", "--golden", "weights.safetensors"], 1, ["weights.safetensors", "accepted: a file that write_golden"]),
    (["verify", "tokenizer", "--layout", "nonsense"], 1, ["nonsense"]),
    (["verify", "tokenizer", "--block", "Decoder"], 1, ["Greyscale", "Decoder"]),
    (["verify", "wrong_type"], 1, ["config.json of Greyscale: dim is '2'", "accepted: int"]),
    (["verify", "endless"], 1, ["config.json of Greyscale: dim is inf", "accepted: a finite number"]),
    #
    ([*TOKENIZE, "images"], 2, ["Missing argument", "TARGET"]),
    ([*TOKENIZE, "", "out"], 2, ["IMAGES", "it is empty"]),
    ([*TOKENIZE, "missing", "out"], 1, ["missing", "accepted: a folder of images"]),
    ([*TOKENIZE, "empty", "out"], 1, ["empty holds no images", "accepted: .png"]),
    ([*TOKENIZE, "text.txt", "out"], 1, ["text.txt cannot be read as a .tar file"]),
    ([*TOKENIZE, "images", "text.txt"], 1, ["text.txt", "not a folder"]),
    ([*TOKENIZE, "images", "text.txt/out"], 1, ["text.txt is not a folder"]),
    ([*TOKENIZE, "unreadable", "out"], 1, ["bad.png cannot be read as an image"]),
    ([*TOKENIZE, "cut", "out"], 1, ["cut.png cannot be read as an image"]),
    ([*TOKENIZE, "images", "out", "--size", "0"], 2, ["Invalid value", "--size", "1"]),
    ([*TOKENIZE, "images", "out", "--size", "large"], 2, ["Invalid value", "--size", "integer"]),
    ([*TOKENIZE, "images", "out", "--shard-size", "0"], 2, ["Invalid value", "--shard-size", "1"]),
    ([*TOKENIZE, "images", "out", "--device", "nonsense"], 1, ["--device is 'nonsense'", "accepted: a device of this machine"]),
    ([*TOKENIZE, "images", "out", "--device", "meta"], 1, ["--device is 'meta'", "accepted: a device of this machine"]),
    ([*TOKENIZE, "images", "out", "--device", "cpu:x"], 1, ["--device is 'cpu:x'", "accepted: a device of this machine"]),
    (["tokenize", "encoder", "images", "out"], 1, ["Averages is no tokenizer"]),
    (["tokenize", "missing", "images", "out"], 1, ["missing", "accepted"]),
    #
    ([*RECONSTRUCT, "a.png"], 2, ["Missing argument", "TARGET"]),
    ([*RECONSTRUCT, "", "out.png"], 2, ["IMAGE", "it is empty"]),
    ([*RECONSTRUCT, "missing.png", "out.png"], 1, ["missing.png", "accepted: an image"]),
    ([*RECONSTRUCT, "images", "out.png"], 1, ["images is a folder", "accepted: an image"]),
    ([*RECONSTRUCT, "unreadable/bad.png", "out.png"], 1, ["unreadable/bad.png cannot be read as an image"]),
    ([*RECONSTRUCT, "cut/cut.png", "out.png"], 1, ["cut/cut.png cannot be read as an image"]),
    ([*RECONSTRUCT, "text.txt", "out.png"], 1, ["text.txt cannot be read as an image"]),
    ([*RECONSTRUCT, "images/a.png", "out.xyz"], 1, ["out.xyz has the ending '.xyz'", "accepted"]),
    ([*RECONSTRUCT, "images/a.png", "out"], 1, ["out has the ending ''", "accepted"]),
    ([*RECONSTRUCT, "images/a.png", "nowhere/out.png"], 1, ["no folder nowhere"]),
    ([*RECONSTRUCT, "images/a.png", "empty", "--force"], 1, ["empty is a folder", "accepted: the file to write"]),
    ([*RECONSTRUCT, "images/a.png", "text.txt"], 1, ["text.txt exists", "--force replaces it"]),
    ([*RECONSTRUCT, "images/a.png", "out.png", "--size", "-1"], 2, ["Invalid value", "--size", "1"]),
    ([*RECONSTRUCT, "images/a.png", "out.png", "--device", "nonsense"], 1, ["--device is 'nonsense'", "accepted"]),
    (["reconstruct", "encoder", "images/a.png", "out.png"], 1, ["Averages is no tokenizer"]),
    #
    ([*EMBED, "images"], 2, ["Missing argument", "TARGET"]),
    ([*EMBED, "", "out.safetensors"], 2, ["IMAGES", "it is empty"]),
    ([*EMBED, "missing", "out.safetensors"], 1, ["no such folder: missing"]),
    ([*EMBED, "images/a.png", "out.safetensors"], 1, ["images/a.png is a file", "accepted: a folder of images"]),
    ([*EMBED, "empty", "out.safetensors"], 1, ["empty holds no images", "accepted: files ending in .jpg"]),
    ([*EMBED, "unreadable", "out.safetensors"], 1, ["unreadable/bad.png cannot be read as an image"]),
    ([*EMBED, "images", "out.pt"], 1, ["out.pt", "accepted: a name that ends in .safetensors"]),
    ([*EMBED, "images", "empty", "--force"], 1, ["empty is a folder", "accepted: the file to write"]),
    ([*EMBED, "images", "weights.safetensors"], 1, ["weights.safetensors exists", "--force replaces it"]),
    ([*EMBED, "images", "text.txt/out.safetensors"], 1, ["text.txt"]),
    ([*EMBED, "images", "out.safetensors", "--batch-size", "0"], 2, ["Invalid value", "--batch-size", "1"]),
    ([*EMBED, "images", "out.safetensors", "--device", "nonsense"], 1, ["--device is 'nonsense'", "accepted"]),
    (["embed", "tokenizer", "images", "out.safetensors"], 1, ["Greyscale lacks preprocess, or encode_image or embed"]),
    #
    (["plan"], 2, ["Missing argument", "SOURCE"]),
    (["plan", ""], 2, ["SOURCE", "it is empty"]),
    (["plan", "missing"], 1, ["missing", "accepted: a folder, organisation/name on the Hub"]),
    (["plan", "empty"], 1, ["empty holds no weights"]),
    (["plan", "text.txt"], 1, ["text.txt", "accepted: .safetensors"]),
    (["plan", "bad_config"], 1, ["bad_config/config.json is not JSON"]),
    (["plan", "tokenizer", "--batch", "0"], 2, ["Invalid value", "--batch", "1"]),
    (["plan", "tokenizer", "--seq", "long"], 2, ["Invalid value", "--seq", "integer"]),
    (["plan", "tokenizer", "--dtype", "int4"], 1, ["--dtype is 'int4'", "accepted: such as float32"]),
    (["plan", "tokenizer", "--devices", "24GB,"], 1, ["--devices is '24GB,'", "such as 24GB"]),
    (["plan", "tokenizer", "--devices", "much"], 1, ["--devices is 'much'", "such as 24GB"]),
    (["plan", "tokenizer", "--devices", "0GB"], 1, ["--devices is '0GB'", "such as 24GB"]),
    (["plan", "tokenizer", "--devices", "9B"], 1, ["the model does not fit devices of 9 B", "are lacking"]),
    (["plan", "tokenizer", "--revision", "main"], 1, ["revision is 'main'", "accepted: a repository on the Hub"]),
    (["plan", "tokenizer", "--subfolder", "missing"], 1, ["tokenizer holds no folder 'missing'"]),
    (["plan", "tokenizer", "--arguments", "{"], 1, ["--arguments is '{'", "accepted: a JSON object"]),
    (["plan", "tokenizer", "--arguments", '{"depth": 3}'], 1, ["unknown argument 'depth'"]),
    (["plan", "published", "--block", "nonsense"], 1, ["'nonsense'", "accepted: the name of a Block"]),
    (["plan", "published", "--block", "Decoder"], 1, ["published fits no layout of Decoder"]),
    (["plan", "published", "--block", "LMHead", "--layout", "nonsense"], 1, ["layout is 'nonsense'", "llama"]),
    #
    ([], 2, ["Usage"]),
    (["fly"], 2, ["No such command", "fly"]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All that the wrong uses name."""
    root = tmp_path_factory.mktemp("wrong")
    for name in ("images", "empty", "unreadable", "cut", "published", "bad_config", "list_config"):
        (root / name).mkdir()
    Image.effect_noise((32, 32), 64).convert("RGB").save(root / "images" / "a.png")
    (root / "cut" / "cut.png").write_bytes((root / "images" / "a.png").read_bytes()[:300])
    (root / "unreadable" / "bad.png").write_bytes(b"no image")
    for name in ("text.txt", "broken.safetensors", "broken.pt"):
        (root / name).write_text("only text")
    save_file({"model.weight": torch.ones(2, 2), "model.bias": torch.ones(2)}, root / "weights.safetensors")
    for name in ("published", "bad_config", "list_config"):
        (root / name / "model.safetensors").write_bytes((root / "weights.safetensors").read_bytes())
    (root / "published" / "config.json").write_text('{"size": 2}')
    (root / "bad_config" / "config.json").write_text("{")
    (root / "list_config" / "config.json").write_text("[1]")
    for name, dim in (("tokenizer", 2), ("wrong_type", '"2"'), ("endless", "1e400")):
        Greyscale(dim=2).save_pretrained(root / name)
        file = root / name / "config.json"
        file.write_text(file.read_text().replace('"dim": 2', f'"dim": {dim}'))
    Averages().save_pretrained(root / "encoder")
    return root


@pytest.fixture
def few_classes(monkeypatch):
    monkeypatch.setattr(mmblocks, "Greyscale", Greyscale, raising=False)
    monkeypatch.setattr(fitting, "_classes", lambda: iter([Greyscale]))


@pytest.mark.parametrize(
    ("arguments", "code", "said"), WRONG, ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else None
)
def test_wrong_uses(folder, few_classes, monkeypatch, arguments, code, said):
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    result = CliRunner().invoke(commands.app, arguments, terminal_width=300)
    assert result.exit_code == code, (result.output, result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    output = " ".join(result.stderr.replace("│", " ").split()) + (result.stdout if not arguments else "")
    assert all(text in output for text in said), output
    assert "object at 0x" not in output and "Traceback" not in output
    assert result.stdout == "" or not arguments
    new = [path for path in sorted(folder.rglob("*")) if path not in before]
    assert all(path.name.startswith(".") or path.parent.name.startswith(".") or ".parts" in str(path) for path in new), new
    assert len(output) < 2000 or "a" * 3000 in arguments or not arguments  # which lists all commands


def test_each_command_has_ten_wrong_uses():
    for command in ("list", "info", "convert", "verify", "tokenize", "reconstruct", "embed"):
        assert sum(arguments[:1] == [command] for arguments, _, _ in WRONG) >= 10, command


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["list", "*vq*", "--json"], ["tokenize", "--help"]])
def test_help_and_list_import_nothing_that_takes_long(arguments):
    code = (
        "import sys; from mmblocks.cli.app import app; app(sys.argv[1:], standalone_mode=False);"
        f"heavy = {HEAVY} & sys.modules.keys();"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "emu3_vq.baai" in result.stdout or "Usage" in result.stdout
    if "--json" in arguments:
        assert json.loads(result.stdout)


def test_the_default_layout_of_convert_is_our_own():
    assert commands.OWN == convert.OWN
