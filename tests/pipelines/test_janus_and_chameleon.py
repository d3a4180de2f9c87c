"""Janus's and Chameleon's fronts spell the published prompts, and answer, draw and train with small models."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from mmblocks import BatchBuilder, GridFormat, Pipeline, TokenizerFile
from mmblocks.models import Chameleon, ChameleonFront, Janus, JanusFront
from mmblocks.models.chameleon.prompts import CHAMELEON_PROMPT, LUMINA_MGPT_PROMPT
from mmblocks.models.janus.prompts import JANUS_PRO_PROMPT
from mmblocks.prompts import turns_of
from mmblocks.tokenizers import ConvVQ
from mmblocks.vocabulary import CodeIds, raster_format
from mmblocks.vocabulary.code_ids import chameleon_code_ids
from mmblocks.vocabulary.spelling import Structure, encode_parts
from tests.shared.tiny_tokenizers import byte_level

PICTURE = Image.new("RGB", (24, 16), (200, 30, 0))
ASKS = [{"role": "user", "content": ["what is this?", PICTURE]}]
SIZES = {"dim": 32, "num_layers": 1, "num_heads": 2, "mlp_dim": 32}

JANUS = replace(JANUS_PRO_PROMPT, format=raster_format(2, 3, 16), image_size=8)
JANUS_TOKENIZER = TokenizerFile.of(
    byte_level([JANUS.bos, JANUS.eos, JANUS.pad, JANUS.image_begin, JANUS.image_end, JANUS.user, JANUS.assistant])
)

NAMES = ["<s>", "</s>", "<begin>", "<end>", "<turn>", "<row>", "<2>", "<4>", "<6>"]
CODES = [f"IMGIMG{chr(65 + (7 * number + 3) % 10)}Z" for number in range(10)]
CHAMELEON_TOKENIZER = TokenizerFile.of(byte_level(NAMES + CODES))
IDS = {name: CHAMELEON_TOKENIZER[name] for name in NAMES}
FORM = GridFormat(begin=IDS["<begin>"], closing=(IDS["<end>"],), codes=CodeIds(sizes=(10,), first=0), fixed_size=(2, 4))
CHAMELEON = replace(
    CHAMELEON_PROMPT, format=FORM, stop=(IDS["</s>"],), bos=IDS["<s>"], turn_end=IDS["<turn>"], max_tokens=20
)  # fmt: skip
LUMINA = replace(
    CHAMELEON,
    text_to_image=LUMINA_MGPT_PROMPT.text_to_image,
    guidance=LUMINA_MGPT_PROMPT.guidance,
    format=replace(
        FORM, fixed_size=None, row_end=IDS["<row>"], last_row_end=True, sides=tuple((side, IDS[f"<{side}>"]) for side in (2, 4, 6))
    ),
)


def janus() -> Pipeline:
    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 16, "dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16}
    model = Janus(vocab_size=JANUS_TOKENIZER.vocab_size, num_codes=16, code_dim=4, vision=vision, **SIZES).eval()
    tokenizer = ConvVQ(channels=(8,), num_codes=16, code_dim=4).eval()
    return Pipeline(front=JanusFront(prompt=JANUS), model=model, text_tokenizer=JANUS_TOKENIZER, image_tokenizer=tokenizer)


def chameleon(prompt=CHAMELEON, **options) -> Pipeline:
    torch.manual_seed(0)
    model = Chameleon(vocab_size=CHAMELEON_TOKENIZER.vocab_size, **SIZES).eval()
    tokenizer = ConvVQ(channels=(8,), num_codes=10, code_dim=4).eval()
    front = ChameleonFront(prompt=prompt, size=(4, 8), step=2, **options)
    return Pipeline(front=front, model=model, text_tokenizer=CHAMELEON_TOKENIZER, image_tokenizer=tokenizer)


def ids_of(sample) -> list[int]:
    return [
        i
        for segment in sample
        if hasattr(segment, "content") and not isinstance(segment.content, Image.Image)
        for i in segment.content
    ]


def spelled(tokenizer, *parts) -> list[int]:
    return [i for ids in encode_parts(tokenizer, parts) for i in ids]


def test_janus_reads_and_draws_as_published() -> None:
    pipe = janus()
    request = pipe.front.chat(pipe.components, turns_of(ASKS))
    opened = f"{JANUS.bos}{JANUS.system}\n\n<|User|>: {JANUS.image_begin}"
    asked = spelled(JANUS_TOKENIZER, Structure(opened), None, Structure(JANUS.image_end + "\nwhat is this?\n\n<|Assistant|>:"))
    assert ids_of(request.prompt) == asked

    request = pipe.front.generate_image(pipe.components, "a cat", size=None, negative_prompt=None)
    words = Structure(f"{JANUS.bos}<|User|>: a cat\n\n<|Assistant|>:{JANUS.image_begin}")
    assert ids_of(request.prompt) == spelled(JANUS_TOKENIZER, words)
    pad = JANUS_TOKENIZER[JANUS.pad]
    without = ids_of(request.unconditional[0])
    assert set(without[1:-1]) == {pad}
    assert [without[0], without[-1]] == [request.prompt[0].content[0], request.prompt[0].content[-1]]


def test_janus_answers_draws_and_trains() -> None:
    pipe = janus()
    assert pipe.abilities == ("chat", "generate_image", "training_samples")
    assert isinstance(pipe.chat(ASKS, max_tokens=4).text, str)
    first, _ = pipe.generate_image("a cat", num_images=2, seed=0)
    assert first.size == (6, 4)
    assert pipe.generate_image("a cat", seed=0)[0].tobytes() == first.tobytes()
    samples = pipe.training_samples([[*ASKS, {"role": "assistant", "content": "red"}]])
    losses = pipe.components.model(pipe.components.model.batch_builder(JANUS_TOKENIZER)(samples)).losses
    assert losses["text"].isfinite()
    with pytest.raises(ValueError, match=r"accepted of this model: \(8, 8\)"):
        pipe.generate_image("a cat", size=(16, 16))
    with pytest.raises(ValueError, match="negative_prompt is given"):
        pipe.generate_image("a cat", negative_prompt="a dog")


def test_chameleon_s_codes_are_those_that_its_tokenizer_names() -> None:
    pipe = chameleon()
    request = pipe.front.chat(pipe.components, turns_of(ASKS))
    assert request.grammar.format.codes == chameleon_code_ids(CHAMELEON_TOKENIZER.vocabulary)
    text = CHAMELEON_TOKENIZER.encode("what is this?")
    form = request.grammar.format
    tokenizer = pipe.components.image_tokenizer
    grid = tokenizer.encode(tokenizer.preprocess(PICTURE)[None]).ids[0]
    wanted = [IDS["<s>"], *text, *replace(form, fixed_size=(8, 12)).write(grid).ids.tolist(), IDS["<turn>"]]
    flexible = chameleon(replace(CHAMELEON, format=replace(FORM, fixed_size=(8, 12))))
    found = flexible.front.chat(flexible.components, turns_of(ASKS)).prompt
    assert BatchBuilder(tokenizer=CHAMELEON_TOKENIZER)([found]).ids[0].tolist() == wanted


def test_chameleon_answers_and_draws() -> None:
    talks = [{"role": "user", "content": "hello"}]
    assert isinstance(chameleon().chat(talks, max_tokens=5, seed=0).text, str)
    (picture,) = chameleon().generate_image("a cat", seed=1)
    assert picture.size == (8, 4)
    reply = chameleon(num_images=1).chat(talks, max_tokens=60, seed=0)
    assert reply.content
    with pytest.raises(ValueError, match=r"accepted of this model: \(4, 8\)"):
        chameleon().generate_image("a cat", size=(4, 4))


def test_lumina_mgpt_draws_in_several_sizes() -> None:
    pipe = chameleon(LUMINA)
    assert [pipe.generate_image("a cat", size=size, seed=0)[0].size for size in ((4, 8), (12, 8))] == [(8, 4), (8, 12)]
    request = pipe.front.generate_image(pipe.components, "a {width} cat", size=(4, 8), negative_prompt=None)
    said = CHAMELEON_TOKENIZER.decode(ids_of(request.prompt))
    assert said == "Generate an image of 8x4 according to the following prompt:\na {width} cat"
    assert ids_of(request.unconditional[0]) == [IDS["<begin>"]]


def test_answers_are_learned_with_their_end() -> None:
    pipe = chameleon()
    (sample,) = pipe.training_samples([[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]])
    learned = [i for segment in sample if segment.target == "text" for i in segment.content]
    assert learned == [*CHAMELEON_TOKENIZER.encode("hello"), IDS["<turn>"]]
