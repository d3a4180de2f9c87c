"""Emu as a whole: its files, what is learned, what is written, and images. The numbers are compared in tests/parity."""

import json

import pytest
import torch
from PIL import Image
from torch import Tensor

from mmblocks import Generation, LMHead, Sampling, TextGrammar, text, vectors
from mmblocks.checkpoints import attach_lora
from mmblocks.generation.choosing import Scores
from mmblocks.layers import DiffusersSampler
from mmblocks.models import Emu, EmuGen
from mmblocks.models.emu.format import EMU_INSTRUCT
from mmblocks.models.emu.layout import T5_WORDS
from mmblocks.pixels import DiffusersDenoiser, StateGenerator
from mmblocks.sequence.segments import Text, Vectors
from mmblocks.tokenizers import DiffusersAutoencoder
from tests.models.emu_family import (
    EMU_SIZES,
    FORM,
    check_written_back,
    emu,
    images,
    prompts,
    published,
    randomised,
    write,
)

UNREAD = "cformer.cformer.embed_tokens.weight"


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("with_config", [False, True])
def test_the_pretrained_folder_and_back(tmp_path, wrapped: bool, with_config: bool) -> None:
    model = emu()
    tensors = {**published(model, "emu"), UNREAD: torch.randn(T5_WORDS, 8)}
    folder = tmp_path / "pretrain" / "multimodal_encoder"
    write(tensors, folder / "pytorch_model.bin", wrapped=wrapped)
    if with_config:
        model.to_upstream(tmp_path / "other", layout="emu")
        (folder / "config.json").write_text((tmp_path / "other" / "config.json").read_text())
    again = Emu.from_pretrained(folder, **({} if with_config else EMU_SIZES))

    assert again.origin is not None and again.origin.layout == "emu"
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())
    check_written_back(again, tensors, tmp_path / "back", apart_from=UNREAD)
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert (config["vladapter_cfg"]["n_causal"], config["llama"]["hidden_size"], config["vocab"]) == (3, 16, 24)


@pytest.mark.parametrize("layout", ["emu-instruct", "emu-instruct-newer-peft"])
def test_adapters_of_instruction_tuning_are_added_to_the_weights(tmp_path, layout: str) -> None:
    base, pattern = emu(), ("query", "key", "value", "output")
    tensors = {**published(base, layout), UNREAD: torch.randn(T5_WORDS, 8)}
    tuned = emu()
    attach_lora(tuned.trunk, tuple(f"layers.{{}}.attention.{name}" for name in pattern), rank=16, alpha=16)
    theirs = dict(zip(pattern, "qkvo", strict=True))
    for name, parameter in tuned.trunk.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
            _, layer, _, kind, which, *_ = name.split(".")
            tensors[f"decoder.lm.base_model.model.model.layers.{layer}.self_attn.{theirs[kind]}_proj.{which}.default.weight"] = (
                parameter.detach().clone()
            )
    write(tensors, tmp_path / "Emu-instruct.pt", wrapped=True)
    merged = Emu.from_pretrained(tmp_path / "Emu-instruct.pt", **EMU_SIZES)

    assert merged.origin is not None and merged.origin.layout == layout
    batch = merged.batch_builder()(prompts(FORM))
    torch.testing.assert_close(merged.hidden(batch), tuned.hidden(batch), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(merged.hidden(batch), base.hidden(batch), atol=1e-2)
    # Written back, the adapters add nothing more.
    merged.to_upstream(tmp_path / "back")
    again = Emu.from_pretrained(tmp_path / "back")
    assert torch.equal(again.hidden(batch), merged.hidden(batch))


def test_adapters_of_another_rank_are_refused(tmp_path) -> None:
    tensors = {**published(emu(), "emu-instruct"), UNREAD: torch.randn(T5_WORDS, 8)}
    tensors = {name: value[:4] if "lora_A" in name else value for name, value in tensors.items()}
    write(tensors, tmp_path / "Emu-instruct.pt")
    with pytest.raises(ValueError, match=r"an adapter has shapes \(4, 16\) and \(16, 16\)"):
        Emu.from_pretrained(tmp_path / "Emu-instruct.pt", **EMU_SIZES)
    tensors = {name: value for name, value in tensors.items() if "lora_B" not in name}
    write(tensors, tmp_path / "Emu-instruct.pt")
    with pytest.raises(ValueError, match="lora_B"):
        Emu.from_pretrained(tmp_path / "Emu-instruct.pt", **EMU_SIZES)


def learned_rows():
    one, two = images(2)
    return [
        [*FORM.write([one]), text([9, 10], target="text"), *FORM.shown(two), text([11], target="text")],
        [*FORM.write([two]), text([12], target="text")],
    ]


def test_images_are_learned_by_the_states_before_their_embeddings() -> None:
    model = emu()
    batch = model.batch_builder()(learned_rows())
    output = model(batch)
    embeds = model.embed(batch).detach()
    # <s> [IMG] e e e [/IMG] 9 10 [IMG] e e e [/IMG] 11
    places = [(0, 2), (0, 3), (0, 4), (0, 9), (0, 10), (0, 11), (1, 2), (1, 3), (1, 4)]
    head = model.outputs["embeddings"]
    wanted = [(head.projection(output.hidden[row, at - 1]) - embeds[row, at]).square().mean() for row, at in places]
    torch.testing.assert_close(output.token_losses["embeddings"], torch.stack(wanted))
    torch.testing.assert_close(output.losses["embeddings"], torch.stack(wanted).mean())
    assert (batch.targets["text"].places % batch.ids.shape[1]).tolist() == [5, 6, 12, 5]


def test_embeddings_are_constants_where_they_are_predicted() -> None:
    model = emu()
    batch = model.batch_builder()(learned_rows())
    model(batch).losses["embeddings"].backward()
    former = model.inputs["vision"].connector
    found = former.projection.weight.grad.clone()
    model.zero_grad()
    hidden, (places, fixed) = model.hidden(batch), (batch.inputs["vision"].places, model.embed(batch).detach().flatten(0, 1))
    predicted = model.outputs["embeddings"].projection(hidden.flatten(0, 1)[places - 1])
    (predicted - fixed[places]).square().mean().backward()
    torch.testing.assert_close(found, former.projection.weight.grad)
    assert found.abs().sum() > 0


def test_an_image_at_the_very_beginning_has_no_first_loss() -> None:
    model = emu()
    shown, learned = FORM.shown(images()[0])[1], vectors(torch.randn(3, 16), input="embeddings", target="embeddings", weight=2.0)
    samples = [[text([9]), shown], [shown, text([10, 3]), learned]]
    for options in ({}, {"pack": 20}):
        output = model(model.batch_builder()(samples, **options))
        assert output.token_losses["embeddings"].shape == (3 + 3 + 2,)
    alone = model(model.batch_builder()([samples[1]])).token_losses["embeddings"]
    torch.testing.assert_close(
        output.token_losses["embeddings"][:3].sum() + output.token_losses["embeddings"][-2:].sum(), alone.sum()
    )


@torch.no_grad()
def written_anew(model, prompt, count: int):
    """The authors' way: the whole row is read again for each embedding."""
    found = torch.zeros(0, 16)
    for _ in range(count):
        row = [*prompt, text([3]), *([vectors(found, input="embeddings")] if len(found) else [])]
        hidden = model.hidden(model.batch_builder()([row], learn=False))
        found = torch.cat([found, model.outputs["embeddings"].sample(hidden[0, -1:])])
    return found


def test_embeddings_written_on_a_cache_are_those_of_rows_read_anew() -> None:
    model = emu()
    made = model.embeddings(prompts(FORM), FORM)
    assert made.shape == (3, 3, 16)
    for row, prompt in enumerate(prompts(FORM)):
        torch.testing.assert_close(made[row], written_anew(model, prompt, 3), atol=1e-5, rtol=1e-5)


def test_text_is_written_after_images() -> None:
    model, greedy = emu(), Generation(max_tokens=4, sampling=Sampling(top_k=1))
    ((_, segment),) = model.generate([prompts(FORM)[0]], TextGrammar(24), greedy)
    row = [*prompts(FORM)[0], text(segment.content)]
    hidden = model.hidden(model.batch_builder()([row], learn=False))
    head = model.outputs["text"]
    assert isinstance(head, LMHead)
    assert head.logits(hidden[0, -5:-1]).argmax(-1).tolist() == list(segment.content)


def test_text_and_images_in_turn() -> None:
    model = emu()

    def opens_images(scores: Scores) -> Tensor:
        """Two words, and then an image, as often as the grammar lets it."""
        wanted = 3 if scores.step % 3 == 2 else 9
        bonus = torch.zeros(24)
        bonus[wanted] = 100.0
        return scores.logits + bonus[scores.first :][: scores.logits.shape[-1]]

    grammar = model.image_grammar(FORM, num_images=2, stop=(2,))
    made = [one.segment for one in model.generate([prompts(FORM)[1]], grammar, Generation(max_tokens=16, hooks=(opens_images,)))]
    assert [type(segment) for segment in made][:4] == [Text, Vectors, Text, Vectors]
    row = [*prompts(FORM)[1], text(made[0].content)]
    torch.testing.assert_close(made[1].values, model.embeddings([row], FORM)[0], atol=1e-5, rtol=1e-5)


def test_images_are_squashed() -> None:
    image = Image.new("RGB", (60, 30), (255, 0, 0))
    image.paste((0, 0, 255), (0, 0, 10, 30))
    pixels = emu().inputs["vision"].preprocess(image)
    assert pixels.shape == (3, 28, 28) and pixels[2, :, 0].min() > 0.9  # the left edge is there


def test_prompts_of_emu_i() -> None:
    shown = images()[0]
    chat = EMU_INSTRUCT.chat([[shown, "what is it?"]], about="image")
    ids = [segment.content if isinstance(segment, Text) else "pixels" for segment in chat]
    assert ids[:5] == [[1], "You will be presented with an image: ", [32001], "ImageContent", [32002]]
    assert ids[5].startswith(". You will be able to see the image after") and ids[5].endswith("based on the given image. ")
    assert ids[6:] == [[32004], ": ", [32001], "pixels", [32002], "what is it? ", [32005], ":"]
    more = EMU_INSTRUCT.chat([["one"], ["two"], ["three"]])
    assert [segment.content for segment in more][3:9] == [[32005], ": two", [2], [32004], ": three ", [32005]]
    with pytest.raises(ValueError, match="2 messages"):
        EMU_INSTRUCT.chat([["a"], ["b"]])
    with pytest.raises(ValueError, match="about is 'boats'"):
        EMU_INSTRUCT.chat([["a"]], about="boats")
    video = EMU_INSTRUCT.write([images(2)])
    assert len(video) == 1 + 2 * 3  # frames are images, without anything before them


UNET = {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [4, 8],
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "attention_head_dim": 2,
    "cross_attention_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
}
PNDM = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "skip_prk_steps": True, "steps_offset": 1}


@pytest.fixture(scope="module")
def painter() -> EmuGen:
    """With Stable Diffusion's kind of network and its scheduler."""
    decoder = StateGenerator(
        network=DiffusersDenoiser(kind="UNet2DConditionModel", arguments=UNET),
        autoencoder=DiffusersAutoencoder(kind="AutoencoderKL", arguments={"block_out_channels": [4], "norm_num_groups": 2}),
        sampler=DiffusersSampler(scheduler="PNDMScheduler", options=PNDM, num_steps=3),
    )
    made: EmuGen = randomised(EmuGen(model=emu(), decoder=decoder))
    return made


def noise(count: int = 1) -> torch.Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(2))


def test_images_are_guided_by_the_embeddings_of_an_empty_prompt(painter: EmuGen) -> None:
    rows = prompts(FORM)[:1] + prompts(FORM)[2:]
    made = painter(rows, FORM, noise=noise(2))
    assert made.shape == (2, 3, 8, 8) and made.min() >= 0 and made.max() <= 1
    conditions, nothing = painter.model.embeddings(rows, FORM), painter.model.embeddings([[text([1])]], FORM)
    wanted = painter.decoder.sample(conditions, unconditional=nothing.expand(2, -1, -1), guidance=7.5, size=(8, 8), noise=noise(2))
    torch.testing.assert_close(made, wanted, atol=1e-4, rtol=1e-4)
    plain = painter(rows, FORM, guidance=1, noise=noise(2))
    torch.testing.assert_close(plain, painter.decoder.sample(conditions, size=(8, 8), noise=noise(2)), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(plain, made, atol=1e-3)


def test_the_authors_folder_of_all_parts(tmp_path, painter: EmuGen) -> None:
    painter.to_diffusers(tmp_path / "pretrain")
    encoder = tmp_path / "pretrain" / "multimodal_encoder"
    write({**published(painter.model, "emu"), UNREAD: torch.randn(T5_WORDS, 8)}, encoder / "pytorch_model.bin", wrapped=True)
    (encoder / "model.safetensors").unlink()
    (tmp_path / "pretrain" / "safety_checker").mkdir()
    again = EmuGen.from_diffusers(tmp_path / "pretrain", num_steps=3)
    wanted, found = painter.state_dict(), again.state_dict()
    assert wanted.keys() == found.keys() and all(torch.equal(found[name], value) for name, value in wanted.items())
    assert torch.equal(again(prompts(FORM)[:1], FORM, noise=noise()), painter(prompts(FORM)[:1], FORM, noise=noise()))
    again.save_pretrained(tmp_path / "ours")
    ours = EmuGen.from_pretrained(tmp_path / "ours")
    assert torch.equal(ours(prompts(FORM)[:1], FORM, noise=noise()), painter(prompts(FORM)[:1], FORM, noise=noise()))


def test_a_decoder_of_another_width_is_refused(painter: EmuGen) -> None:
    with pytest.raises(ValueError, match="conditions of width 16; accepted: that of the model, 8"):
        EmuGen(model=emu(dim=8, num_heads=2), decoder=painter.decoder)
