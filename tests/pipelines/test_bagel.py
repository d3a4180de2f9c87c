"""BAGEL's front spells the published contexts, answers, draws, edits and trains, from a folder as it is published."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mmblocks import Decoder, LMHead, MultimodalModel, Pipeline, TextEmbedding, TokenizerFile
from mmblocks.layers.images.resizing import fit_edges, rgb_on_white
from mmblocks.models import Bagel, BagelFront, BagelPrompt
from mmblocks.models.bagel.model import LATENTS
from mmblocks.pipelines import Chat, Edit, GenerateImage, Settings
from mmblocks.pipelines.known import KNOWN
from mmblocks.prompts import turns_of
from mmblocks.sequence.segments import Image as ImageSegment
from mmblocks.sequence.segments import Text, Vectors
from mmblocks.tokenizers import FluxAutoencoder
from mmblocks.vocabulary.spelling import Structure, encode_parts
from tests.shared.tiny_tokenizers import byte_level, saved

OWN = BagelPrompt()
NAMES = [OWN.start, OWN.stop, OWN.image_begin, OWN.image_end]
TOKENIZER = TokenizerFile.of(byte_level(NAMES))
MARKERS = TOKENIZER[OWN.image_begin], TOKENIZER[OWN.image_end]
TINY = BagelPrompt(max_tokens=6, max_thoughts=4, num_steps=2, image_size=(32, 48), min_side=32, max_side=64, max_pixels=48 * 64)
VISION = {"image_size": 56, "patch_size": 14, "dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16}
SIZES = {"dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16, "latent_channels": 2, "latent_side": 4}
AUTOENCODER = {"block_out_channels": [8, 8, 16, 16], "norm_num_groups": 4, "layers_per_block": 1, "latent_channels": 2}
PICTURE = Image.new("RGB", (40, 24), (200, 30, 0))
ASKS = [{"role": "user", "content": ["what is this?", PICTURE, "and here<|im_end|>?"]}]


def model() -> Bagel:
    torch.manual_seed(0)
    made = Bagel(vocab_size=TOKENIZER.vocab_size, markers=MARKERS, vision=VISION, **SIZES).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made


def autoencoder() -> FluxAutoencoder:
    torch.manual_seed(1)
    return FluxAutoencoder(arguments=AUTOENCODER).eval()


def pipeline(**options) -> Pipeline:
    front = BagelFront(prompt=TINY, **options)
    return Pipeline(front=front, model=model(), text_tokenizer=TOKENIZER, image_tokenizer=autoencoder())


def item(words: str) -> list[int]:
    return [i for ids in encode_parts(TOKENIZER, [Structure(OWN.start), words, Structure(OWN.stop)]) for i in ids]


START = TOKENIZER[OWN.start]


def spelled(sample) -> list[object]:
    """Ids; "latents" and "seen" in the place of images."""
    found: list[object] = []
    for segment in sample:
        if isinstance(segment, Text):
            found.append(list(segment.content))
        else:
            found.append("latents" if isinstance(segment, Vectors) else "seen")
            assert isinstance(segment, Vectors | ImageSegment)
    return found


def test_texts_are_items_of_their_own_and_typed_specials_are_text() -> None:
    pipe = pipeline()
    asked = spelled(pipe.front.chat(pipe.components, turns_of(ASKS)).prompt)
    assert asked == [item("what is this?"), "seen", item("and here<|im_end|>?"), [START]]
    assert asked[2].count(TOKENIZER[OWN.stop]) == 1
    told = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    request = pipe.front.chat(pipe.components, turns_of([*told, *ASKS]))
    assert spelled(request.prompt)[:3] == [item("be brief"), item("hi"), item("yes")]
    assert request.options.guidance is None


@pytest.mark.parametrize("think", [False, True])
def test_the_contexts_of_all_streams(think) -> None:
    pipe = pipeline(think=think)
    told = [item(OWN.thinking_images)] if think else []
    opened = [[START]] if think else []
    request = pipe.front.generate_image(pipe.components, "a cat", size=None, negative_prompt=None)
    assert spelled(request.prompt) == [*told, item("a cat"), *opened]
    assert [spelled(one) for one in request.unconditional] == [told]
    request = pipe.front.edit(pipe.components, [PICTURE, PICTURE], "bluer", size=None)
    seen = ["latents", "seen"] * 2
    assert spelled(request.prompt) == [*told, *seen, item("bluer"), *opened]
    assert [spelled(one) for one in request.unconditional] == [[*told, *seen], [*told, item("bluer")]]
    asked = spelled(pipe.front.chat(pipe.components, turns_of(ASKS)).prompt)
    assert (asked[0] == item(OWN.thinking_answers)) is think


def test_published_settings() -> None:
    own = BagelPrompt()
    image, edit = own.image_guidance, own.edit_guidance
    assert (image.scale, image.image_scale, image.interval, image.renorm, image.renorm_min) == (4.0, None, (0.4, 1.0), "global", 0)
    assert (edit.scale, edit.image_scale, edit.interval, edit.renorm, edit.renorm_min) == (4.0, 2.0, (0.0, 1.0), "text_channel", 0)
    assert own.thinking_images.startswith(
        "You should first think about the planning process in the mind and then generate the image. \n"
    )
    assert KNOWN["bagel"].ids == ("ByteDance-Seed/BAGEL-7B-MoT",)


def test_it_answers_draws_edits_and_trains() -> None:
    pipe = pipeline()
    assert pipe.abilities == ("chat", "generate_image", "edit", "training_samples")
    assert isinstance(pipe.chat(ASKS, seed=0).text, str)
    first, second = pipe.generate_image("a cat", num_images=2, seed=0)
    assert first.size == (48, 32)
    assert first.tobytes() != second.tobytes()
    assert pipe.generate_image("a cat", seed=0)[0].tobytes() == first.tobytes()
    assert pipe.generate_image("a cat", size=(16, 64))[0].size == (64, 16)
    (edited,) = pipe.edit([PICTURE], "bluer", seed=0)
    assert edited.size == pipe.front.resized(PICTURE).size == (48, 32)
    assert pipe.edit([PICTURE], "bluer", seed=0, size=(16, 16))[0].size == (16, 16)
    for size in ((16, 80), (16, 20)):
        with pytest.raises(ValueError, match="multiples of 16, up to 64"):
            pipe.generate_image("a cat", size=size)
    with pytest.raises(ValueError, match="negative_prompt is given"):
        pipe.generate_image("a cat", negative_prompt="a dog")


def test_requests_of_one_kind_are_one_batch_and_as_if_alone() -> None:
    pipe = pipeline()
    wishes = [GenerateImage("a cat", settings=Settings(seed=3)), Chat(ASKS, Settings(seed=3)), Edit([PICTURE], "bluer")]
    wishes += [GenerateImage("a black cat", size=(16, 16), settings=Settings(seed=3))]
    replies = pipe.run(wishes)
    alone = pipe.generate_image("a cat", seed=3)[0]
    difference = torch.frombuffer(bytearray(alone.tobytes()), dtype=torch.uint8).int()
    difference = difference - torch.frombuffer(bytearray(replies[0].images[0].tobytes()), dtype=torch.uint8).int()
    assert difference.abs().max() <= 1
    assert [len(reply.images) for reply in replies] == [1, 0, 1, 1]
    previews = [event for event in pipe.stream([wishes[0]], previews=True) if event.step is not None]
    assert [event.step for event in previews] == [0, 1]


def test_it_thinks_before_it_draws() -> None:
    pipe = pipeline(think=True)
    (reply,) = pipe.run([GenerateImage("a cat", settings=Settings(seed=0))])
    assert [type(piece) for piece in reply.content] == [str, Image.Image]
    assert OWN.stop not in reply.text
    (reply,) = pipe.run([Edit([PICTURE], "bluer", settings=Settings(seed=0))])
    assert reply.images[0].size == (48, 32)


def test_samples_for_training() -> None:
    pipe = pipeline()
    builder = pipe.components.model.batch_builder(TOKENIZER)
    drawn = [{"role": "user", "content": [PICTURE, "bluer"]}, {"role": "assistant", "content": [PICTURE, "done"]}]
    (talk, edit) = pipe.training_samples([[*ASKS, {"role": "assistant", "content": "red"}], drawn])
    assert spelled(talk)[1] == "seen"
    assert spelled(talk)[-2:] == [[START], item("red")[1:]]
    assert spelled(edit) == ["latents", "seen", item("bluer"), "latents", "seen", [START], item("done")[1:]]
    batch = builder([edit])
    assert batch.spans["image"].num_spans == 1  # what is only read is not learned
    assert batch.copies["image"].num_spans == 2
    assert (batch.table.modality == LATENTS).sum() == 3 * 6
    losses = pipe.components.model(builder([talk, edit])).losses
    assert sorted(losses) == ["image", "text"]
    assert all(loss.isfinite() for loss in losses.values())


def test_a_published_folder_and_a_saved_pipeline(tmp_path: Path) -> None:
    folder = saved(byte_level(NAMES), tmp_path / "BAGEL-7B-MoT")
    model().to_upstream(folder)
    autoencoder().to_upstream(tmp_path / "ae")
    written = load_file(tmp_path / "ae" / "ae.safetensors")
    assert {"encoder.down.3.block.0.conv1.weight", "decoder.up.3.upsample.conv.weight", "decoder.mid.attn_1.q.weight"} <= {*written}
    assert written["decoder.mid.attn_1.q.weight"].shape == (16, 16, 1, 1)
    save_file(written, folder / "ae.safetensors")
    (folder / "config.json").write_text('{"model_type": "bagel"}')  # other code's, whatever it says
    read = FluxAutoencoder.from_pretrained(folder, arguments=AUTOENCODER)
    pixels = torch.rand(1, 3, 16, 24)
    assert torch.equal(read.encode(pixels).z, autoencoder().encode(pixels).z)
    pipe = Pipeline.from_pretrained(folder, image_tokenizer=read)
    assert pipe.front == BagelFront()
    pipe.front = BagelFront(prompt=TINY)
    (wanted,) = pipe.generate_image("a cat", seed=0)
    assert wanted.tobytes() == pipeline().generate_image("a cat", seed=0)[0].tobytes()
    pipe.save_pretrained(tmp_path / "mine")
    again = Pipeline.from_pretrained(tmp_path / "mine")
    assert again.front == pipe.front
    assert again.generate_image("a cat", seed=0)[0].tobytes() == wanted.tobytes()


def test_latents_may_be_a_draw() -> None:
    mean, drawn = pipeline(), pipeline(sample_latents=True)
    first, second = (pipe.front.edit(pipe.components, [PICTURE], "x", size=None).prompt[0].values for pipe in (mean, drawn))
    assert first.shape == second.shape == (4, 6, 2)
    assert (first - second).abs().max() > 1e-3


def test_what_is_refused() -> None:
    pipe = pipeline()
    pipe.components.model.outputs["image"].markers.ids = (1, 2)
    with pytest.raises(ValueError, match=r"and \(1, 2\) in the model; accepted: the same, Bagel\(markers=...\)"):
        pipe.chat(ASKS)
    other = MultimodalModel(
        inputs={"text": TextEmbedding(vocab_size=300, dim=8)},
        trunk=Decoder(dim=8, num_layers=1, num_heads=2, mlp_dim=8),
        outputs={"text": LMHead(dim=8, vocab_size=300)},
    )
    with pytest.raises(TypeError, match="head of images is a NoneType; accepted: FramedDenoisingHead"):
        Pipeline(front=BagelFront(), model=other, text_tokenizer=TOKENIZER).chat(ASKS)


LATENT_SIZES = {"multiple": 16, "min_side": 512, "max_side": 1024, "max_pixels": 14 * 14 * 9 * 1024}
SEEN_SIZES = {"multiple": 14, "min_side": 224, "max_side": 980, "max_pixels": 14 * 14 * 9 * 1024}


@pytest.mark.parametrize(
    ("size", "latents", "seen"),
    [
        ((1024, 1024), (1024, 1024), (980, 980)),
        ((3000, 2000), (1024, 688), (980, 658)),  # 682.67 is 42.69 steps
        ((300, 301), (512, 512), (294, 308)),  # the shorter side is enlarged
        ((600, 1000), (608, 992), (588, 980)),  # 37.5 and 62.5 steps are rounded to the even
        ((100, 1000), (96, 1024), (98, 980)),  # first 512 x 5120, then too many pixels, then too long
    ],
)
def test_sizes_of_the_published_transforms(size, latents, seen) -> None:
    assert fit_edges(*size, **LATENT_SIZES) == latents
    assert fit_edges(*size, **SEEN_SIZES) == seen


def test_transparent_pictures_are_pasted_on_white() -> None:
    picture = Image.new("RGBA", (2, 1), (255, 0, 0, 128))
    picture.putpixel((1, 0), (0, 0, 0, 0))
    found = rgb_on_white(picture)
    assert [found.getpixel((0, 0)), found.getpixel((1, 0))] == [(255, 127, 127), (255, 255, 255)]
