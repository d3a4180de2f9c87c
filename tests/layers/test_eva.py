import pytest
import torch
from torch.nn.functional import interpolate

from mmblocks import Block
from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.layers.towers.eva import EvaTower
from mmblocks.layers.towers.eva_layouts import eva_rules, eva_tower_arguments

KINDS = {
    "g": {},
    "E": {"post_norm": True},
    "8B": {"norm": "rms", "qkv_bias": False},
    "L": {"swiglu": True, "attention_norm": True, "rope": True, "rope_grid": (4, 4)},
}


def tower(**options) -> EvaTower:
    torch.manual_seed(0)
    return EvaTower(image_size=(28, 42), patch_size=14, dim=24, num_layers=2, num_heads=2, mlp_dim=37, **options).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_depend_on_their_patch_and_are_saved(kind, tmp_path) -> None:
    eva = tower(**KINDS[kind])
    assert eva.grid == (2, 3)
    pixels = torch.randn(2, 3, 28, 42, requires_grad=True)
    tokens = eva(pixels)
    assert tokens.shape == (2, 7, 24)
    tokens[0].square().sum().backward()
    assert pixels.grad[0].abs().min() > 0 and pixels.grad[1].abs().max() == 0
    assert all(parameter.grad.abs().sum() > 0 for parameter in eva.parameters())
    eva.save_pretrained(tmp_path / "eva")
    assert torch.equal(Block.from_pretrained(tmp_path / "eva")(pixels), tokens)
    halved = Block.from_pretrained(tmp_path / "eva", dtype=torch.bfloat16)(pixels.bfloat16())
    torch.testing.assert_close(halved.float(), tokens, atol=0.1, rtol=0.1)


def test_the_hidden_width_is_the_one_asked_for() -> None:
    with torch.device("meta"):
        eva = EvaTower(num_layers=1)
    assert eva.vit.blocks[0].mlp.fc1.weight.shape == (6144, 1408)


@pytest.mark.parametrize("kind", ["g", "L"])
def test_published_names_and_back(kind) -> None:
    eva = tower(**KINDS[kind])
    layout = Layout("visual", eva_rules("visual.", "", swiglu=kind == "L"))
    theirs = dict(layout.convert(eva.state_dict(), eva.config, to="theirs"))
    fused = "visual.blocks.1.attn.qkv.weight"
    assert theirs[fused].shape == (72, 24) if kind == "g" else "visual.blocks.1.mlp.w3.bias" in theirs
    again = dict(layout.convert(theirs, eva.config))
    assert again.keys() == eva.state_dict().keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in eva.state_dict().items())


def test_configs_with_the_authors_defaults() -> None:
    plain = eva_tower_arguments({"eva_model_name": "eva-clip-b-16"})
    sizes = {"image_size": (224, 224), "patch_size": 16, "dim": 768, "num_layers": 12, "num_heads": 12, "mlp_dim": 3072}
    assert sizes.items() <= plain.items() and plain["norm"] == "layer" and plain["qkv_bias"] and not plain["rope"]
    for config, message in (
        ({"eva_model_name": "x", "subln": True}, "naiveswiglu is False and subln True"),
        ({"timm_model_name": "x"}, "accepted: an EVA tower"),
    ):
        with pytest.raises(ValueError, match=message):
            eva_tower_arguments(config)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"image_size is \(28, 30\); accepted: multiples of patch_size, 14"):
        EvaTower(image_size=(28, 30), patch_size=14)
    with pytest.raises(ValueError, match="pixels are 28x28; accepted: 28x42"):
        tower()(torch.zeros(1, 3, 28, 28))


@pytest.mark.parametrize("kind", ["g", "L"])
def test_states_of_any_block(kind) -> None:
    eva = tower(**KINDS[kind])
    pixels = torch.randn(2, 3, 28, 42)
    last, first, also_first = eva.states(pixels, (-1, 0, -2))
    assert torch.equal(last, eva(pixels)) and torch.equal(first, also_first) and not torch.equal(first, last)
    eva.vit.blocks[1].register_forward_hook(lambda *_: pytest.fail("a block that nobody asked for"))
    assert torch.equal(eva.states(pixels, (0,))[0], first)
    with pytest.raises(ValueError, match=r"layers are \[2\]; accepted: at least one, each from -2 to 1"):
        eva.states(pixels, (2,))


@pytest.mark.parametrize("kind", ["g", "L"])
def test_kept_patches_bring_their_places_along(kind) -> None:
    eva = tower(**KINDS[kind])
    pixels = torch.randn(2, 3, 28, 42)
    order = torch.tensor([[5, 3, 0, 1, 4, 2], [0, 1, 2, 5, 4, 3]])
    shuffled, tokens = eva(pixels, keep=order), eva(pixels)
    torch.testing.assert_close(shuffled[:, 0], tokens[:, 0])
    torch.testing.assert_close(shuffled[0, 1:], tokens[0, 1 + order[0]])
    some = eva(pixels, keep=order[:, :2])
    changed = torch.where(torch.arange(42) < 14, pixels + 1, pixels)  # patches 0 and 3 of the first image and others
    assert some.shape == (2, 3, 24) and not torch.allclose(some[0], eva(changed, keep=order[:, :2])[0])
    torch.testing.assert_close(eva(pixels, keep=order[:, 2:]), eva(pixels, keep=order[:, 2:].flip(1))[:, [0, 4, 3, 2, 1]])


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (torch.zeros(1, 2, dtype=torch.long), r"shape \(1, 2\); accepted: \(2, K\)"),
        (torch.zeros(2, 0, dtype=torch.long), "with at least one patch"),
        (torch.tensor([[1, 2], [3, 6]]), r"lies in \[1, 6\]; accepted: \[0, 5\]"),
    ],
)
def test_patches_that_are_not_there_are_refused(keep, message) -> None:
    with pytest.raises(ValueError, match=message):
        tower()(torch.zeros(2, 3, 28, 42), keep=keep)


def test_resized_towers_share_all_but_their_positions() -> None:
    from timm.layers import resample_abs_pos_embed

    eva = tower(**KINDS["L"])
    eva.vit.cls_token.requires_grad_(False)
    larger = eva.resized((56, 42))
    assert larger.config["image_size"] == (56, 42) and larger.grid == (4, 3) and not larger.training
    wanted = resample_abs_pos_embed(eva.vit.pos_embed, new_size=[4, 3], old_size=[2, 3], antialias=False)
    torch.testing.assert_close(larger.vit.pos_embed, wanted)
    others = dict(larger.named_parameters())
    assert all(others[name] is parameter for name, parameter in eva.named_parameters() if name != "vit.pos_embed")
    assert larger(torch.randn(1, 3, 56, 42)).shape == (1, 13, 24)
    same = eva.resized((28, 42))
    pixels = torch.randn(1, 3, 28, 42)
    assert torch.equal(same(pixels), eva(pixels))
    finer = eva.resized((28, 42), patch_size=7)
    assert finer.vit.patch_embed.proj.weight.shape == (24, 3, 7, 7) and finer(pixels).shape == (1, 25, 24)
    with pytest.raises(ValueError, match="accepted: multiples of patch_size, 14"):
        eva.resized((28, 30))


@pytest.mark.parametrize(
    ("patch_size", "image_size"), [(14, (28, 42)), (16, (48, 80)), (9, (27, 45)), (7, (14, 42)), (20, (40, 60))]
)
def test_any_patches_and_any_grid_to_any_other(patch_size, image_size) -> None:
    """As the official loader has it: bicubic, corners not aligned, no antialiasing, for positions and for the patches' kernel."""
    eva = tower(**{**KINDS["L"], "rope_grid": (5, 5)})
    resized = eva.resized(image_size, patch_size=patch_size)
    rows, columns = (side // patch_size for side in image_size)
    positions, kernel = eva.vit.pos_embed.detach(), eva.vit.patch_embed.proj.weight.detach()
    maps = positions[0, 1:].T.reshape(1, 24, 2, 3)
    maps = interpolate(maps, size=(rows, columns), mode="bicubic", align_corners=False).reshape(24, -1).T
    torch.testing.assert_close(resized.vit.pos_embed[0], torch.cat([positions[0, :1], maps]), atol=1e-6, rtol=1e-6)
    wanted = interpolate(kernel, size=(patch_size,) * 2, mode="bicubic", align_corners=False)
    torch.testing.assert_close(resized.vit.patch_embed.proj.weight.detach(), wanted, atol=1e-6, rtol=1e-6)

    # Places are spread over the grid of pretraining: angle of a row or column times 10000 ** (-2 i / width of half a head).
    frequencies = 10000.0 ** -(torch.arange(0, 6, 2) / 6)
    row, column = torch.arange(rows) / rows * 5, torch.arange(columns) / columns * 5
    angles = torch.cat([row[:, None, None].expand(-1, columns, 1), column[None, :, None].expand(rows, -1, 1)], dim=-1)
    angles = (angles[..., None] * frequencies).flatten(2).repeat_interleave(2, dim=-1).flatten(0, 1)
    torch.testing.assert_close(resized.vit.rope.get_embed(), torch.cat([angles.sin(), angles.cos()], dim=-1), atol=1e-5, rtol=1e-5)
    assert resized(torch.randn(1, 3, *image_size)).shape == (1, 1 + rows * columns, 24)


def test_checkpointed_blocks_have_the_same_gradients() -> None:
    eva = tower(**KINDS["L"])
    pixels = torch.randn(1, 3, 28, 42)
    grads = []
    for checkpointed in (False, True):
        eva.vit.set_grad_checkpointing(checkpointed)
        eva.zero_grad()
        eva(pixels).square().sum().backward()
        grads.append(eva.vit.patch_embed.proj.weight.grad.clone())
    torch.testing.assert_close(*grads)
