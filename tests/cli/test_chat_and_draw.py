"""``mmblocks chat`` and ``mmblocks draw``, on pipelines of a few thousand weights."""

import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from mmblocks.cli import app as commands
from mmblocks.support.pictures import picture_of
from tests.shared.tiny_pipelines import pipeline


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    for kind in ("gen", "chat"):
        pipeline(kind).save_pretrained(root / kind)
    Image.new("RGB", (10, 6), (200, 0, 0)).save(root / "red.png")
    (root / "broken.png").write_bytes(b"no picture")
    return root


def run(*arguments, code: int = 0, typed: str | None = None) -> str:
    result = CliRunner().invoke(commands.app, [str(argument) for argument in arguments], input=typed, terminal_width=300)
    assert result.exit_code == code, (result.output, result.exception)
    return result.stdout if code == 0 else result.stderr


def test_draw_writes_pictures(folders, tmp_path) -> None:
    one = tmp_path / "cat.png"
    assert run("draw", folders / "gen", "a cat", "--out", one, "--seed", 3).strip() == str(one)
    assert picture_of(one).size == (12, 8)
    told = run(
        "draw", folders / "gen", "a cat", "--out", tmp_path / "cats.png", "--num-images", 2, "--seed", 3, "--size", "8x4", "--json"
    )
    files = json.loads(told)["files"]
    assert files == [str(tmp_path / "cats-0.png"), str(tmp_path / "cats-1.png")]
    assert [picture_of(file).size for file in files] == [(8, 4), (8, 4)]


def test_chat_answers_one_message_or_many(folders) -> None:
    pipe = pipeline("chat")
    picture = picture_of(folders / "red.png")
    asked = {"role": "user", "content": [picture, "what?"]}
    first = pipe.chat([asked], max_tokens=5, seed=1)
    arguments = ("chat", folders / "chat", "--image", folders / "red.png", "--max-tokens", 5, "--seed", 1)
    assert run(*arguments, "what?") == first.text + "\n"
    second = pipe.chat([asked, first.message, {"role": "user", "content": "and now?"}], max_tokens=5, seed=1)
    assert run(*arguments, typed="what?\n\nand now?\n/quit\nnever said\n") == f"{first.text}\n{second.text}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["draw", "gen", "a cat", "--out", "cat.txt"], "--out is cat.txt; accepted: the name of an image"),
        (["draw", "gen", "a cat", "--out", "nowhere/cat.png"], "no folder nowhere"),
        (["draw", "gen", "a cat", "--out", "red.png"], "red.png exists; --force replaces it"),
        (["draw", "gen", "a cat", "--out", "cat.png", "--size", "8"], "--size is '8'; accepted: WIDTHxHEIGHT"),
        (["draw", "gen", "a cat", "--out", "cat.png", "--size", "7x8"], "accepted: multiples of 2"),
        (["draw", "gen", "a cat", "--out", "cat.png", "--image", "nowhere.png"], "nowhere.png"),
        (["draw", "gen", "a cat", "--out", "cat.png", "--image", "red.png"], "has no edit"),
        (["draw", "gen", "a cat", "--out", "cat.png", "--dtype", "int8"], "--dtype is 'int8'"),
        (["draw", "gen", "a cat", "--out", "cat.png", "--device", "abacus"], "--device is 'abacus'"),
        (["draw", "gen", " ", "--out", "cat.png"], "prompt is empty"),
        (["draw", "unknown", "a cat", "--out", "cat.png"], "no front is known for 'unknown'"),
        (["chat", "chat", "hello", "--image", "broken.png"], "broken.png cannot be read as an image"),
        (["chat", "chat", "hello", "--image", "nowhere.png"], "nowhere.png"),
        (["chat", "gen", "hello"], "Emu3GenFront has no chat"),
        (["chat", "unknown", "hello"], "no front is known for 'unknown'"),
        (["chat", "chat", "hello", "--out", "nowhere"], "accepted: a folder that is there"),
        (["chat", "chat", "hello", "--front", "emu4"], "front is 'emu4'"),
        (["chat", "someone/unknown", "hello"], "no front is known"),
        (["chat", "chat", "hello", "--dtype", "int8"], "--dtype is 'int8'"),
        (["chat", "chat", "hello", "--device", "abacus"], "--device is 'abacus'"),
    ],
)
def test_wrong_uses_are_one_sentence(arguments, said, folders, monkeypatch) -> None:
    monkeypatch.chdir(folders)
    before = sorted(folders.rglob("*"))
    error = run(*arguments, code=1)
    assert said in " ".join(error.split()), error
    assert "Traceback" not in error
    assert sorted(folders.rglob("*")) == before


def test_the_picture_is_that_of_the_pipeline(folders, tmp_path) -> None:
    run("draw", folders / "gen", "a cat", "--out", tmp_path / "cat.png", "--seed", 5)
    (wanted,) = pipeline("gen").generate_image("a cat", seed=5)
    assert picture_of(tmp_path / "cat.png").tobytes() == wanted.tobytes()
