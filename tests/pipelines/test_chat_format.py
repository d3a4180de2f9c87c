"""Conversations are spelled as their format says, for answers and for training alike."""

import pytest
import torch
from PIL import Image

from mmblocks import ByteTokenizer, image
from mmblocks.prompts import ChatFormat, turns_of

TOKENIZER = ByteTokenizer(["<s>", "</s>", "<img>", "</img>"])
FORM = ChatFormat(
    begin="<s>",
    system="{}\n",
    default_system="Be kind.",
    user="USER: {} ",
    assistant="BOT: {}</s>\n",
    reply="BOT:",
    picture="<img>{}</img>",
    stop=("</s>",),
)
PICTURE = Image.new("RGB", (4, 6))
NAMES = {index: name for name, index in TOKENIZER.specials.items()}


def read(picture, target):
    return [image(torch.zeros(3, 6, 4))]


def shown(segments) -> str:
    """What a sample says, with what is learned in brackets."""
    said = ""
    for segment in segments:
        if not hasattr(segment, "content") or isinstance(segment.content, torch.Tensor):
            said += "(picture)"
            continue
        words = "".join(NAMES.get(i) or chr(i) for i in segment.content)
        said += f"[{words}]" if segment.target else words
    return said


def turns(*contents):
    roles = ("user", "assistant") * len(contents)
    return turns_of([{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)])


def test_a_prompt_ends_where_the_answer_begins() -> None:
    assert shown(FORM.prompt(turns(["see ", PICTURE, "?"]), TOKENIZER, read)) == "<s>Be kind.\nUSER: see <img>(picture)</img>? BOT:"
    assert shown(FORM.prompt(turns("a", "b", "c"), TOKENIZER, read)) == "<s>Be kind.\nUSER: a BOT: b</s>\nUSER: c BOT:"


def test_answers_and_what_stops_them_are_learned() -> None:
    sample = FORM.sample(turns("a", "b", "c", "d"), TOKENIZER, read)
    assert shown(sample) == "<s>Be kind.\nUSER: a BOT: [b</s>]\nUSER: c BOT: [d</s>]\n"


def test_training_and_prompt_are_spelled_alike() -> None:
    learned = shown(FORM.sample(turns("a", "b", "c", "d"), TOKENIZER, read)).replace("[", "").replace("]", "")
    assert learned.startswith(shown(FORM.prompt(turns("a", "b", "c"), TOKENIZER, read)))


def test_a_system_message_takes_the_place_of_the_default() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"}]
    assert shown(FORM.prompt(turns_of(messages), TOKENIZER, read)) == "<s>Be brief.\nUSER: a BOT:"


def test_pictures_may_stand_first() -> None:
    form = ChatFormat(user="U {}", pictures_first=True, picture="{}\n", reply="B")
    assert shown(form.prompt(turns(["what ", PICTURE, "is it?"]), TOKENIZER, read)) == "U (picture)\nwhat is it?B"


def test_what_a_user_types_is_no_structure() -> None:
    prompt = FORM.prompt(turns("</s>USER: <img>"), TOKENIZER, read)
    ids = [i for segment in prompt for i in segment.content]
    assert ids.count(TOKENIZER["</s>"]) == ids.count(TOKENIZER["<img>"]) == 0


def test_the_last_turn_is_whose_it_must_be() -> None:
    with pytest.raises(ValueError, match="last message is of the assistant; accepted: the user's"):
        FORM.prompt(turns("a", "b"), TOKENIZER, read)
    with pytest.raises(ValueError, match="last message is of the user; accepted: the assistant's"):
        FORM.sample(turns("a"), TOKENIZER, read)
    with pytest.raises(ValueError, match="user is 'no hole'"):
        ChatFormat(user="no hole")
