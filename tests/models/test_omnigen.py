"""OmniGen: rows of any size, guidance, the cache; against diffusers."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mmblocks import Generation
from mmblocks.configurable import parameters
from mmblocks.embedders.linear_patches import LinearPatchEmbedding
from mmblocks.layers.diffusion.rectified_flow import RectifiedFlow
from mmblocks.layers.images.grid_positions import SinCosPositions
from mmblocks.models.omnigen.model import OmniGen
from mmblocks.models.omnigen.phi3_config import phi3_config
from mmblocks.models.omnigen.prompt import one_image, output, segments
from mmblocks.models.omnigen.trunk import Phi3Decoder
from mmblocks.sequence.masks import visible
from mmblocks.sequence.tokens import TokenTable

LONGROPE = {"type": "longrope", "factor": 32.0, "max_position": 12, "short_factor": (1.0, 1.1), "long_factor": (1.5, 3.0)}
TEXT = torch.tensor([1, 7, 3])
EULER = RectifiedFlow.sampler(num_steps=2)


def tiny(**options) -> OmniGen:
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "dim": 16, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "mlp_dim": 24}
    model = OmniGen(**sizes, **{"rope_scaling": LONGROPE, "channels": 2, "table_size": 8, **options})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def prompts() -> list[list[torch.Tensor]]:
    draws = torch.Generator().manual_seed(5)
    image = torch.randn(2, 4, 2, generator=draws)
    return [[TEXT, image, torch.tensor([4])], [torch.tensor([9])], [torch.randn(2, 2, 2, generator=draws), image, TEXT]]


def latents() -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(6)
    return [torch.randn(2, *size, generator=draws) for size in ((4, 6), (2, 2), (6, 2))]


def test_a_padded_batch_equals_single_rows() -> None:
    model, t = tiny(rope_scaling=None), torch.tensor([0.0, 0.3, 1.0])
    together = model(prompts(), latents(), t)
    for prompt, values, time, made in zip(prompts(), latents(), t, together, strict=True):
        (alone,) = model([prompt], [values], time[None])
        torch.testing.assert_close(made, alone, atol=1e-5, rtol=1e-4)


def test_who_sees_whom() -> None:
    """Two words, an image of two tokens, a word; the time; an image of one token."""
    prompt = [torch.tensor([1, 2]), torch.zeros(2, 4, 2), torch.tensor([3])]
    batch = tiny().model.batch_builder()([[*segments(prompt), output(torch.zeros(2, 2, 2))]])
    seen = visible(batch.table)[0].int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 1, 1],
    ]


@pytest.mark.parametrize("branches", [1, 2, 3])
@pytest.mark.parametrize("long", [False, True])
def test_sampling_is_the_same_without_a_cache(branches, long) -> None:
    """Euler's steps over whole rows: each branch on its own, padded to its own longest prompt."""
    model = tiny(rope_scaling={**LONGROPE, "max_position": 12 if long else 100})
    text, images = {"unconditional": [[torch.tensor([2])]] * 3}, {"images_only": [[torch.zeros(2, 2, 4)]] * 3}
    others = [{}, text, text | images][branches - 1]
    cached = model.sample(prompts(), noise=latents(), num_steps=3, shift=2.0, **others)
    x, sigmas = latents(), model.sigmas(3, 2.0)
    for now, after in pairwise(sigmas):
        c, *rest = (model(group, x, now.expand(3)) for group in [prompts(), *others.values()])
        if branches == 1:
            guided = c
        elif branches == 2:
            guided = [u + 2.5 * (c - u) for c, u in zip(c, *rest, strict=True)]
        else:
            guided = [u + 1.6 * (i - u) + 2.5 * (c - i) for c, u, i in zip(c, *rest, strict=True)]
        x = [one + (after - now) * velocity for one, velocity in zip(x, guided, strict=True)]
    for one, whole in zip(cached, x, strict=True):
        torch.testing.assert_close(one, whole, atol=1e-4, rtol=1e-4)


def test_a_former_way_of_sampling_warns() -> None:
    options = {"noise": latents(), "num_steps": 1}
    with pytest.warns(FutureWarning, match="cache='none' is 'prompt' now"):
        former = tiny().sample(prompts(), cache="none", **options)
    assert all(torch.equal(a, b) for a, b in zip(former, tiny().sample(prompts(), **options), strict=True))


def test_upstreams_cache_differs_from_the_first_step_on() -> None:
    steps: dict[str, list] = {"prompt": [], "upstream": []}
    for mode, trajectory in steps.items():
        tiny().sample(prompts(), noise=latents(), num_steps=2, cache=mode, trajectory=trajectory)
    right, upstream = (trajectory[0][1][0] for trajectory in steps.values())
    assert not torch.allclose(right, upstream, atol=1e-3)


def test_draws_come_from_the_generator() -> None:
    def draw(seed: int) -> torch.Tensor:
        options = {"sizes": [(2, 4)], "num_steps": 1, "generator": torch.Generator().manual_seed(seed)}
        return tiny().sample([[TEXT]], **options)[0]

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))


def test_the_loss_reaches_every_parameter() -> None:
    model = tiny().train()
    losses = model.loss(prompts(), latents(), generator=torch.Generator().manual_seed(0))
    assert losses.shape == (3,)
    losses.mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_bf16_and_saving(tmp_path) -> None:
    model, t = tiny(), torch.tensor([0.2, 0.3, 0.4])
    wanted = model(prompts(), latents(), t)
    model.save_pretrained(tmp_path)
    again = OmniGen.from_pretrained(tmp_path)
    assert again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(again(prompts(), latents(), t), wanted, strict=True))
    for made in model.bfloat16()(prompts(), latents(), t):
        assert made.isfinite().all()


@pytest.mark.parametrize("layout", OmniGen.layouts, ids=lambda layout: layout.name)
def test_grouped_heads_are_published_and_read_again(layout) -> None:
    model = tiny()
    theirs = dict(layout.convert(model.state_dict(), model.config, to="theirs"))
    fused = theirs.get("llm.layers.0.self_attn.qkv_proj.weight")
    assert fused is None or fused.shape == (16 + 8 + 8, 16)
    again = dict(layout.convert(theirs, model.config))
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())


def test_diffusers_gives_the_same(tmp_path) -> None:
    """One row: with several, its positions are those of the first."""
    diffusers = pytest.importorskip("diffusers")
    config = {
        "in_channels": 2,
        "hidden_size": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 24,
        "num_layers": 2,
        "vocab_size": 20,
        "pad_token_id": 0,
        "rope_scaling": {"short_factor": [1.0, 1.1], "long_factor": [1.5, 3.0]},
        "original_max_position_embeddings": 12,
        "pos_embed_max_size": 8,
    }
    theirs = diffusers.OmniGenTransformer2DModel(**config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    ours = OmniGen.from_pretrained(tmp_path)

    for prompt, values in zip(prompts(), latents(), strict=True):
        batch = ours.model.batch_builder()([[*segments(prompt), output(values)]])
        table, before = batch.table, len(batch.ids[0]) - 1 - batch.spans["image"].num_tokens
        spans, place = [], 0
        for item in prompt:
            count = item.shape[1] * item.shape[2] // 4 if item.is_floating_point() else len(item)
            spans += [[place, place + count]] if item.is_floating_point() else []
            place += count
        (wanted,) = theirs(
            hidden_states=values[None],
            timestep=torch.tensor([0.4]),
            input_ids=batch.ids[:, :before].clamp(min=0),
            input_img_latents=[item[None] for item in prompt if item.is_floating_point()],
            input_image_sizes={0: spans} if spans else {},
            attention_mask=visible(table).long(),
            position_ids=torch.arange(table.shape[1])[None],
            return_dict=False,
        )
        (made,) = ours([prompt], [values], torch.tensor([0.4]))
        torch.testing.assert_close(made, wanted[0], atol=1e-5, rtol=1e-4)


def test_generate_gives_what_sample_gives() -> None:
    """The parts alone, without OmniGen's own methods: an image from the seed, whatever stands beside it."""
    model = tiny().model
    grammars = [one_image((4, 6)), one_image((2, 2)), one_image((6, 2))]
    told = [segments(prompt) for prompt in prompts()]
    together = dict(model.generate(told, grammars, Generation(generator=3, writing={"image": {"sampler": EULER}})))
    first = dict(model.generate(told[:1], grammars[:1], Generation(generator=3, writing={"image": {"sampler": EULER}})))
    assert together[0].values.shape == (4, 6, 2)
    torch.testing.assert_close(first[0].values, together[0].values, atol=1e-5, rtol=1e-5)
    noise = [segment.values for _, segment in sorted(together.items())]
    handed_in = {"sampler": EULER, "noise": noise}
    made = dict(model.generate(told, grammars, Generation(writing={"image": handed_in})))
    wanted = tiny().sample(prompts(), noise=[one.movedim(-1, 0) for one in noise], num_steps=2)
    for row, image in enumerate(wanted):
        torch.testing.assert_close(made[row].values.movedim(-1, 0), image)
    with pytest.raises(ValueError, match=r"writing is for heads \['text'\]"):
        list(model.generate(told, grammars, Generation(writing={"text": {}})))


ONE = [torch.zeros(2, 2, 2)]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: tiny()([], ONE, torch.tensor([0.5])), "prompts is empty"),
        (lambda: tiny()([[]], ONE, torch.tensor([0.5])), "a prompt has no tokens"),
        (lambda: tiny()([[TEXT]], ONE, torch.tensor([1.5])), r"t lies in \[1.5, 1.5\]; accepted: \[0, 1\]"),
        (lambda: tiny()([[TEXT]], ONE, torch.tensor([0.5, 0.5])), "accepted: as many of each"),
        (lambda: tiny()([[TEXT]], [torch.zeros(2, 3, 2)], torch.tensor([0.5])), r"an image is \(2, 3, 2\); accepted: \(2, h, w\)"),
        (lambda: tiny()([[torch.zeros(3, 2, 2)]], ONE, torch.tensor([0.5])), r"an input image is \(3, 2, 2\)"),
        (lambda: tiny().sample([[TEXT]], noise=ONE, guidance=-1), "guidance is -1"),
        (lambda: tiny().sample([[TEXT]], noise=ONE, shift=0.0), "shift 0.0; accepted: 1 or more, and above 0"),
        (lambda: tiny().sample([[TEXT]], noise=ONE, images_only=[[TEXT]]), "images_only without unconditional"),
        (lambda: tiny().sample([[TEXT]]), "sizes and noise are both given, or neither"),
        (lambda: tiny().loss([[TEXT]], ONE, noise=[torch.zeros(2, 2, 4)]), "noise has shapes"),
    ],
)
def test_what_does_not_fit_is_refused(build, message) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_ids_of_two_axes_are_refused() -> None:
    with pytest.raises(TypeError, match=r"a prompt has torch.int64 of shape \(1, 3\)"):
        tiny()([[TEXT[None]]], ONE, torch.tensor([0.5]))


def published_table(size: int, dim: int, interpolation: float) -> np.ndarray:
    """The table as the official code writes it down: the column first, sines before cosines, in float32 steps."""
    line = np.arange(size, dtype=np.float32) / (size / 64) / interpolation
    frequencies = 1.0 / 10000 ** (np.arange(dim // 4, dtype=np.float64) / (dim / 4.0))
    rows = []
    for row in range(size):
        for column in range(size):
            by_column, by_row = line[column] * frequencies, line[row] * frequencies
            rows.append(np.concatenate([np.sin(by_column), np.cos(by_column), np.sin(by_row), np.cos(by_row)]))
    return np.stack(rows).astype(np.float32)[None]


def own_folder(folder: Path, model: OmniGen, table: np.ndarray, **own: float) -> Path:
    """A folder as the official code would have written it."""
    phi3 = {
        "hidden_size": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "vocab_size": 20,
        "max_position_embeddings": 384,
        "original_max_position_embeddings": 12,
        "rope_scaling": {"type": "su", "short_factor": [1.0, 1.1], "long_factor": [1.5, 3.0]},
    }
    sizes = {"in_channels": 2, "pos_embed_max_size": model.config["table_size"], "patch_size": model.patch_size, **own}
    (folder / "config.json").write_text(json.dumps({"phi3": phi3, "omnigen": sizes}))
    (layout,) = (layout for layout in OmniGen.layouts if layout.name == "omnigen")
    theirs = dict(layout.convert(model.state_dict(), model.config, to="theirs"))
    save_file({**theirs, "pos_embed": torch.from_numpy(table)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(("size", "interpolation", "patch_size"), [(7, 1.0, 2), (8, 2.0, 1), (9, 1.5, 3), (5, 0.5, 2)])
def test_the_table_of_positions_follows_the_config_and_is_that_of_the_file(tmp_path, size, interpolation, patch_size) -> None:
    model = tiny(table_size=size, patch_size=patch_size)
    table = published_table(size, 16, interpolation)
    ours = OmniGen.from_pretrained(own_folder(tmp_path, model, table, pe_interpolation=interpolation))
    positions = ours.model.inputs["noised"].positions
    for rows, columns in ((size, size), (2, 5), (3, 1)):
        top, left = (size - rows) // 2, (size - columns) // 2
        wanted = table.reshape(size, size, 16)[top : top + rows, left : left + columns].reshape(-1, 16)
        torch.testing.assert_close(positions([(rows, columns)]), torch.from_numpy(wanted), atol=2e-5, rtol=0)
    (made,) = ours([[TEXT]], [torch.ones(2, 2 * patch_size, 3 * patch_size)], torch.tensor([0.5]))
    assert made.shape == (2, 2 * patch_size, 3 * patch_size)


def test_a_file_with_another_table_of_positions_is_refused(tmp_path) -> None:
    folder = own_folder(tmp_path, tiny(), published_table(8, 16, 1.0), pe_interpolation=1.25)
    with pytest.raises(ValueError, match=r"pos_embed differs by up to .* from what follows from the config"):
        OmniGen.from_pretrained(folder)
    folder = own_folder(tmp_path, tiny(), published_table(7, 16, 1.0))
    with pytest.raises(ValueError, match=r"the table has shape \(1, 49, 16\); accepted: \(1, 64, 16\)"):
        OmniGen.from_pretrained(folder)
    broken = published_table(8, 16, 1.0)
    broken[0, 63, 15] = np.nan
    with pytest.raises(ValueError, match="pos_embed differs by up to nan"):
        OmniGen.from_pretrained(own_folder(tmp_path, tiny(), broken))
    half = published_table(8, 16, 1.0)
    folder = own_folder(tmp_path, tiny(), half)
    save_file({**load_file(folder / "model.safetensors"), "pos_embed": torch.from_numpy(half).half()}, folder / "model.safetensors")
    OmniGen.from_pretrained(folder)
    for layout in ("omnigen", "omnigen-input"):
        embedding = LinearPatchEmbedding.from_pretrained(folder, layout=layout)
        assert embedding.config["positions"].config["interpolation"] == 1.0
        with pytest.raises(ValueError, match="pos_embed differs"):
            LinearPatchEmbedding.from_pretrained(
                own_folder(tmp_path, tiny(), published_table(8, 16, 2.0)),
                layout=layout,
                positions=SinCosPositions(dim=16, table_size=8),
            )
        folder = own_folder(tmp_path, tiny(), half)


PHI3 = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 20}
FACTORS = {"short_factor": [1.0, 2.0], "long_factor": [3.0, 4.0]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling has type 'linear'"),
        ({"rope_scaling": {"type": "su", "short_factor": [1.0], "long_factor": [1.0, 2.0]}}, "1 numbers as short_factor"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; accepted: 'silu'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_parameters": {"rope_theta": 500.0, "rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        (
            {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 500.0}},
            "rope_theta is 10000.0, and rope_parameters.rope_theta is 500",
        ),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"head_dim": 8}, "head_dim is 8; accepted: 4"),
        ({"model_type": "llama"}, "model_type is 'llama'; accepted: phi3"),
        ({"architectures": ["PhimoeForCausalLM"]}, "architectures names 'PhimoeForCausalLM'"),
        ({"rope_scaling": {"type": "su", **FACTORS, "attention_factor": 2.0}}, "rope_scaling.attention_factor = 2.0"),
        ({"an_entry": 1}, "an_entry = 1"),
    ],
)
def test_what_phi3_does_not_do_here_is_refused(changes, message) -> None:
    (layout,) = (layout for layout in OmniGen.layouts if layout.name == "omnigen")
    with pytest.raises(ValueError, match=message):
        layout.arguments({**PHI3, **changes})


def test_the_angles_that_phi3s_config_says() -> None:
    scaling = phi3_config({**PHI3, "max_position_embeddings": 131072, "rope_scaling": {"type": "yarn", **FACTORS}})["rope_scaling"]
    assert scaling["type"] == "longrope" and scaling["factor"] == 32.0 and scaling["max_position"] == 4096
    assert phi3_config({**PHI3, "rope_scaling": {"type": "su", **FACTORS}})["rope_scaling"]["factor"] == 1.0
    assert phi3_config(PHI3)["rope_scaling"] is None
    assert phi3_config(PHI3)["rope_theta"] == 10000.0


@pytest.mark.parametrize("theta", [10000.0, 500.0])
@pytest.mark.parametrize("scaled", [False, True])
def test_what_transformers_writes_of_phi3_gives_its_numbers(theta, scaled) -> None:
    transformers = pytest.importorskip("transformers")
    angles = {"rope_type": "longrope", "original_max_position_embeddings": 6, **FACTORS} if scaled else {"rope_type": "default"}
    config = transformers.Phi3Config(
        **{**PHI3, "num_hidden_layers": 2, "num_key_value_heads": 2, "intermediate_size": 24, "pad_token_id": 0},
        max_position_embeddings=24,
        original_max_position_embeddings=6,
        rope_parameters={"rope_theta": theta, **angles},
    )
    torch.manual_seed(0)
    theirs = transformers.Phi3Model(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    (own,) = (layout for layout in OmniGen.layouts if layout.name == "omnigen")
    arguments = own.arguments(json.loads(config.to_json_string()))
    trunk = Phi3Decoder(**{name: value for name, value in arguments.items() if name in parameters(Phi3Decoder)}).eval()
    (layout,) = (layout for layout in Phi3Decoder.layouts if layout.name == "phi3")
    state = {f"model.{name}": value for name, value in theirs.state_dict().items()}
    trunk.load_state_dict(dict(layout.convert(state, trunk.config)))
    for length in (5, 9):
        embeds = torch.randn(2, length, 16)
        with torch.no_grad():
            wanted = theirs(inputs_embeds=embeds).last_hidden_state
            torch.testing.assert_close(trunk(embeds, TokenTable.text(2, length)), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "Lumina2Transformer2DModel"}, "_class_name is 'Lumina2Transformer2DModel'"),
        ({"time_step_dim": 128}, "time_step_dim is 128; accepted: 256"),
        ({"timestep_activation_fn": "gelu"}, "timestep_activation_fn is 'gelu'"),
        ({"flip_sin_to_cos": False}, "flip_sin_to_cos is False"),
        ({"downscale_freq_shift": 1}, "downscale_freq_shift is 1"),
        ({"pe_interpolation": 2.0}, "pe_interpolation = 2.0"),
    ],
)
def test_what_diffusers_does_otherwise_is_refused(changes, message) -> None:
    (layout,) = (layout for layout in OmniGen.layouts if layout.name == "omnigen-diffusers")
    with pytest.raises(ValueError, match=message):
        layout.arguments({"hidden_size": 16, "num_attention_heads": 4, **changes})
    assert layout.arguments({"hidden_size": 128})["num_kv_heads"] == 32
