"""Orthus's front spells the published prompts, answers with text and images, draws, and comes from one folder."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mmblocks import Generation, Pipeline, Sampling, TokenizerFile
from mmblocks.models import Orthus, OrthusFront
from mmblocks.models.orthus_front import ORTHUS_BASE_FRONT
from mmblocks.pipelines import Chat, GenerateImage, Settings
from mmblocks.prompts import turns_of
from mmblocks.sequence.segments import Text, Vectors
from mmblocks.tokenizers import ChameleonVQ
from tests.shared.tiny_tokenizers import byte_level, saved

NAMES = ["<s>", "</s>", "<racm3:break>", "<eoss>", "<turn>", "IMGIMGAZ", "IMGIMGBZ"]
TOKENIZER = TokenizerFile.of(byte_level(NAMES))
BEGIN, STOP, OPEN, CLOSE, TURN, CODE, LAST = (TOKENIZER[name] for name in NAMES)
FRONT = OrthusFront(
    begin=BEGIN,
    turn_end=TURN,
    image_begin=OPEN,
    image_end=CLOSE,
    stop=(STOP, TURN),
    never=(CODE, LAST + 1),
    image_size=(12, 12),
    grid=(6, 6),
    options=Generation(max_tokens=12, sampling=Sampling(temperature=0)),
)
TALKS = replace(FRONT, num_images=2, options=Generation(max_tokens=90, sampling=Sampling(temperature=2.0)))
RED, BLUE = Image.new("RGB", (40, 30), (200, 30, 0)), Image.new("RGB", (20, 50), (0, 30, 200))
ASKS = [{"role": "user", "content": [RED, "what is this?"]}]


def orthus() -> Orthus:
    torch.manual_seed(0)
    sizes = {"dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16, "num_codes": 8, "latent_dim": 4, "head_width": 8}
    model = Orthus(vocab_size=TOKENIZER.vocab_size, num_head_blocks=1, num_steps=2, **sizes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def tokenizer() -> ChameleonVQ:
    torch.manual_seed(1)
    sizes = {"channels": 32, "multipliers": (1, 1), "num_blocks": 1, "latent_channels": 16}
    return ChameleonVQ(num_codes=8, code_dim=4, image_size=12, **sizes).eval()


def pipeline(front: OrthusFront = FRONT) -> Pipeline:
    return Pipeline(front=front, model=orthus(), text_tokenizer=TOKENIZER, image_tokenizer=tokenizer())


def shape_of(sample) -> list[object]:
    """Ids as they stand, and "image" for each image."""
    found: list[object] = []
    for segment in sample:
        found += segment.content if isinstance(segment, Text) else ["image"]
    return found


def words(text: str) -> list[int]:
    return TOKENIZER.encode(text)


def test_prompts_are_those_that_are_published() -> None:
    pipe = pipeline()
    request = pipe.front.chat(pipe.components, turns_of(ASKS))
    assert shape_of(request.prompt) == [BEGIN, OPEN, "image", CLOSE, *words("what is this?"), TURN]
    (latents,) = (segment for segment in request.prompt if isinstance(segment, Vectors))
    image_tokenizer = pipe.components.image_tokenizer
    wanted = image_tokenizer.features(image_tokenizer.preprocess(RED)[None])[0]
    torch.testing.assert_close(latents.values, wanted)
    assert request.unconditional == () and request.grammar.num_images == 0
    drawn = pipe.front.generate_image(pipe.components, "a cat", size=None, negative_prompt=None)
    assert shape_of(drawn.prompt) == [BEGIN, *words("a cat"), TURN, OPEN]
    assert shape_of(drawn.unconditional[0]) == [BEGIN, *words("Generate an image."), TURN, OPEN]
    assert drawn.options.guidance == 5.0
    talks = pipeline(TALKS).front.chat(pipe.components, turns_of([{"role": "user", "content": "animals"}]))
    assert shape_of(talks.unconditional[0]) == [BEGIN, *words("generate images"), TURN]
    assert (talks.options.guidance.scale, talks.options.guidance.images_only) == (3.0, True)
    base, instruct = ORTHUS_BASE_FRONT, OrthusFront()
    assert (base.turn_end, base.image_begin, base.image_end, base.options.max_tokens) == (8710, 8197, 8196, 4096)
    assert instruct.options.max_tokens == 512 and instruct.num_images == 0


def test_special_tokens_of_a_user_s_are_text() -> None:
    pipe, said = pipeline(), "<racm3:break>IMGIMGAZ<eoss><turn>"
    prompt = pipe.front.generate_image(pipe.components, said, size=None, negative_prompt=None).prompt
    ids = shape_of(prompt)
    assert [ids.count(one) for one in (OPEN, CODE, CLOSE, TURN)] == [1, 0, 0, 1]
    assert said in TOKENIZER.decode(ids)


def test_text_holds_no_codes_and_answers_hold_images() -> None:
    request = pipeline().front.chat(pipeline().components, turns_of(ASKS))
    allowed = request.grammar.allowed(request.grammar.start())
    held = {i for first, stop in allowed for i in range(first, stop)}
    assert held == {*range(TOKENIZER.vocab_size)} - {OPEN, CLOSE, CODE, LAST}
    request = pipeline(TALKS).front.chat(pipeline().components, turns_of(ASKS))
    allowed = request.grammar.allowed(request.grammar.start())
    assert {i for first, stop in allowed for i in range(first, stop)} == held | {OPEN}
    pipe = pipeline(TALKS)
    with torch.no_grad():
        pipe.components.model.outputs["text"].weight[OPEN] = 0.5
    reply = next(reply for seed in range(20) if (reply := pipe.chat(ASKS, seed=seed)).images)
    assert reply.images[0].size == (12, 12)
    assert pipe.chat([*ASKS, reply.message, {"role": "user", "content": "more"}], seed=0, max_tokens=3).content is not None


def test_a_seed_gives_the_same_image_at_any_batch() -> None:
    pipe = pipeline()
    wishes = [
        GenerateImage("a cat", num_images=2, settings=Settings(seed=3)),
        GenerateImage("a much longer prompt", settings=Settings(seed=4)),
        Chat(ASKS, Settings(seed=5)),
    ]
    together = pipe.run(wishes)
    assert [[image.size for image in reply.images] for reply in together] == [[(12, 12)] * 2, [(12, 12)], []]
    for wish, reply in zip(wishes, together, strict=True):
        (alone,) = pipe.run([wish], max_batch=1)
        assert alone.text == reply.text
        for one, other in zip(alone.images, reply.images, strict=True):
            assert max(abs(a - b) for a, b in zip(one.tobytes(), other.tobytes(), strict=True)) <= 1
    assert together[0].images[0].tobytes() != together[0].images[1].tobytes()
    assert pipe.generate_image("a cat", seed=3, guidance=1.0)[0].tobytes() != together[0].images[0].tobytes()
    assert pipe.generate_image("a cat", seed=3, negative_prompt="dogs")[0].tobytes() != together[0].images[0].tobytes()


def test_text_and_images_are_learned() -> None:
    pipe = pipeline()
    answer = {"role": "assistant", "content": ["red", BLUE]}
    (sample,) = pipe.training_samples([[*ASKS, answer]])
    learned = [i for segment in sample if isinstance(segment, Text) and segment.target for i in segment.content]
    assert learned == [*words("red"), OPEN, CLOSE, TURN]
    losses = pipe.components.model(pipe.components.model.batch_builder(TOKENIZER)([sample])).losses
    assert losses["text"].isfinite() and losses["latents"].isfinite()
    with pytest.raises(ValueError, match="the last message is of the user"):
        pipe.training_samples([ASKS])


@pytest.mark.parametrize("front", [FRONT, TALKS], ids=["text", "images"])
def test_a_saved_pipeline_is_the_same(front, tmp_path) -> None:
    pipe = pipeline(front)
    pipe.save_pretrained(tmp_path / "pipe")
    again = Pipeline.from_pretrained(tmp_path / "pipe")
    assert again.front == pipe.front
    assert again.chat(ASKS, seed=0).text == pipe.chat(ASKS, seed=0).text
    assert again.generate_image("a", seed=0)[0].tobytes() == pipe.generate_image("a", seed=0)[0].tobytes()


@pytest.mark.parametrize("name", ["Orthus-7B-instruct", "Orthus-7B-base"])
def test_one_folder_as_published_holds_the_tokenizer_with_its_decoder(name, tmp_path) -> None:
    folder, other = tmp_path / name, tmp_path / "tokenizer"
    orthus().to_upstream(folder)
    tokenizer().to_upstream(other, layout="chameleon-whole-with-decoder")
    config, inner = (json.loads((place / "config.json").read_text()) for place in (folder, other))
    config["vq_config"] = {**inner["vq_config"], **config["vq_config"]}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(load_file(folder / "model.safetensors") | load_file(other / "model.safetensors"), folder / "model.safetensors")
    saved(byte_level(NAMES), folder)
    pipe = Pipeline.from_pretrained(folder)
    assert pipe.front == (OrthusFront() if name.endswith("instruct") else ORTHUS_BASE_FRONT)
    pipe.front = FRONT
    assert pipe.generate_image("a", seed=0)[0].tobytes() == pipeline().generate_image("a", seed=0)[0].tobytes()
    without = {key: value for key, value in load_file(other / "model.safetensors").items() if ".decoder." not in key}
    save_file(without, other / "model.safetensors")
    assert ChameleonVQ.from_pretrained(other).origin.layout == "chameleon-transformers-whole"


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda pipe: pipe.generate_image("a", size=(24, 12)), r"size is \(24, 12\); accepted of this model: \(12, 12\)"),
        (lambda pipe: pipe.generate_image(""), "prompt is empty"),
        (lambda pipe: pipe.chat([*ASKS, {"role": "assistant", "content": "a"}]), "the last message is of the assistant"),
        (lambda pipe: pipe.chat([{"role": "user", "content": [RED] * 3}]), "hold 3 images; accepted: 2 at most"),
        (lambda pipe: pipe.edit([RED], "night"), "OrthusFront has no edit; accepted of this model: chat, generate_image"),
    ],
)
def test_what_cannot_be_done_is_refused(call, match) -> None:
    pipe, calls = pipeline(replace(FRONT, max_images=2)), []
    pipe.components.model.trunk.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match=match):
        call(pipe)
    assert not calls


def test_an_image_tokenizer_of_another_grid_is_refused() -> None:
    pipe = pipeline(replace(FRONT, grid=(5, 5)))
    with pytest.raises(ValueError, match=r"makes \(6, 6\) latents of a picture; accepted: \(5, 5\)"):
        pipe.chat(ASKS)
