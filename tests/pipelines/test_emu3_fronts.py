"""Emu3's and Emu3.5's fronts write the prompts that the published templates spell, and load from published folders."""

from dataclasses import replace

import pytest
from PIL import Image

from mmblocks import BatchBuilder
from mmblocks.models.emu3.prompts import EMU3_UNDERSTANDING, EMU35_UNCONDITIONAL, emu35_template
from mmblocks.prompts import turns_of
from mmblocks.vocabulary.spelling import Structure, encode_parts
from tests.shared.tiny_pipelines import EMU3_FORM, EMU35_FORM, STEP, TOKENIZER, image_tokenizer, pipeline

PICTURE = Image.new("RGB", (10, 6), (200, 30, 0))
QUESTION = "what is <|image end|> this"


def ids_of(sample) -> list[int]:
    return BatchBuilder(tokenizer=TOKENIZER, heads=("text",))([sample]).ids[0].tolist()


def grid_ids(form) -> list[int]:
    tokenizer = image_tokenizer()
    return form.write(tokenizer.encode(tokenizer.preprocess(PICTURE)[None]).ids[0]).ids.tolist()


def filled(template: str, question: str, image: list[int]) -> list[int]:
    """A published template as ids, its holes filled by hand."""
    found: list[int] = []
    for index, part in enumerate(template.split("<|IMAGE|>")):
        before, hole, after = part.partition("{question}")
        parts = [Structure(before), question if hole else "", Structure(after)]
        found += (image if index else []) + [i for ids in encode_parts(TOKENIZER, parts) for i in ids]
    return found


def test_chat_is_the_published_template() -> None:
    pipe = pipeline("chat")
    request = pipe.front.chat(pipe.components, turns_of([{"role": "user", "content": [QUESTION, PICTURE]}]))
    assert ids_of(request.prompt) == filled(EMU3_UNDERSTANDING, QUESTION, grid_ids(EMU3_FORM))


def test_generation_is_the_published_prompt() -> None:
    pipe = pipeline("gen")
    request = pipe.front.generate_image(pipe.components, "a cat", size=(8, 12), negative_prompt=None)
    head = EMU3_FORM.head(8 // STEP, 12 // STEP)
    wanted = [filled("<|extra_203|>{question}", words, []) + head for words in ("a cat" + pipe.front.quality, pipe.front.negative)]
    assert [ids_of(request.prompt), ids_of(request.unconditional[0])] == wanted
    assert request.options.guidance == 3.0
    assert request.options.sampling.top_k == 2048


@pytest.mark.parametrize(("task", "pictures"), [("t2i", []), ("x2i", [PICTURE]), ("howto", [PICTURE])])
def test_tasks_of_emu35_are_the_published_templates(task, pictures) -> None:
    pipe = pipeline("3.5")
    front = replace(pipe.front, task=task)
    if task == "t2i":
        request = front.generate_image(pipe.components, QUESTION, size=None, negative_prompt=None)
    elif task == "x2i":
        request = front.edit(pipe.components, pictures, QUESTION, size=None)
    else:
        request = front.chat(pipe.components, turns_of([{"role": "user", "content": [QUESTION, *pictures]}]))
    image = grid_ids(EMU35_FORM) if pictures else []
    assert ids_of(request.prompt) == filled(emu35_template(task), QUESTION, image)
    assert ids_of(request.unconditional[0]) == filled(EMU35_UNCONDITIONAL, "", image)


def test_training_is_the_format_of_generation() -> None:
    pipe = pipeline("gen")
    messages = [{"role": "user", "content": "a cat"}, {"role": "assistant", "content": [PICTURE]}]
    (sample,) = pipe.training_samples([messages])
    assert ids_of(sample) == filled("<|extra_203|>{question}", "a cat", []) + grid_ids(EMU3_FORM)
    batch = pipe.components.model.batch_builder(TOKENIZER)([sample])
    assert len(batch.targets["text"].values) == 15  # the codes alone
    assert pipe.components.model(batch).losses["text"].isfinite()
    with pytest.raises(ValueError, match="the assistant's picture"):
        pipe.training_samples([[*messages[:1], {"role": "assistant", "content": "a cat"}]])
