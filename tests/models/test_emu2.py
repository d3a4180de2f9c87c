"""Emu2 as a whole: its files, frames, what is learned, what is written, and images. The numbers are compared in tests/parity."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmblocks import Generation, Sampling, TextGrammar, text, vectors
from mmblocks.models import Emu2, Emu2Gen
from mmblocks.models.emu2.format import EMU2, EMU2_CHAT
from mmblocks.models.emu2.images import EMU2_UNET, SDXL_VAE
from mmblocks.pixels.diffusion_decoder import EMU2_SCHEDULE
from mmblocks.sequence.segments import Image, Text
from tests.models.emu_family import (
    EMU2_SIZES,
    FORM2,
    check_written_back,
    emu2,
    images,
    layout_of,
    prompts,
    published,
    randomised,
    write,
)

UNET = {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [4, 8],
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "attention_head_dim": 2,
    "cross_attention_dim": 12,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 12 + 6 * 4,
}
VAE = {"kind": "AutoencoderKL", "arguments": {"block_out_channels": [4], "norm_num_groups": 2, "scaling_factor": 0.13}}
EULER = {"scheduler": "EulerDiscreteScheduler", "options": EMU2_SCHEDULE, "num_steps": 2}


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("emu2", "Emu2_pytorch_model.bf16.bin"),
        ("emu2-gen", "Emu2-Gen_pytorch_model.bf16.safetensors"),
        ("emu2-hub", "pytorch_model.bin"),
    ],
)
@pytest.mark.parametrize("with_config", [False, True])
def test_published_files_and_back(tmp_path, layout: str, name: str, with_config: bool) -> None:
    model = emu2()
    own = {key: value.bfloat16() if "bf16" in name else value for key, value in published(model, layout).items()}
    others = {"unet.conv_in.weight": torch.zeros(2), "vae.x": torch.zeros(1)} if layout == "emu2-gen" else {}
    write({**own, **others}, tmp_path / "first" / name)
    if with_config:
        model.to_upstream(tmp_path / "other", layout=layout)
        (tmp_path / "first" / "config.json").write_text((tmp_path / "other" / "config.json").read_text())
    again = Emu2.from_pretrained(tmp_path / "first", **({} if with_config else EMU2_SIZES))

    assert again.origin is not None and again.origin.layout == layout
    assert (again.config["num_tokens"], again.config["frame_tokens"], again.config["norm_eps"]) == (4, 1, 1e-4)
    check_written_back(again, own, tmp_path / "back")
    assert again.inputs["vision"].connector is again.inputs["embeddings"] is again.inputs["frame"].connector


def test_the_hubs_config_is_read_whole(tmp_path) -> None:
    layout = layout_of(Emu2, "emu2-hub")
    model = emu2(num_tokens=16)
    model.to_upstream(tmp_path, layout="emu2-hub")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["EmuForCausalLM"] and config["hidden_size"] == 16
    assert config["vision_config"]["n_query"] == 16 and config["vision_config"]["v_query"] == 1
    more = {"model_version": "chat", "auto_map": {"AutoConfig": "x"}, "pretraining_tp": 1, "bos_token_id": 1}
    assert layout.arguments({**config, **more})["num_tokens"] == 16
    for entry, value in (("d_model", 13), ("rope_scaling", {"type": "odd"}), ("an_entry_of_tomorrow", 1)):
        with pytest.raises((ValueError, KeyError)):
            layout.arguments({**config, entry: value})


def test_it_saves_and_loads(tmp_path) -> None:
    model = emu2()
    model.save_pretrained(tmp_path)
    again = Emu2.from_pretrained(tmp_path)
    assert again.inputs["vision"].connector is again.inputs["embeddings"]
    batch = model.batch_builder()(prompts(FORM2))
    assert torch.equal(again.hidden(batch), model.hidden(batch))


def test_frames_have_tokens_of_their_own_number() -> None:
    model, frames = emu2(), images(3)
    prompt = FORM2.write(["", frames, frames[0]])
    kinds = [segment.input if isinstance(segment, Image) else list(segment.content) for segment in prompt]
    assert kinds == [[1], [5], *([3], "frame", [4]) * 3, [3], "vision", [4]]
    batch = model.batch_builder()([prompt])
    assert batch.ids.shape[1] == 2 + 3 * (1 + 2) + (4 + 2)
    pooled = model.latents.features(frames, num_tokens=1).flatten(1, 2)
    embeds = model.embed(batch)
    torch.testing.assert_close(embeds[0, 3], model.inputs["embeddings"](pooled[0])[0])
    torch.testing.assert_close(embeds[0, 9], model.inputs["embeddings"](pooled[2])[0])
    assert model(batch).token_losses["embeddings"].shape == (4,)  # frames are read and not learned


def test_images_are_learned_as_the_features_that_the_tower_gives() -> None:
    model, (one, two) = emu2(), images(2)
    samples = [[*FORM2.write([one]), text([9], target="text")], FORM2.write([two])]
    told = model.latents.features(images(2))
    read = [
        [text([1, 3]), vectors(told[0], input="embeddings", target="embeddings"), text([4]), text([9], target="text")],
        [text([1, 3]), vectors(told[1], input="embeddings", target="embeddings"), text([4])],
    ]
    ours, wanted = (model(model.batch_builder()(rows)) for rows in (samples, read))
    assert ours.losses.keys() == wanted.losses.keys() == {"text", "embeddings"}
    for name, values in wanted.token_losses.items():
        torch.testing.assert_close(ours.token_losses[name], values)
    ours.losses["embeddings"].backward()
    assert model.latents.encoder.vit.blocks[0].attn.proj.weight.grad.abs().sum() > 0  # as long as nobody freezes it


@torch.no_grad()
def written_anew(model: Emu2, prompt: list[Any], count: int) -> torch.Tensor:
    """The authors' way: the whole row is read again for each embedding."""
    found = torch.zeros(0, 12)
    for _ in range(count):
        row = [*prompt, text([3]), *([vectors(found, input="embeddings")] if len(found) else [])]
        hidden = model.hidden(model.batch_builder()([row], learn=False))
        found = torch.cat([found, model.outputs["embeddings"].sample(hidden[0, -1:])])
    return found


def test_embeddings_written_on_a_cache_are_those_of_rows_read_anew() -> None:
    model = emu2()
    made = model.embeddings(prompts(FORM2), FORM2)
    assert made.shape == (3, 4, 12)
    for row, prompt in enumerate(prompts(FORM2)):
        torch.testing.assert_close(made[row], written_anew(model, prompt, 4), atol=1e-5, rtol=1e-5)


def test_text_is_written_after_a_video() -> None:
    model = emu2()
    ((_, segment),) = model.generate(
        [FORM2.write([images(2)])], TextGrammar(24), Generation(max_tokens=3, sampling=Sampling(top_k=1))
    )
    hidden = model.hidden(model.batch_builder()([[*FORM2.write([images(2)]), text(segment.content)]], learn=False))
    assert model.outputs["text"].logits(hidden[0, -4:-1]).argmax(-1).tolist() == list(segment.content)


def test_prompts_of_emu2_chat() -> None:
    chat = EMU2_CHAT.chat([["hi"], ["hello"], [images()[0], "what?"]])
    contents = [segment.content if isinstance(segment, Text) else "pixels" for segment in chat]
    assert contents[:2] == [[1], f"{EMU2_CHAT.system['']} "]
    assert contents[2:8] == [[32272], ": hi ", [32273], ": hello", [2], [32272]]
    assert contents[8:] == [": ", [32001], "pixels", [32002], "what? ", [32273], ":"]
    ids = EMU2.ids
    assert [ids[name] for name in ("<s>", "[PAD]", "[gIMG]", "[VIDEO]", "<REC>", "<patch_index_0000>", "<patch_index_0256>")] == [
        *(1, 32000, 32004, 32007, 32014, 32015, 32271)
    ]


@pytest.fixture(scope="module")
def painter() -> Emu2Gen:
    made: Emu2Gen = randomised(
        Emu2Gen(model=EMU2_SIZES, decoder={"unet": {"arguments": UNET}, "autoencoder": VAE, "sampler": EULER})
    )
    return made


def noise(count: int = 1) -> torch.Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(2))


def test_images_are_guided_by_the_embeddings_of_an_empty_prompt(painter: Emu2Gen) -> None:
    rows = prompts(FORM2)[:1] + prompts(FORM2)[2:]
    made = painter(rows, FORM2, noise=noise(2))
    conditions, nothing = painter.model.embeddings(rows, FORM2), painter.model.embeddings([[text([1])]], FORM2)
    wanted = painter.decoder(conditions, nothing.expand(2, -1, -1), size=(8, 8), guidance=3.0, noise=noise(2))
    torch.testing.assert_close(made, wanted, atol=1e-4, rtol=1e-4)
    plain = painter(rows, FORM2, guidance=1, noise=noise(2))
    torch.testing.assert_close(plain, painter.decoder(conditions, guidance=1, size=(8, 8), noise=noise(2)), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(plain, made, atol=1e-3)


def test_autoencoding_is_guided_by_an_image_that_is_zero_once_normalised(painter: Emu2Gen) -> None:
    made = painter.autoencode(images(2), size=(8, 8), noise=noise(2))
    latents = painter.model.latents
    with torch.no_grad():
        nothing = latents.pool(latents.encoder(torch.zeros(1, 3, 28, 28))).flatten(1, 2)
        conditions = latents.features(images(2)).flatten(1, 2)
    wanted = painter.decoder(conditions, nothing.expand(2, -1, -1), size=(8, 8), guidance=3.0, noise=noise(2))
    torch.testing.assert_close(made, wanted, atol=1e-5, rtol=1e-5)
    plain = painter.autoencode(images(2), size=(8, 8), guidance=1, noise=noise(2))
    torch.testing.assert_close(plain, painter.decoder(conditions, guidance=1, size=(8, 8), noise=noise(2)))


def test_the_hubs_folder_and_the_authors_file(tmp_path, painter: Emu2Gen) -> None:
    painter.to_diffusers(tmp_path / "hub")
    assert {file.name for file in (tmp_path / "hub").iterdir()} == {"multimodal_encoder", "unet", "vae", "scheduler"}
    one = Emu2Gen.from_diffusers(tmp_path / "hub", num_steps=2)

    tensors = {**published(painter, "emu2-gen"), "safety_checker.x": torch.zeros(1)}
    write(tensors, tmp_path / "native" / "Emu2-Gen_pytorch_model.bf16.safetensors")
    painter.to_upstream(tmp_path / "config")
    config = json.loads((tmp_path / "config" / "config.json").read_text())
    assert {*config} == {"multimodal_encoder", "unet", "vae", "scheduler"}
    (tmp_path / "native" / "config.json").write_text(json.dumps(config))
    two = Emu2Gen.from_pretrained(tmp_path / "native")
    two.decoder.sampler = painter.decoder.sampler
    tensors.pop("safety_checker.x")
    check_written_back(two, tensors, tmp_path / "back")

    two.save_pretrained(tmp_path / "ours")
    three = Emu2Gen.from_pretrained(tmp_path / "ours")
    three.decoder.sampler = painter.decoder.sampler
    wanted = painter(prompts(FORM2)[:1], FORM2, noise=noise())
    for other in (one, two, three):
        assert torch.equal(other(prompts(FORM2)[:1], FORM2, noise=noise()), wanted)


def test_a_decoder_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="conditions of width 12; accepted: that of the embeddings, 20"):
        Emu2Gen(
            model={**EMU2_SIZES, "vision": {**EMU2_SIZES["vision"], "dim": 20}},
            decoder={"unet": {"arguments": UNET}, "autoencoder": VAE, "sampler": EULER},
        )


def manifest(request: pytest.FixtureRequest, name: str) -> dict[str, Any]:
    golden = request.config.option.golden
    if golden is None:
        pytest.skip("no golden data: give --golden DIR or set MMBLOCKS_GOLDEN")
    found: dict[str, Any] = json.loads(gzip.decompress((Path(golden) / "manifests" / f"{name}.json.gz").read_bytes()))
    return found


def test_the_published_emu2_gen_has_a_place_for_every_tensor(request) -> None:
    parts = {"multimodal_encoder.": "emu2_native", "unet.": "emu2_gen_unet", "vae.": "emu2_gen_vae"}
    found = {prefix: manifest(request, name) for prefix, name in parts.items()}
    shapes = {f"{prefix}{key}": tuple(shape) for prefix, one in found.items() for key, (shape, _) in one["state"].items()}
    layout = layout_of(Emu2Gen, "emu2-gen")
    scheduler = {"_class_name": "EulerDiscreteScheduler", **EMU2_SCHEDULE}
    config = {**{prefix[:-1]: one["config"] for prefix, one in found.items()}, "scheduler": scheduler}
    with torch.device("meta"):
        usual, read = Emu2Gen(), Emu2Gen(**layout.arguments(config))
    for model in (usual, read):
        assert not layout.check(shapes, model), str(layout.check(shapes, model))
        assert not layout.check_back(shapes, model), str(layout.check_back(shapes, model))
    unet, vae = found["unet."]["config"], found["vae."]["config"]
    assert {name: unet[name] for name in EMU2_UNET} == EMU2_UNET and {name: vae[name] for name in SDXL_VAE} == SDXL_VAE
    ours, theirs = (dict(model.decoder.unet.model.config) for model in (usual, read))
    unlike = {name for name, value in ours.items() if name[0] != "_" and (theirs[name] or None) != (value or None)}
    assert not unlike  # "upcast_attention" is None there and False here


def test_the_formats_sizes_are_the_models() -> None:
    with torch.device("meta"):
        usual, chat = Emu2(num_layers=1), Emu2(num_layers=1, vocab_size=32274, num_tokens=EMU2_CHAT.image_tokens)
    assert usual.image_grid == (8, 8) and chat.image_grid == (16, 16) and EMU2.image_tokens == 64
    assert usual.latents.image_size == EMU2.image_size and usual.outputs["text"].vocab_size == max(EMU2.ids.values()) + 1
    assert chat.outputs["text"].vocab_size == max(EMU2_CHAT.ids.values()) + 1
    assert replace(EMU2, ids={}).guidance == 3.0
