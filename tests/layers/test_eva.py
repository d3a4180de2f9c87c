import pytest
import torch

from mmblocks import Block
from mmblocks.checkpoints.layouts import Layout
from mmblocks.layers.eva import EvaTower, eva_rules

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


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"image_size is \(28, 30\); accepted: multiples of patch_size, 14"):
        EvaTower(image_size=(28, 30), patch_size=14)
    with pytest.raises(ValueError, match="pixels are 28x28; accepted: 28x42"):
        tower()(torch.zeros(1, 3, 28, 28))
