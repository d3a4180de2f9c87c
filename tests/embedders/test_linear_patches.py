"""The plain patch embedding and its positions: against diffusers' OmniGen and timm."""

import json

import pytest
import torch
from safetensors.torch import save_file

from mmblocks import Block
from mmblocks.embedders.linear_patches import LinearPatchEmbedding
from mmblocks.layers.images.grid_positions import LearnedPositions, SinCosPositions
from mmblocks.sequence.tokens import TokenKind

SIZES = [(4, 4), (8, 4), (4, 12), (20, 8), (8, 4)]
HALF = (0.5, 0.5, 0.5)


def positions(name: str) -> Block | None:
    made = {"learned": lambda: LearnedPositions(dim=12, rows=3, columns=2), "sincos": lambda: SinCosPositions(dim=12)}
    return made[name]() if name in made else None


def stem(name: str = "none", **options) -> LinearPatchEmbedding:
    torch.manual_seed(0)
    return LinearPatchEmbedding(dim=12, patch_size=2, positions=positions(name), **options)


@pytest.mark.parametrize("name", ["none", "sincos", "learned"])
def test_a_ragged_batch_equals_single_images(name) -> None:
    part, images = stem(name, channels=5), [torch.randn(5, *size) for size in SIZES]
    tokens = part(images)
    assert (tokens.kind == TokenKind.PATCH).all()
    for number, values in enumerate(images):
        layout, single = part.layout(*values.shape[1:]), part([values])
        torch.testing.assert_close(tokens.embeds[tokens.image == number], single.embeds)
        assert torch.equal(layout.grid, single.grid) and torch.equal(layout.kind, single.kind)


def test_pixels_are_normalised_and_patches_are_those_of_a_convolution() -> None:
    part, pixels = stem(mean=HALF, std=HALF, bias=False), torch.rand(3, 4, 6)
    torch.testing.assert_close(part([pixels]).embeds, part.patch(2 * pixels[None] - 1)[0].flatten(1).T)


@pytest.mark.parametrize("which", ["output", "input"])
def test_omnigens_latents_are_embedded_as_by_diffusers(tmp_path, which) -> None:
    from diffusers.models.transformers.transformer_omnigen import OmniGenPatchEmbed

    torch.manual_seed(0)
    theirs = OmniGenPatchEmbed(patch_size=2, in_channels=4, embed_dim=16)
    weights = {f"patch_embedding.{name}": value for name, value in theirs.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 16, "patch_size": 2, "in_channels": 4}))
    layout = {"output": "omnigen-diffusers", "input": "omnigen-diffusers-input"}[which]
    part = LinearPatchEmbedding.from_pretrained(tmp_path, layout=layout)

    latents = [torch.randn(4, 8, 6), torch.randn(4, 4, 10)]
    wanted = theirs([values[None] for values in latents], is_input_image=which == "input")
    tokens = part(latents)
    for number, values in enumerate(wanted):
        torch.testing.assert_close(tokens.embeds[tokens.image == number], values[0], atol=1e-5, rtol=1e-5)

    (table,) = (table for table in part.layouts if table.name == layout)
    written = dict(table.convert(part.state_dict(), part.config, to="theirs"))
    assert written and all(torch.equal(value, weights[name]) for name, value in written.items())


def test_learned_positions_are_resized_as_by_timm() -> None:
    from timm.layers import resample_abs_pos_embed

    torch.manual_seed(0)
    part = LearnedPositions(dim=8, rows=4, columns=6)
    flat = part.table.flatten(0, 1)
    assert torch.equal(part([(4, 6)]), flat)
    for grid in [(2, 9), (7, 7), (1, 1)]:
        wanted = resample_abs_pos_embed(flat[None], list(grid), [4, 6], num_prefix_tokens=0)[0]
        torch.testing.assert_close(part([grid]), wanted)
    torch.testing.assert_close(part([(2, 9), (4, 6)])[18:], flat)


def test_sines_and_cosines_of_the_column_then_of_the_row() -> None:
    values = SinCosPositions(dim=8, theta=100.0)([(2, 3)]).view(2, 3, 8)
    wanted = [2.0, 0.2, 2.0, 0.2, 1.0, 0.1, 1.0, 0.1]  # the place (1, 2); angles fall by 10 from channel to channel
    made = [turn(torch.tensor(angle)) for turn, angle in zip(2 * (2 * [torch.sin] + 2 * [torch.cos]), wanted, strict=True)]
    torch.testing.assert_close(values[1, 2], torch.stack(made))


def test_gradients_reach_every_parameter() -> None:
    part = stem("learned")
    part([torch.rand(3, 8, 12), torch.rand(3, 4, 4)]).embeds.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in part.parameters())


@pytest.mark.parametrize("name", ["none", "sincos", "learned"])
def test_bf16_and_saving(tmp_path, name) -> None:
    part, images = stem(name), [torch.rand(3, 8, 4), torch.rand(3, 4, 4)]
    part.save_pretrained(tmp_path)
    wanted = part(images).embeds
    torch.testing.assert_close(Block.from_pretrained(tmp_path)(images).embeds, wanted)
    made = part.bfloat16()(images).embeds
    assert made.dtype == torch.bfloat16
    torch.testing.assert_close(made.float(), wanted, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: stem(mean=HALF), "accepted: both for three channels, or neither"),
        (lambda: stem(mean=HALF, std=HALF, channels=4), "channels 4"),
        (lambda: SinCosPositions(dim=6), "dim is 6; accepted: multiples of 4"),
        (lambda: SinCosPositions(dim=8, base_size=4), "base_size is 4, table_size None"),
        (lambda: SinCosPositions(dim=8, table_size=4)([(2, 5)]), "a grid has 5 places on a side; accepted: at most 4"),
        (lambda: stem()([]), "images is empty"),
        (lambda: stem()([torch.zeros(3, 3, 4)]), "image is 3x4; accepted: multiples of 2, such as 4x4"),
        (lambda: stem(channels=4)([torch.zeros(3, 4, 4)]), r"shape \(3, 4, 4\); accepted: \(4, H, W\)"),
        (lambda: stem(mean=HALF, std=HALF)([torch.full((3, 4, 4), 2.0)]), r"\[2, 2\]; accepted: \[0, 1\]"),
    ],
)
def test_what_does_not_fit_is_refused(build, message) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.unchecked
def test_integers_are_refused() -> None:
    with pytest.raises(TypeError, match=r"an image is torch\.uint8; accepted: floating point"):
        stem()([torch.zeros(3, 4, 4, dtype=torch.uint8)])
