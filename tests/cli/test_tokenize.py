"""``tokenize``: clips, 16 bits, and what remains of a run that was killed."""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from mmblocks.block import Block
from mmblocks.cli import app as commands
from mmblocks.cli import samples
from mmblocks.layers.images.pixels import pixels_of
from mmblocks.sequence.tokens import Latents

REPOSITORY = Path(__file__).parents[2]


class Pairs(Block):
    """A tokenizer of clips: the mean brightness of every two frames."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def preprocess(self, image):
        return pixels_of(image)

    def encode(self, pixels):
        if pixels.ndim != 5 or pixels.shape[2] % 2:
            raise ValueError(f"pixels hold {pixels.shape[2]} frames; accepted: multiples of 2, such as 2")
        ids = (pixels.mean(dim=(1, 3, 4)) * 255).round().unflatten(1, (-1, 2)).mean(dim=-1).long()
        return Latents(z=ids[..., None, None].float(), ids=ids[..., None, None])

    def decode(self, latents):
        raise NotImplementedError


def run(*arguments, code: int = 0) -> str:
    result = CliRunner().invoke(commands.app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output if code else result.stdout


def grey(level: int, size=(4, 4)) -> Image.Image:
    return Image.new("RGB", size, (level,) * 3)


def ids(folder: Path) -> dict[str, list[int]]:
    found = {name: tokens for file in sorted(folder.iterdir()) for name, tokens in load_file(file).items()}
    assert all(tokens.shape[1:] == (1, 1) for tokens in found.values())
    return {name: tokens.flatten().tolist() for name, tokens in found.items()}


@pytest.fixture
def tokenizer(tmp_path):
    Pairs().save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.fixture
def clips(tmp_path):
    folder = tmp_path / "clips"
    (folder / "deep" / "one").mkdir(parents=True)
    for number in (8, 9, 10, 11):  # which sort otherwise as text
        grey(10 * number).save(folder / "deep" / "one" / f"frame{number}.png")
    frames = [grey(level) for level in (0, 100, 200, 250)]
    frames[0].save(folder / "two.gif", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "three.webp", save_all=True, append_images=frames[1:2], lossless=True)
    with tarfile.open(folder / "shard.tar", "w") as archive:
        for name, level in {"four/b.png": 60, "four/a.png": 40, "five.001.png": 8, "five.000.png": 4, "five.json": 0}.items():
            content = io.BytesIO()
            grey(level).save(content, "png")
            member = tarfile.TarInfo(name)
            member.size = content.tell()
            content.seek(0)
            archive.addfile(member, content)
    return folder


def test_clips(tokenizer, clips, tmp_path):
    done = json.loads(run("tokenize", tokenizer, clips, tmp_path / "tokens", "--clips", "--shard-size", 2, "--json"))
    assert (done["num_clips"], done["num_shards"]) == (5, 3)
    expected = {
        "deep/one": [85, 105],
        "two.gif": [50, 225],
        "three.webp": [50],
        "shard.tar/four": [50],
        "shard.tar/five": [6],
    }
    assert ids(tmp_path / "tokens") == expected
    run("tokenize", tokenizer, clips / "shard.tar", tmp_path / "tokens", "--clips")
    assert ids(tmp_path / "tokens") == {name: found for name, found in expected.items() if name.startswith("shard.tar")}
    assert "2 clips in 1 files" in run("tokenize", tokenizer, clips / "shard.tar", tmp_path / "tokens", "--clips")


def test_a_clip_that_does_not_fit_is_named(tokenizer, clips, tmp_path):
    grey(1).save(clips / "deep" / "one" / "frame12.png")
    message = run("tokenize", tokenizer, clips, tmp_path / "tokens", "--clips", code=1)
    assert "deep/one cannot be tokenized: pixels hold 5 frames; accepted: multiples of 2" in message
    (clips / "deep" / "one" / "frame12.png").unlink()
    grey(1, (6, 4)).save(clips / "deep" / "one" / "frame11.png")
    message = run("tokenize", tokenizer, clips, tmp_path / "tokens", "--clips", code=1)
    assert "deep/one cannot be tokenized: its frames are of several sizes" in message
    (clips / "deep" / "one" / "frame11.png").write_bytes(b"no image")
    message = run("tokenize", tokenizer, clips, tmp_path / "tokens", "--clips", code=1)
    assert "deep/one/frame11.png cannot be read as an image" in message
    assert not (tmp_path / "tokens").exists()


def test_frames_of_the_folder_itself(tokenizer, tmp_path):
    (tmp_path / "clip").mkdir()
    for number in range(2):
        grey(20 * number).save(tmp_path / "clip" / f"{number}.png")
    run("tokenize", tokenizer, tmp_path / "clip", tmp_path / "tokens", "--clips")
    assert ids(tmp_path / "tokens") == {"clip": [10]}
    (tmp_path / "clip" / "clip").mkdir()
    grey(1).save(tmp_path / "clip" / "clip" / "0.png")
    assert "two samples are called 'clip'" in run("tokenize", tokenizer, tmp_path / "clip", tmp_path / "tokens", "--clips", code=1)


def test_an_image_that_moves_is_its_first_frame_without_clips(clips):
    (first,) = [sample for sample in samples.images(clips) if sample.name == "two.gif"]
    (image,) = first.images(None)
    assert image.getpixel((0, 0)) == (0, 0, 0)


def test_sixteen_bits_are_not_cut_off(tmp_path):
    Image.fromarray(np.full((2, 2), 32768, dtype=np.uint16)).save(tmp_path / "deep.png")
    (sample,) = samples.images(tmp_path)
    assert sample.images(None)[0].getpixel((0, 0)) == (128, 128, 128)
    assert sample.images(4)[0].size == (4, 4)


def test_compressed_tar(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:gz"):
        pass
    with pytest.raises(ValueError, match=r"a\.tar cannot be read as a \.tar file"):
        samples.images(tmp_path)


def member(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header that claims ``size`` bytes."""
    header = tarfile.TarInfo(name)
    header.size, header.type = size, kind
    return header.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "content",
    [
        member("a.png", -512),
        member("a.png", -1024) + bytes(1024),
        member("a.png", -1),
        member("a.png", 10**12),
        member("x", -512, tarfile.XHDTYPE),
        member("x", -1024, tarfile.GNUTYPE_LONGNAME) + bytes(1024),
        b"x" * 512 + member("a.png", 512) + bytes(512),
        member("x", 14, tarfile.XHDTYPE) + b"14 size=-1024\n" + bytes(498) + member("a.png", 512) + bytes(512),
    ],
    ids=range(8),
)
def test_sizes_in_a_tar_file(tmp_path, content):
    """Python's own reader, up to 3.11.13, follows a negative size back for ever."""
    (tmp_path / "a.tar").write_bytes(member("good.png", 512) + bytes(512) + content + bytes(1024))
    with pytest.raises(ValueError, match=r"a\.tar cannot be read as a \.tar file"):
        samples.images(tmp_path)


def test_sparse_member_of_a_tar_file(tmp_path):
    """As GNU tar writes it: one piece of 512 bytes, in a file of a gibibyte."""
    header = bytearray(member("sparse.png", 512, tarfile.GNUTYPE_SPARSE))
    header[386:410] = b"%011o\0%011o\0" % (0, 512)
    header[483:495] = b"%011o\0" % 2**30
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 8 * ord(" "))
    good, last = (member(name, 512) + bytes(512) for name in ("good.png", "last.png"))
    (tmp_path / "a.tar").write_bytes(good + header + bytes(512) + last + bytes(1024))
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert archive.getmember("sparse.png").issparse() and archive.getmember("sparse.png").size == 2**30
    assert [sample.name for sample in samples.images(tmp_path)] == ["a.tar/good.png", "a.tar/last.png"]


def test_a_tar_file_without_its_end(tmp_path):
    """As one that is still being written, between two members."""
    (tmp_path / "a.tar").write_bytes(member("good.png", 512) + bytes(512))
    assert [sample.name for sample in samples.images(tmp_path)] == ["a.tar/good.png"]


def test_images_that_claim_too_much(tokenizer, clips, tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "MOST_PIXELS", 3 * 16)  # two.gif has four frames of 4 x 4
    message = run("tokenize", tokenizer, clips, tmp_path / "tokens", "--clips", code=1)
    assert "two.gif cannot be read as an image: its frames have more than 48 pixels in all" in message
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 7)  # Pillow refuses twice as many
    message = run("tokenize", tokenizer, clips / "deep", tmp_path / "tokens", code=1)
    assert "frame10.png cannot be read as an image: Image size (16 pixels) exceeds limit of 14 pixels" in message


def test_a_file_is_no_target(tokenizer, clips, tmp_path):
    (tmp_path / "tokens").write_text("mine")
    assert "it is not a folder" in run("tokenize", tokenizer, clips, tmp_path / "tokens", "--clips", code=1)
    assert (tmp_path / "tokens").read_text() == "mine"


def test_one_writer_at_a_time(tokenizer, clips, tmp_path):
    with FileLock(tmp_path / ".tokens.lock"):
        message = run("tokenize", tokenizer, clips, tmp_path / "tokens", "--clips", code=1)
    assert "another process writes tokens to" in message


KILLED = """
import sys
from pathlib import Path
import torch
from PIL import Image
from torch import nn
from mmblocks.block import Block
from mmblocks.cli.token_shards import tokenize
from mmblocks.layers.images.pixels import pixels_of
from mmblocks.sequence.tokens import Latents
from tests.shared.killed import contents, kill_at_random_steps

class Shifted(Block):
    def __init__(self, *, shift):
        super().__init__()
        self.shift = nn.Parameter(torch.full((1,), float(shift)))
    def preprocess(self, image):
        return pixels_of(image)
    def encode(self, pixels):
        return Latents(z=pixels + self.shift)
    def decode(self, latents):
        raise NotImplementedError

place = Path(sys.argv[1])
images, target, straight, old = (place / name for name in ("images", "target", "straight", "old"))
images.mkdir()
for number in range(10):
    Image.new("RGB", (2, 2), (number, 0, 0)).save(images / f"{number}.png")

def run(shift, where):
    with torch.no_grad():
        tokenize(Shifted(shift=shift), images, where, None, 2, torch.device("cpu"), lambda number, total: None)

run(1, old)
run(2, straight)
(old / "notes.txt").write_text("kept")
new = contents(straight) | {"notes.txt": b"kept"}
print(*kill_at_random_steps(lambda: run(2, target), target, old, new, unfinished=place / ".target.tokenizing"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="folders are exchanged in one step on Linux alone")
def test_kill_at_random_steps_and_go_on(tmp_path):
    result = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    old, new = map(int, result.stdout.split())
    assert old > 10 and new > 0
