"""Messages in the forms that people know become turns; others are refused by name."""

import base64
import io

import pytest
from PIL import Image

from mmblocks.prompts import turns_of

PICTURE = Image.new("RGB", (4, 6), (200, 0, 0))


def png() -> bytes:
    file = io.BytesIO()
    PICTURE.save(file, format="PNG")
    return file.getvalue()


def test_forms_of_content_are_one(tmp_path) -> None:
    file = tmp_path / "red.png"
    file.write_bytes(png())
    in_base64 = base64.b64encode(png()).decode()
    forms = [
        [PICTURE, "what?"],
        [file, {"type": "text", "text": "what?"}],
        [{"type": "image", "image": PICTURE}, {"text": "what?"}],
        [{"type": "image", "path": str(file)}, "", "what?"],
        [{"type": "image", "base64": in_base64}, "what?"],
        [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{in_base64}"}}, {"type": "text", "text": "what?"}],
        [{"type": "input_image", "image_url": f"data:image/png;base64,{in_base64}"}, {"type": "input_text", "text": "what?"}],
        [png(), "what?"],
    ]
    for content in forms:
        (turn,) = turns_of([{"role": "user", "content": content}])
        assert turn.text == "what?"
        assert [picture.convert("RGB").tobytes() for picture in turn.pictures] == [PICTURE.tobytes()]


def test_strings_alone_are_text() -> None:
    turns = turns_of([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}])
    assert [(turn.role, turn.content) for turn in turns] == [("system", ("s",)), ("user", ("u",)), ("assistant", ("a",))]


def user(content: object) -> dict:
    return {"role": "user", "content": content}


@pytest.mark.parametrize(
    ("messages", "error", "match"),
    [
        ([], ValueError, "messages is empty"),
        ("hello", TypeError, "messages"),
        (user("hello"), TypeError, "messages"),
        (["hello"], TypeError, r"messages\[0\]|messages"),
        ([{"content": "hello"}], TypeError, "accepted: a dict with 'role' and 'content'"),
        ([{"role": "robot", "content": "hello"}], ValueError, r"messages\[0\] has role 'robot'"),
        ([user("")], ValueError, r"messages\[0\]\['content'\] is empty"),
        ([user([])], ValueError, "is empty"),
        ([user("a"), user("b")], ValueError, r"messages\[0\] and messages\[1\] are both of the user"),
        ([user("a"), {"role": "system", "content": "b"}], ValueError, r"messages\[1\] is of the system"),
        ([user([b"no picture", "a"])], ValueError, r"messages\[0\]\['content'\]\[0\] cannot be read as an image"),
        ([user([{"type": "audio", "audio": b""}])], ValueError, "type 'audio'"),
        ([user([{"type": "image"}])], ValueError, "accepted: an image under"),
        ([user([{"type": "image", "path": "nowhere.png"}])], FileNotFoundError, "nowhere.png"),
        ([user([{"type": "image", "url": "https://example.org/cat.png"}])], ValueError, "nothing is fetched"),
        ([user([7])], TypeError, "accepted: a PIL image|picture"),
    ],
)
def test_what_is_no_message_is_refused(messages, error, match) -> None:
    with pytest.raises(error, match=match):
        turns_of(messages)
