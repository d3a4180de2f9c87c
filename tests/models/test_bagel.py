"""BAGEL against plain torch in the published order of operations: states, logits, velocities, guided images; and its folder."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmblocks import GREEDY, Generation, TextGrammar, image, text, vectors
from mmblocks.generation import NestedGuidance, TextThenSpan, VectorBlock, VectorGrammar
from mmblocks.layers import StraightFlow
from mmblocks.models import Bagel
from mmblocks.models.bagel.model import LATENTS
from tests.shared.bagel_reference import (
    BEGIN,
    CHANNELS,
    END,
    LATENT_SIDE,
    OWN,
    VOCAB,
    Context,
    Reference,
    patched,
    published_folder,
    published_weights,
    renormalised,
)

START, STOP = 1, 2
ASKED = [START, 7, 8, STOP]
SYSTEM = [START, 11, STOP]
BLOCK = VectorBlock(begin=None, end=None, size=(4, 6), head="image", input="latents", whole=True, modality=LATENTS)


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[Bagel, Reference]:
    folder = published_folder(tmp_path_factory.mktemp("bagel"))
    return Bagel.from_pretrained(folder, **OWN), Reference(published_weights())


def randn(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


PIXELS = torch.rand(3, 28, 42, generator=torch.Generator().manual_seed(4))
OTHER = torch.rand(3, 56, 14, generator=torch.Generator().manual_seed(5))
SEEN = randn(6, 4, CHANNELS)


def read(latents: torch.Tensor):
    return vectors(latents, input="latents", target="image", modality=LATENTS)


def looked_at(pixels: torch.Tensor):
    return image(pixels, bidirectional=True)


def close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=1e-4)


def test_states_and_logits_of_text_images_and_clean_latents(both) -> None:
    model, reference = both
    context = Context()
    hidden = [reference.vit(context, PIXELS), reference.vae(context, SEEN), reference.vit(context, OTHER)]
    logits = reference.text(context, ASKED)
    batch = model.batch_builder()([[looked_at(PIXELS), read(SEEN), looked_at(OTHER), text(ASKED)]], learn=False)
    found = model.hidden(batch)[0]
    close(model.outputs["text"].logits(found[-4:]), logits)
    close(found[:8], hidden[0])
    # Ours has both markers before the latents, of which each sees all in either order.
    close(found[8:16], hidden[1][[0, 7, 1, 2, 3, 4, 5, 6]])
    close(found[16:22], hidden[2])


def test_a_padded_batch_is_its_rows(both) -> None:
    model, _ = both
    samples = [[looked_at(PIXELS), text(ASKED)], [read(SEEN), text([START])], [text(ASKED)]]
    together = model.hidden(model.batch_builder()(samples, learn=False, padding="left"))
    for sample, states in zip(samples, together, strict=True):
        alone = model.hidden(model.batch_builder()([sample], learn=False))[0]
        close(states[-len(alone) :], alone)


def test_a_greedy_answer(both) -> None:
    model, reference = both
    context, wanted = Context(), []
    reference.vit(context, PIXELS)
    reference.text(context, ASKED)
    newest = START
    for _ in range(6):
        newest = int(reference.text(context, [newest])[-1].argmax())
        wanted.append(newest)
    options = Generation(max_tokens=6, sampling=GREEDY)
    ((_, answer),) = model.generate([[looked_at(PIXELS), text([*ASKED, START])]], TextGrammar(VOCAB), options)
    assert answer.content == wanted


def test_velocities_in_training_are_those_of_the_published_pass(both) -> None:
    """A target, its clean copy for what follows, and the loss."""
    model, reference = both
    target, noise, t = randn(4, 6, CHANNELS, seed=8), randn(4, 6, CHANNELS, seed=9), 0.7
    context = Context()
    reference.text(context, ASKED)
    x = (1 - t) * patched(target) + t * patched(noise)
    wanted = (reference.velocity(context, x, t, 3) - (patched(noise) - patched(target))).square().mean(dim=-1)
    reference.vae(context, target)
    reference.vit(context, PIXELS)
    logits = reference.text(context, [START, 9])
    sample = [text(ASKED), read(target), looked_at(PIXELS), text([START]), text([9], target="text")]
    batch = model.batch_builder()([sample])
    out = model(batch, given={"image": {"t": torch.tensor([t]), "noise": patched(noise)}})
    close(out.token_losses["image"], wanted, 1e-4)
    close(out.losses["text"], -logits[0].log_softmax(-1)[9], 1e-4)


def generated(model, prompt, unconditional, guidance, noise, *, steps=4, shift=3.0):
    writing = {"image": {"sampler": StraightFlow.sampler(steps, shift), "noise": [noise]}}
    options = Generation(guidance=guidance, writing=writing, generator=0)
    return list(model.generate([prompt], VectorGrammar(BLOCK, vocab_size=VOCAB), options, unconditional=unconditional))[
        -1
    ].segment.values


@pytest.mark.parametrize("renorm", ["global", "channel", "text_channel"])
def test_an_edited_image_in_three_streams(both, renorm) -> None:
    model, reference = both
    noise = randn(4, 6, CHANNELS, seed=10)
    everything, less = Context(), Context()
    reference.text(everything, SYSTEM)
    reference.text(less, SYSTEM)
    reference.vae(everything, SEEN)
    reference.vit(everything, PIXELS)
    without_text = everything.copy()
    reference.text(everything, ASKED)
    reference.text(less, ASKED)
    cfg = {"text_scale": 4.0, "image_scale": 2.0, "interval": (0.4, 1.0), "renorm": renorm, "least": 0.2}
    wanted = reference.draw(noise, [everything, without_text, less], steps=5, shift=3.0, cfg=cfg)
    pictures = [read(SEEN), looked_at(PIXELS)]
    guidance = NestedGuidance(scale=4.0, image_scale=2.0, interval=(0.4, 1.0), renorm=renorm, renorm_min=0.2)
    streams = [[text(SYSTEM), *pictures], [text(SYSTEM), text(ASKED)]]
    found = generated(model, [text(SYSTEM), *pictures, text(ASKED)], streams, guidance, noise)
    close(found, wanted, 1e-4)
    unguided = generated(model, [text(SYSTEM), *pictures, text(ASKED)], None, None, noise)
    assert (found - unguided).abs().max() > 1e-2


def test_an_image_of_text_where_the_other_stream_reads_nothing(both) -> None:
    model, reference = both
    noise = randn(4, 6, CHANNELS, seed=11)
    context = Context()
    reference.text(context, ASKED)
    cfg = {"text_scale": 3.0, "image_scale": 1.0, "interval": (0.0, 1.0), "renorm": "global", "least": 0.0}
    wanted = reference.draw(noise, [context, Context(), context], steps=5, shift=3.0, cfg=cfg)
    found = generated(model, [text(ASKED)], [[]], NestedGuidance(scale=3.0), noise)
    close(found, wanted, 1e-4)


@pytest.mark.parametrize("num_thoughts", [0, 3])
def test_thoughts_are_read_by_the_first_stream_alone(both, num_thoughts) -> None:
    model, reference = both
    noise = randn(4, 6, CHANNELS, seed=12)
    context, newest, thoughts = Context(), START, []
    reference.text(context, ASKED)
    less = context.copy()
    for _ in range(num_thoughts):
        newest = int(reference.text(context, [newest])[-1].argmax())
        thoughts.append(newest)
    assert STOP not in thoughts
    reference.text(context, [newest])
    reference.text(context, [STOP])
    cfg = {"text_scale": 4.0, "image_scale": 2.0, "interval": (0.0, 1.0), "renorm": "channel", "least": 0.0}
    wanted = reference.draw(noise, [context, Context(), less], steps=4, shift=3.0, cfg=cfg)
    grammar = TextThenSpan(BLOCK, vocab_size=VOCAB, end=STOP, max_text=num_thoughts)
    guidance = NestedGuidance(scale=4.0, image_scale=2.0, renorm="channel")
    writing = {"image": {"sampler": StraightFlow.sampler(3), "noise": [noise]}}
    options = Generation(guidance=guidance, writing=writing, sampling=GREEDY, generator=0)
    made = [one.segment for one in model.generate([[text([*ASKED, START])]], grammar, options, unconditional=[[], [text(ASKED)]])]
    assert [list(one.content) for one in made[:-1]] == [thoughts] * bool(thoughts)
    close(made[-1].values, wanted, 1e-4)


def test_rows_of_several_images_are_renormalised_apart(both) -> None:
    model, _ = both
    noise = [randn(4, 6, CHANNELS, seed=seed) for seed in (20, 21)]
    prompts = [[text(ASKED)], [text([START, 30, 31, 32, STOP])]]
    guidance = NestedGuidance(scale=6.0)
    writing = {"image": {"sampler": StraightFlow.sampler(3), "noise": noise}}
    options = Generation(guidance=guidance, writing=writing, generator=0)
    grammar = VectorGrammar(BLOCK, vocab_size=VOCAB)
    together = {row: one.values for row, one in model.generate(prompts, grammar, options, unconditional=[[], []])}
    for row, prompt in enumerate(prompts):
        close(together[row], generated(model, prompt, [[]], guidance, noise[row], steps=3), 1e-4)


@pytest.mark.parametrize("renorm", ["global", "channel", "text_channel"])
@pytest.mark.parametrize(("scale", "image_scale"), [(4.0, 2.0), (4.0, 1.0), (1.0, 2.0)])
@pytest.mark.parametrize("time", [0.4, 0.41, 1.0])
def test_guidance_alone(renorm, scale, image_scale, time) -> None:
    streams = randn(3, 5, 8)
    cfg = {"text_scale": scale, "image_scale": image_scale, "interval": (0.4, 1.0), "renorm": renorm, "least": 0.1}
    wanted = renormalised(*streams, time, **cfg)
    guidance = NestedGuidance(scale=scale, image_scale=image_scale, interval=(0.4, 1.0), renorm=renorm, renorm_min=0.1)
    torch.testing.assert_close(guidance.guided(streams, time, (5,)), wanted)


def test_times_are_the_published_ones() -> None:
    """What the published code counts as 50 times."""
    even = torch.linspace(1, 0, 50)
    wanted = (3 * even / (1 + 2 * even))[:-1]
    torch.testing.assert_close(StraightFlow.sampler().times(None), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_published_folder_and_back(tmp_path: Path, dtype) -> None:
    folder = published_folder(tmp_path / "theirs", dtype)
    model = Bagel.from_pretrained(folder, **OWN)
    model.to_upstream(tmp_path / "again")
    written, wanted = (load_file(one / "ema.safetensors") for one in (tmp_path / "again", folder))
    assert written.keys() == wanted.keys()
    assert all(torch.equal(written[name], wanted[name]) and written[name].dtype == dtype for name in wanted)
    configs = {name: json.loads((tmp_path / "again" / f"{name}_config.json").read_text()) for name in ("llm", "vit")}
    assert configs["llm"]["hidden_size"], configs["vit"]["num_hidden_layers"] == (32, 3)
    again = Bagel.from_pretrained(tmp_path / "again")  # which says what the published one cannot
    assert again.config == model.config
    model.save_pretrained(tmp_path / "ours")
    saved = Bagel.from_pretrained(tmp_path / "ours")
    batch = model.batch_builder()([[looked_at(PIXELS), read(SEEN), text(ASKED)]], learn=False)
    assert torch.equal(saved.hidden(batch), model.hidden(batch))
    assert saved.inputs["vision"].markers.table.weight is saved.inputs["text"].weight


def test_published_sizes() -> None:
    with torch.device("meta"):
        llm = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
        llm |= {"num_key_value_heads": 4, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "vocab_size": 152064}
        tower = {"hidden_size": 1152, "image_size": 980, "intermediate_size": 4304, "num_attention_heads": 16}
        tower |= {"num_hidden_layers": 27, "patch_size": 14}
        (layout,) = Bagel.layouts
        model = Bagel(**layout.arguments({"llm_config": llm, "vit_config": tower}))
    assert model.config["markers"] == (151652, 151653)
    tables = (4900 + 4096) * 3584
    count = sum(one.numel() for one in model.parameters()) + tables
    assert round(count / 1e9, 2) == 14.61


def test_what_is_refused(tmp_path: Path) -> None:
    sizes = {"vocab_size": VOCAB, "dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16}
    with pytest.raises(ValueError, match=r"markers is \(60, 64\); accepted: two ids of the vocabulary, 0 to 63"):
        Bagel(**sizes, markers=(60, 64))
    vision = {"image_size": 28, "dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16}
    model = Bagel(**sizes, vision=vision, markers=(BEGIN, END), latent_channels=2, latent_side=LATENT_SIDE).eval()
    for size, wanted in (((28, 30), "multiples of 14"), ((28, 42), "sides of at most 28")):
        with pytest.raises(ValueError, match=wanted):
            model.batch_builder()([[looked_at(torch.rand(3, *size))]])
    batch = model.batch_builder()([[read(torch.randn(2, 18, 2))]], learn=False)
    with pytest.raises(ValueError, match="column"):
        model.hidden(batch)
    with pytest.raises(ValueError, match="a prompt has no token"):
        list(model.generate([[], [text([1])]], TextGrammar(VOCAB), Generation(max_tokens=1)))
    with pytest.raises(ValueError, match="no sample holds a token"):
        list(model.generate([[]], TextGrammar(VOCAB), Generation(max_tokens=1)))
    folder = published_folder(tmp_path)
    config = json.loads((folder / "vit_config.json").read_text())
    (folder / "vit_config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    with pytest.raises(ValueError, match="hidden_act is 'relu'"):
        Bagel.from_pretrained(folder, **OWN)


def test_each_set_of_weights_has_a_last_norm_of_its_own(both) -> None:
    model, _ = both
    batch = model.batch_builder()([[text(ASKED), read(SEEN)]], learn=False)
    before = model.hidden(batch)[0]
    with torch.no_grad():
        model.trunk.norm["generation"].weight.mul_(2)
        after = model.hidden(batch)[0]
        model.trunk.norm["generation"].weight.div_(2)
    assert torch.equal(after[:6], before[:6])  # text and markers
    torch.testing.assert_close(after[6:], before[6:] * 2)


def test_an_image_of_weight_0_is_read_clean_alone(both) -> None:
    model, _ = both
    seen = vectors(SEEN, input="latents", target="image", modality=LATENTS, weight=0.0)
    learned = model.batch_builder()([[seen, text([START]), text([9], target="text")]])
    assert not learned.spans and learned.copies["image"].num_spans == 1
    prompt = model.batch_builder()([[read(SEEN), text([START, 9])]], learn=False)
    torch.testing.assert_close(model.hidden(learned), model.hidden(prompt))


def test_bfloat16(both, tmp_path: Path) -> None:
    model, _ = both
    half = Bagel.from_pretrained(published_folder(tmp_path), dtype=torch.bfloat16, **OWN)
    noise = randn(4, 6, CHANNELS, seed=10)
    guidance = NestedGuidance(scale=2.0, image_scale=1.5)
    prompt, streams = [read(SEEN), looked_at(PIXELS), text(ASKED)], [[read(SEEN), looked_at(PIXELS)], [text(ASKED)]]
    found, wanted = (generated(one, prompt, streams, guidance, noise) for one in (half, model))
    assert (found.float() - wanted).norm() < 0.1 * wanted.norm()
