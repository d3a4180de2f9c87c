"""One front for whole models: the same answers alone and in a batch, whole and in pieces, saved and loaded."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmblocks import Pipeline, Sampling
from mmblocks.pipelines import Chat, GenerateImage, Settings, known
from mmblocks.pipelines.wishes import abilities_of
from tests.shared.tiny_pipelines import TOKENIZER, emu3, image_tokenizer, pipeline

PICTURE = Image.new("RGB", (10, 6), (200, 30, 0))
ASKS = [{"role": "user", "content": [PICTURE, "what is this?"]}]


def data(pictures) -> list[bytes]:
    return [picture.tobytes() for picture in pictures]


def test_a_seed_gives_the_same_image_at_any_batch() -> None:
    pipe = pipeline("gen")
    first, second = pipe.generate_image("a cat", num_images=2, seed=3)
    assert first.size == (12, 8)
    assert data([first]) != data([second])
    assert data(pipe.generate_image("a cat", seed=3)) == data([first])
    torch.manual_seed(0)
    one = pipe.generate_image("a cat")
    assert data(one) != data(pipe.generate_image("a cat"))  # without a seed they differ


class Both:
    """A front of one's own, that chats and draws."""

    def __init__(self) -> None:
        self.talks, self.draws = pipeline("chat").front, pipeline("gen").front
        self.chat, self.generate_image, self.pictures = self.talks.chat, self.draws.generate_image, self.draws.pictures


def test_requests_of_several_kinds_run_together() -> None:
    pipe = Pipeline(front=Both(), model=emu3(), text_tokenizer=TOKENIZER, image_tokenizer=image_tokenizer())
    wishes = [
        GenerateImage("a cat", (6, 8), settings=Settings(seed=1)),
        Chat(ASKS, Settings(max_tokens=20, seed=1)),
        GenerateImage("a dog", (8, 6), num_images=2, settings=Settings(seed=2)),
        Chat([{"role": "user", "content": "a longer question, without a picture"}], Settings(max_tokens=20, seed=4)),
    ]
    together = pipe.run(wishes)
    assert [[picture.size for picture in reply.images] for reply in together] == [[(8, 6)], [], [(6, 8), (6, 8)], []]
    for wish, reply in zip(wishes, together, strict=True):
        (alone,) = pipe.run([wish], max_batch=1)
        assert alone.text == reply.text
        assert data(alone.images) == data(reply.images)
    streamed = list(pipe.stream(wishes))
    assert "".join(one.content for one in streamed if one.request == 1) == together[1].text
    assert [one.sample for one in streamed if one.request == 2] == [0, 1]


def test_streamed_pieces_are_the_whole_answer() -> None:
    pipe = pipeline("chat")
    whole = pipe.chat(ASKS, max_tokens=20, seed=5)
    pieces = list(pipe.chat(ASKS, max_tokens=20, seed=5, stream=True))
    assert len(pieces) > 1
    assert "".join(pieces) == whole.text
    assert whole.message == {"role": "assistant", "content": whole.text}


def test_closing_the_stream_ends_the_work() -> None:
    pipe, calls = pipeline("chat"), []
    pipe.components.model.trunk.register_forward_hook(lambda *_: calls.append(1))
    pieces = pipe.chat(ASKS, max_tokens=200, seed=5, stream=True)
    next(pieces)
    pieces.close()
    assert len(calls) < 20


@pytest.mark.parametrize("stream", [False, True])
def test_text_ends_before_a_stop_string(stream) -> None:
    pipe = pipeline("chat")
    whole = pipe.chat(ASKS, max_tokens=30, seed=5).text
    stop = whole[6:9]
    expected = whole[: whole.index(stop)]
    found = pipe.chat(ASKS, max_tokens=30, seed=5, stop=stop, stream=stream)
    assert ("".join(found) if stream else found.text) == expected
    assert pipe.chat(ASKS, max_tokens=30, seed=5, stop=("never there",)).text == whole


def test_a_conversation_goes_on_with_the_reply() -> None:
    pipe = pipeline("chat")
    reply = pipe.chat(ASKS, max_tokens=5, seed=0)
    again = pipe.chat([*ASKS, reply.message, {"role": "user", "content": "and now?"}], max_tokens=5, seed=0)
    assert isinstance(again.text, str)


def test_settings_change_published_ones() -> None:
    pipe = pipeline("gen")
    greedy = {"sampling": Sampling(temperature=0)}
    assert data(pipe.generate_image("a cat", seed=0, **greedy)) == data(pipe.generate_image("a cat", seed=1, **greedy))
    assert data(pipe.generate_image("a cat", guidance=1.0, **greedy)) != data(pipe.generate_image("a cat", guidance=30.0, **greedy))
    with pytest.raises(ValueError, match="nothing is guided here"):
        pipeline("chat").chat(ASKS, guidance=2.0)


@pytest.mark.parametrize("kind", ["gen", "chat", "3.5"])
def test_a_saved_pipeline_is_the_same(kind, tmp_path) -> None:
    pipe = pipeline(kind)
    pipe.save_pretrained(tmp_path / "pipe")
    again = Pipeline.from_pretrained(tmp_path / "pipe")
    assert again.front == pipe.front
    wish = Chat(ASKS, Settings(max_tokens=8, seed=0)) if kind == "chat" else GenerateImage("a", settings=Settings(seed=0))
    answers = [one.run([wish]) for one in (pipe, again)]
    assert answers[0][0].text == answers[1][0].text
    assert data(answers[0][0].images) == data(answers[1][0].images)


def test_any_part_can_be_replaced(tmp_path) -> None:
    pipe = pipeline("gen")
    pipe.save_pretrained(tmp_path / "pipe")
    other = image_tokenizer()
    again = Pipeline.from_pretrained(tmp_path / "pipe", image_tokenizer=other)
    assert again.components.image_tokenizer is other
    (tmp_path / "pipe" / "image_tokenizer" / "model.safetensors").unlink()  # nothing of it is read
    Pipeline.from_pretrained(tmp_path / "pipe", image_tokenizer=other)


def test_what_is_saved_names_classes_of_the_library_alone(tmp_path) -> None:
    class Own:
        def chat(self, components, turns):
            raise NotImplementedError

    pipe = Pipeline(front=Own(), model=emu3(), text_tokenizer=TOKENIZER)
    with pytest.raises(TypeError, match="front is a Own, which cannot be written"):
        pipe.save_pretrained(tmp_path / "pipe")
    assert not (tmp_path / "pipe").exists()
    pipeline("gen").save_pretrained(tmp_path / "other")
    file = tmp_path / "other" / "pipeline.json"
    content = json.loads(file.read_text())
    content["front"]["class"] = "Decoder"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="class 'Decoder'; accepted: data classes of mmblocks"):
        Pipeline.from_pretrained(tmp_path / "other")


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: pipeline("gen").chat(ASKS), ValueError, "Emu3GenFront has no chat; accepted of this model: generate_image"),
        (lambda: pipeline("chat").edit([PICTURE], "night"), ValueError, "has no edit"),
        (lambda: pipeline("chat").generate_video("a cat"), ValueError, "has no generate_video"),
        (lambda: pipeline("gen").generate_image(" "), ValueError, "prompt is empty"),
        (lambda: pipeline("gen").generate_image("a", size=(7, 8)), ValueError, "accepted: multiples of 2, such as 8x8"),
        (lambda: pipeline("gen").generate_image("a", size=(0, 8)), ValueError, r"size is \(0, 8\)"),
        (lambda: pipeline("gen").generate_image("a", num_images=0), ValueError, "num_images is 0"),
        (lambda: pipeline("3.5").edit([], "night"), ValueError, "pictures is empty"),
        (lambda: pipeline("3.5").edit([b"no"], "night"), ValueError, r"pictures\[0\] cannot be read"),
        (lambda: pipeline("3.5").chat([*ASKS, {"role": "assistant", "content": "a"}]), ValueError, "one of the user"),
        (lambda: pipeline("chat").chat([]), ValueError, "messages is empty"),
        (lambda: pipeline("chat").chat(ASKS, stop=""), ValueError, "empty string"),
        (lambda: pipeline("chat").chat(ASKS, max_tokens=0), ValueError, "max_tokens is 0"),
        (lambda: pipeline("chat").chat(ASKS, temprature=1), TypeError, "temprature"),
        (lambda: Pipeline(front=object(), model=emu3(), text_tokenizer=TOKENIZER), TypeError, "front is a object"),
        (lambda: Pipeline.from_pretrained("someone/unknown-model"), ValueError, "no front is known for 'someone/unknown-model'"),
        (lambda: Pipeline.from_pretrained("someone/x", front="emu4"), ValueError, "front is 'emu4'; accepted: .*emu3-chat"),
    ],
)
def test_what_cannot_be_done_is_refused(call, error, match) -> None:
    with pytest.raises(error, match=match):
        call()


def test_nothing_is_worked_on_where_one_request_is_refused() -> None:
    pipe, calls = pipeline("gen"), []
    pipe.components.model.trunk.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match="multiples of 2"):
        pipe.run([GenerateImage("a cat"), GenerateImage("a cat", (7, 7))])
    assert not calls


def test_the_page_names_every_front_with_its_abilities() -> None:
    page = Path("docs/pipelines.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("| `")]
    told: dict[str, tuple[str, ...]] = {}
    for names, *cells in rows:
        has = [cell.strip() != "" for cell in cells]
        order = ("chat", "generate_image", "edit", "training_samples")
        for name in re.findall("`([^`]+)`", names):
            told[name] = tuple(ability for ability, there in zip(order, has, strict=True) if there)
    assert told == {name: abilities_of(entry.front_object()) for name, entry in known.KNOWN.items()}
