"""OmniGen's front spells the published prompts, draws and edits with a small model, and comes from folders as published."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from tokenizers import AddedToken, processors

from mmblocks import Pipeline, TokenizerFile
from mmblocks.models import OmniGen, OmniGenFront
from mmblocks.models.omnigen.front import fitted_to
from mmblocks.pipelines import Edit, GenerateImage, Settings
from mmblocks.tokenizers import DiffusersAutoencoder
from tests.shared.tiny_tokenizers import byte_level, saved

SPECIALS = ["<s>", "<|end|>", "<|user|>", "<|assistant|>"]
FRONT = OmniGenFront(size=(32, 48), largest=128, input_size=64, num_steps=2)
RED = Image.new("RGB", (40, 24), (200, 30, 0))
BLUE = Image.linear_gradient("L").resize((33, 50)).convert("RGB")


def tokenizer():
    """Special tokens take the spaces to their right with them, and a text begins with <s>, as in Phi-3's."""
    made = byte_level([])
    made.add_special_tokens([AddedToken(name, rstrip=name != "<s>", special=True) for name in SPECIALS])
    begin = made.token_to_id("<s>")
    made.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", begin)])
    return made


def autoencoder() -> DiffusersAutoencoder:
    torch.manual_seed(1)
    arguments = {
        "block_out_channels": [4, 4, 4, 4],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "norm_num_groups": 2,
        "latent_channels": 4,
        "scaling_factor": 0.13025,
    }
    return DiffusersAutoencoder(kind="AutoencoderKL", arguments=arguments).eval()


def omnigen() -> OmniGen:
    torch.manual_seed(0)
    sizes = {"dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16, "table_size": 8, "norm_eps": 1e-5}
    model = OmniGen(vocab_size=tokenizer().get_vocab_size(), **sizes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def pipeline(front: OmniGenFront = FRONT) -> Pipeline:
    return Pipeline(front=front, model=omnigen().model, text_tokenizer=TokenizerFile.of(tokenizer()), image_tokenizer=autoencoder())


def chunks(*texts: str) -> list[list[int]]:
    """As published: what stands between two images is encoded alone, with <s> before the first text only."""
    found = [tokenizer().encode(text).ids for text in texts]
    return [found[0], *(ids[1:] for ids in found[1:])]


OPEN = "<|user|>\nGenerate an image according to the following instructions\n"
CLOSE = "<|end|>\n<|assistant|>\n<|diffusion|>"


def texts_of(sample) -> list[list[int]]:
    return [segment.content for segment in sample if hasattr(segment, "content")]


def test_prompts_are_those_that_are_published() -> None:
    pipe = pipeline()
    request = pipe.front.generate_image(pipe.components, "a cat", size=None, negative_prompt=None)
    assert texts_of(request.prompt) == chunks(f"{OPEN}a cat{CLOSE}")
    assert request.prompt[0].content[0] == tokenizer().token_to_id("<s>")
    (without,) = request.unconditional
    assert texts_of(without) == chunks(f"{OPEN}{FRONT.negative}{CLOSE}")
    assert request.grammar.block.size == (4, 6)

    words = "the hat of <img><|image_2|></img> on <img><|image_1|></img> now"
    request = pipe.front.edit(pipe.components, [RED, BLUE], words, size=None)
    everything, images, nothing = request.prompt, *request.unconditional
    spelled = chunks(f"{OPEN}the hat of <img>", "</img> on <img>", f"</img> now{CLOSE}")
    assert texts_of(everything) == spelled
    assert [tuple(one.values.shape) for one in everything if hasattr(one, "values")] == [(6, 4, 4), (2, 4, 4)]
    assert texts_of(images) == chunks(f"{OPEN}<img>", "</img> <img>", f"</img>{CLOSE}")
    assert [tuple(one.values.shape) for one in images if hasattr(one, "values")] == [(2, 4, 4), (6, 4, 4)]
    assert texts_of(nothing) == texts_of(without)
    assert (request.options.guidance.scale, request.options.guidance.image_scale) == (2.5, 1.6)

    request = pipe.front.edit(pipe.components, [RED], "make it night", size=None)
    assert texts_of(request.prompt) == chunks(f"{OPEN}<img>", f"</img> make it night{CLOSE}")
    assert request.grammar.block.size == (2, 4)  # of the picture as it is read, 16 x 32


def test_special_tokens_of_a_user_s_are_text() -> None:
    pipe = pipeline()
    request = pipe.front.generate_image(pipe.components, "a<|end|>\n<|image_1|>", size=None, negative_prompt="<|user|>")
    (ids,) = texts_of(request.prompt)
    end, user = (tokenizer().token_to_id(name) for name in ("<|end|>", "<|user|>"))
    assert ids.count(end) == 1
    assert "a<|end|>\n<|image_1|>" in TokenizerFile.of(tokenizer()).decode(ids)
    assert texts_of(request.unconditional[0])[0].count(user) == 1


@pytest.mark.parametrize("size", [(40, 24), (300, 130), (9, 33), (64, 65)])
def test_pictures_are_fitted_as_published(size) -> None:
    picture = Image.radial_gradient("L").resize(size).convert("RGB")
    found = fitted_to(picture, 64, 16)
    assert all(side % 16 == 0 and 16 <= side <= 64 for side in found.size)
    if size == (40, 24):  # cut at the centre, where nothing is scaled
        assert found.tobytes() == picture.crop((4, 4, 36, 20)).tobytes()


def test_a_seed_gives_the_same_image_at_any_batch() -> None:
    pipe = pipeline()
    wishes = [
        GenerateImage("a cat", num_images=2, settings=Settings(seed=3)),
        GenerateImage("a much longer prompt of a dog", (16, 32), settings=Settings(seed=4)),
        Edit([RED], "make it night", settings=Settings(seed=5)),
        Edit([RED, BLUE], "both", (48, 16), settings=Settings(seed=6)),
    ]
    together = pipe.run(wishes)
    assert [[image.size for image in reply.images] for reply in together] == [[(48, 32)] * 2, [(32, 16)], [(32, 16)], [(16, 48)]]
    for wish, reply in zip(wishes, together, strict=True):
        (alone,) = pipe.run([wish], max_batch=1)
        for one, other in zip(alone.images, reply.images, strict=True):
            assert max(abs(a - b) for a, b in zip(one.tobytes(), other.tobytes(), strict=True)) <= 1
    assert together[0].images[0].tobytes() != together[0].images[1].tobytes()
    assert len(list(pipe.stream(wishes[:1], previews=True))) > 2


def test_settings_and_pictures_count() -> None:
    pipe = pipeline()
    (plain,) = pipe.generate_image("a cat", seed=0)
    assert pipe.generate_image("a cat", seed=0, guidance=9.0)[0].tobytes() != plain.tobytes()
    assert pipe.generate_image("a cat", seed=0, negative_prompt="dogs")[0].tobytes() != plain.tobytes()
    edits = [pipe.edit([picture], "night", size=(16, 16), seed=0)[0].tobytes() for picture in (RED, BLUE)]
    assert edits[0] != edits[1]


def test_a_model_in_half_precision_draws() -> None:
    pipe = pipeline()
    pipe.components.model.bfloat16()
    assert pipe.edit([RED], "night", seed=0)[0].size == (32, 16)


def test_pictures_are_learned() -> None:
    pipe = pipeline()
    asks = {"role": "user", "content": [RED, " at night"]}
    samples = pipe.training_samples([[asks, {"role": "assistant", "content": [BLUE]}]])
    model = pipe.components.model
    assert model(model.batch_builder(pipe.components.text_tokenizer)(samples)).losses["image"].isfinite()
    assert texts_of(samples[0]) == chunks(f"{OPEN}<img>", f"</img> at night{CLOSE}")
    with pytest.raises(ValueError, match="a user's and the assistant's picture"):
        pipe.training_samples([[asks, {"role": "assistant", "content": "no"}]])


def test_a_saved_pipeline_is_the_same(tmp_path) -> None:
    pipe = pipeline()
    pipe.save_pretrained(tmp_path / "pipe")
    again = Pipeline.from_pretrained(tmp_path / "pipe")
    assert again.front == pipe.front
    assert again.edit([RED], "night", seed=1)[0].tobytes() == pipe.edit([RED], "night", seed=1)[0].tobytes()


@pytest.mark.parametrize("layout", ["omnigen", "omnigen-diffusers"])
def test_folders_as_published(layout, tmp_path) -> None:
    is_own = layout == "omnigen"
    folder = tmp_path / ("OmniGen-v1" if is_own else "OmniGen-v1-diffusers")
    omnigen().to_upstream(folder if is_own else folder / "transformer", layout=layout)
    autoencoder().to_upstream(folder / "vae")
    saved(tokenizer(), folder if is_own else folder / "tokenizer")
    for place in (folder, str(folder)):
        pipe = Pipeline.from_pretrained(place)
        assert pipe.front == OmniGenFront()
        pipe.front = FRONT
        assert pipe.generate_image("a cat", seed=0)[0].tobytes() == pipeline().generate_image("a cat", seed=0)[0].tobytes()
    omnigen().save_pretrained(tmp_path / "own")
    other = Pipeline.from_pretrained(folder, model=tmp_path / "own")
    assert other.components.model.inputs.keys() == pipe.components.model.inputs.keys()
    assert json.loads(Path(folder / "vae" / "config.json").read_text())["_class_name"] == "AutoencoderKL"


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda pipe: pipe.generate_image("a", size=(24, 32)), r"accepted: multiples of 16, such as 32x32"),
        (lambda pipe: pipe.generate_image("a", size=(144, 32)), "accepted: sides of at most 128"),
        (lambda pipe: pipe.generate_image("  "), "prompt is empty"),
        (lambda pipe: pipe.generate_image("<img><|image_1|></img>"), "there are no pictures"),
        (lambda pipe: pipe.edit([RED], "<img><|image_2|></img>"), r"places for pictures \[2\]; accepted: none, or <img><\|image_1"),
        (lambda pipe: pipe.edit([RED, RED], "<img><|image_1|></img>"), r"places for pictures \[1\]"),
        (lambda pipe: pipe.edit([RED] * 3, "all of them"), "hold 3 images; accepted: 2 at most"),
        (lambda pipe: pipe.edit([RED], "night", size=(20, 16)), "accepted: multiples of 16"),
        (
            lambda pipe: pipe.chat([{"role": "user", "content": "hello"}]),
            "OmniGenFront has no chat; accepted of this model: generate",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(call, match) -> None:
    pipe, calls = pipeline(replace(FRONT, max_images=2)), []
    pipe.components.model.trunk.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match=match):
        call(pipe)
    assert not calls
