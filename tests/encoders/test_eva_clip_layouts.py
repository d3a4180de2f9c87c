"""Files of the authors, in all forms, and of the Hub: found by their names alone, and refused where they are others'."""

import json

import pytest
import torch
from safetensors.torch import save_file

from mmblocks.encoders.eva_clip import EVACLIP
from mmblocks.encoders.eva_clip_layouts import PRETRAINING
from mmblocks.encoders.eva_clip_text import EVACLIPText
from mmblocks.encoders.eva_clip_vision import EVACLIPVision
from mmblocks.layers.eva import EvaTower

TOWER = {"image_size": (28, 28), "patch_size": 14, "dim": 24, "num_layers": 1, "num_heads": 2, "mlp_dim": 37}
LARGE = {"swiglu": True, "attention_norm": True, "rope": True, "rope_grid": (2, 2)}
RMS = {"norm": "rms", "qkv_bias": False, "post_norm": True}
TEXT = {"embed_dim": 10, "dim": 24, "num_layers": 1, "num_heads": 2, "context_length": 9, "vocab_size": 50}


def clip(**tower) -> EVACLIP:
    torch.manual_seed(0)
    vision = {"tower": TOWER | tower, "embed_dim": 10, "head_bias": tower.get("qkv_bias", True)}
    return EVACLIP(vision=vision, text=TEXT).eval()


def written(block, name) -> dict[str, torch.Tensor]:
    (layout,) = (layout for layout in block.layouts if layout.name == name)
    return {key: value.clone() for key, value in layout.convert(block.state_dict(), block.config, to="theirs")}


@pytest.mark.parametrize(
    ("kind", "tower", "root", "ddp"),
    [("eva", {}, "", ""), ("eva02", LARGE, "", "-ddp"), ("eva", {}, "-root", "-ddp"), ("eva02", LARGE, "-root", "")],
)
def test_files_of_the_authors(kind, tower, root, ddp, tmp_path) -> None:
    ours = clip(**tower)
    tensors = written(ours, f"{kind}-clip{root}{ddp}")
    prefix = "module." if ddp else ""
    assert f"{prefix}{'' if root else 'text.'}text_projection" in tensors and f"{prefix}visual.blocks.0.attn.q_bias" in tensors
    if kind == "eva02":  # as the code has them, for another size of image
        tables = {
            f"{prefix}visual.{place}rope.freqs_{part}": torch.zeros(9, 12)
            for place in ("", "blocks.0.attn.")
            for part in ("cos", "sin")
        }
        tensors |= tables
    torch.save(tensors, tmp_path / "file.pt")
    again = EVACLIP.from_pretrained(tmp_path / "file.pt", **ours.config)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in ours.state_dict().items())
    pixels = torch.rand(1, 3, 28, 28)
    alone = EVACLIPVision.from_pretrained(tmp_path / "file.pt", **ours.config["vision"])
    torch.testing.assert_close(alone.embed(pixels), again.vision.embed(pixels))
    text = EVACLIPText.from_pretrained(tmp_path / "file.pt", **TEXT)
    ids = torch.randint(50, (2, 9))
    torch.testing.assert_close(text(ids), again.text(ids))
    if not ddp:
        tower_alone = EvaTower.from_pretrained(tmp_path / "file.pt", **ours.config["vision"]["tower"])
        torch.testing.assert_close(tower_alone(pixels), again.vision.tower(pixels))


@pytest.mark.parametrize("wrapper", ["model", "module", "state_dict"])
def test_files_that_hold_more_than_tensors(wrapper, tmp_path) -> None:
    ours = clip()
    torch.save({wrapper: written(ours, "eva-clip"), "epoch": 3}, tmp_path / "file.pt")
    again = EVACLIP.from_pretrained(tmp_path / "file.pt", **ours.config)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in ours.state_dict().items())
    pixels = torch.rand(1, 3, 28, 28)
    alone = EVACLIPVision.from_pretrained(tmp_path / "file.pt", **ours.config["vision"])
    torch.testing.assert_close(alone.embed(pixels), ours.vision.embed(pixels))


def hub_config(ours) -> dict:
    tower = ours.vision.tower.config
    vision = {
        "image_size": 28, "patch_size": 14, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 37, "q_bias": tower["qkv_bias"], "v_bias": tower["qkv_bias"], "k_bias": False,
        "post_layernorm": tower["post_norm"],
    }  # fmt: skip
    text = {
        "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 96,
        "max_position_embeddings": 9, "vocab_size": 50,
    }  # fmt: skip
    return {"projection_dim": 10, "vision_config": vision, "text_config": text, "model_type": "clip"}


@pytest.mark.parametrize(("layout", "tower"), [("eva-clip-hub", RMS), ("eva-clip-hub-bias", {"post_norm": True})])
def test_folders_of_the_hub(layout, tower, tmp_path) -> None:
    ours = clip(**tower)
    tensors = written(ours, layout)
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    assert shapes["vision_model.embeddings.class_embedding"] == (24,)
    assert shapes["vision_model.embeddings.position_embedding.weight"] == (5, 24)
    assert shapes["text_model.encoder.layers.0.self_attn.k_proj.bias"] == (24,)
    assert shapes["text_projection.weight"] == (10, 24)
    assert ("visual_projection.bias" in tensors) == layout.endswith("bias")
    tensors["text_model.embeddings.position_ids"] = torch.arange(9)[None]
    save_file({name: value.contiguous() for name, value in tensors.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(hub_config(ours)))
    again = EVACLIP.from_pretrained(tmp_path)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in ours.state_dict().items())
    pixels, ids = torch.rand(1, 3, 28, 28), torch.randint(50, (2, 9))
    torch.testing.assert_close(EVACLIPVision.from_pretrained(tmp_path).embed(pixels), ours.vision.embed(pixels))
    torch.testing.assert_close(EVACLIPText.from_pretrained(tmp_path)(ids), ours.text(ids))


def test_towers_that_only_fill_in_patches(tmp_path) -> None:
    ours = EVACLIPVision(tower=TOWER | LARGE | {"attention_norm": False}).eval()
    tensors = written(ours, "eva02") | {"mask_token": torch.zeros(1, 1, 24), "lm_head.weight": torch.zeros(8, 24)}
    assert all(any(name.startswith(pattern.removesuffix("*")) for name in tensors) for pattern in PRETRAINING)
    torch.save(tensors, tmp_path / "file.pt")
    again = EVACLIPVision.from_pretrained(tmp_path / "file.pt", **ours.config)
    pixels = torch.rand(1, 3, 28, 28)
    torch.testing.assert_close(again(pixels), ours(pixels))


def test_other_files_are_refused(tmp_path) -> None:
    ours = clip()
    tensors = written(ours, "eva-clip")
    del tensors["visual.blocks.0.norm1.bias"]
    torch.save(tensors, tmp_path / "partial.pt")
    with pytest.raises(ValueError, match=r"missing \(1\):\n  vision.tower.vit.blocks.0.norm1.bias"):
        EVACLIP.from_pretrained(tmp_path / "partial.pt", **ours.config)
    torch.save({"visual.conv1.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="fits no layout of EVACLIP"):
        EVACLIP.from_pretrained(tmp_path / "other.pt", **ours.config)
    torch.save(written(ours, "eva-clip"), tmp_path / "file.pt")
    with pytest.raises(ValueError, match="missing argument 'vision', 'text'"):
        EVACLIP.from_pretrained(tmp_path / "file.pt")


def test_another_gelu_is_refused() -> None:
    (layout,) = (layout for layout in EVACLIPText.layouts if layout.name == "text")
    published = {"embed_dim": 10, "text_cfg": {"width": 24}}
    assert layout.arguments(published)["dim"] == 24
    with pytest.raises(ValueError, match="quick_gelu is true; accepted: false"):
        layout.arguments({**published, "quick_gelu": True})
