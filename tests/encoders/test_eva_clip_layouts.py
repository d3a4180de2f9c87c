"""Files of the authors, in all forms, and of the Hub: found by their names alone, and refused where they are others'."""

import json

import pytest
import torch
from safetensors.torch import save_file

from mmblocks.encoders.eva_clip import EVACLIP
from mmblocks.encoders.eva_clip_layouts import PRETRAINING
from mmblocks.encoders.eva_clip_text import EVACLIPText
from mmblocks.encoders.eva_clip_vision import EVACLIPVision
from mmblocks.layers.towers.eva import EvaTower
from tests.shared.old_transformers import OLD_ENTRIES

TOWER = {"image_size": (28, 28), "patch_size": 14, "dim": 24, "num_layers": 1, "num_heads": 2, "mlp_dim": 37}
LARGE = {"swiglu": True, "attention_norm": True, "rope": True, "rope_grid": (2, 2)}
RMS = {"norm": "rms", "qkv_bias": False, "post_norm": True}
TEXT = {"embed_dim": 10, "dim": 24, "num_layers": 1, "num_heads": 2, "context_length": 9, "vocab_size": 50}


def clip(**tower) -> EVACLIP:
    torch.manual_seed(0)
    vision = {"tower": TOWER | tower, "embed_dim": 10, "head_bias": tower.get("qkv_bias", True)}
    return EVACLIP(vision=vision, text=TEXT).eval()


def rope_tables(ours, prefix) -> dict[str, torch.Tensor]:
    """As the authors' code saves them: for the tower, and once more for each block."""
    sines = dict(zip(("sin", "cos"), ours.vision.tower.vit.rope.get_embed((2, 2)).chunk(2, dim=-1), strict=True))
    places = ("", "blocks.0.attn.")
    return {f"{prefix}{place}rope.freqs_{part}": table.clone() for place in places for part, table in sines.items()}


@pytest.mark.parametrize("grid", [(2, 2), (4, 4)])
def test_turning_angles_are_those_that_the_config_leads_to(grid, tmp_path) -> None:
    ours = clip(**LARGE | {"rope_grid": grid})
    tensors = written(ours, "eva02-clip")
    torch.save(tensors | {key: table.half() for key, table in rope_tables(ours, "visual.").items()}, tmp_path / "half.pt")
    EVACLIP.from_pretrained(tmp_path / "half.pt", **ours.config)
    others = rope_tables(clip(**LARGE | {"rope_grid": (3, 3)}), "visual.")
    torch.save(tensors | others, tmp_path / "other.pt")
    for cls, arguments in (
        (EVACLIP, ours.config),
        (EVACLIPVision, ours.config["vision"]),
        (EvaTower, ours.config["vision"]["tower"]),
    ):
        with pytest.raises(ValueError, match=r"rope\.freqs_(sin|cos) differs by up to .* from what follows"):
            cls.from_pretrained(tmp_path / "other.pt", **arguments)


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
    if kind == "eva02":
        tensors |= rope_tables(ours, f"{prefix}visual.")
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
        "post_layernorm": tower["post_norm"], "layer_norm_eps": tower["norm_eps"],
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


def layout_of(cls, name):
    (layout,) = (layout for layout in cls.layouts if layout.name == name)
    return layout


def test_quick_gelu_is_of_the_text_tower_alone() -> None:
    published = {"embed_dim": 10, "text_cfg": {"width": 24}, "vision_cfg": {"eva_model_name": "eva"}, "quick_gelu": True}
    arguments = layout_of(EVACLIP, "eva-clip").arguments(published)
    assert arguments["text"]["activation"] == "quick_gelu" and "activation" not in arguments["vision"]["tower"]
    assert layout_of(EVACLIPText, "text").arguments(published) == arguments["text"]
    assert layout_of(EVACLIPVision, "eva-clip").arguments(published) == arguments["vision"]
    texts = [EVACLIPText(**TEXT, activation=kind).eval() for kind in ("gelu", "quick_gelu")]
    texts[1].load_state_dict(texts[0].state_dict())
    first, second = (text(torch.full((1, 9), 3)) for text in texts)
    assert not torch.allclose(first, second, atol=1e-6)


@pytest.mark.parametrize(
    ("part", "entry", "value", "argument", "ours"),
    [
        ("vision", "layer_norm_eps", 1e-3, "norm_eps", 1e-3),
        ("vision", "hidden_act", "quick_gelu", "activation", "quick_gelu"),
        ("vision", "use_rms_norm", True, "norm", "rms"),
        ("text", "layer_norm_eps", 1e-3, "norm_eps", 1e-3),
        ("text", "hidden_act", "gelu_new", "activation", "gelu_tanh"),
        ("text", "intermediate_size", 40, "mlp_dim", 40),
    ],
)
def test_entries_of_the_hubs_config_are_followed(part, entry, value, argument, ours) -> None:
    config = hub_config(clip())
    config[f"{part}_config"][entry] = value
    arguments = layout_of(EVACLIP, "eva-clip-hub").arguments(config)
    changed = arguments["text"] if part == "text" else arguments["vision"]["tower"]
    assert changed[argument] == ours
    EVACLIP(**arguments)


def test_an_epsilon_and_an_activation_change_the_numbers() -> None:
    pixels = torch.rand(1, 3, 28, 28)
    plain = clip()
    for change in ({"norm_eps": 0.1}, {"activation": "relu"}):
        other = clip(**change)
        other.load_state_dict(plain.state_dict())
        assert not torch.allclose(other.vision.embed(pixels), plain.vision.embed(pixels), rtol=1e-3, atol=0)
    with pytest.raises(ValueError, match="activation is 'relu' with swiglu"):
        clip(**LARGE, activation="relu")


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("architectures", ["CLIPModel"]),
        ("model_type", "siglip"),
        ("vision_config.k_bias", True),
        ("vision_config.v_bias", False),
        ("vision_config.num_channels", 4),
        ("vision_config.use_rope", True),
        ("vision_config.hidden_act", "xielu"),
        ("text_config.q_bias", False),
        ("text_config.post_layernorm", True),
        ("text_config.use_rms_norm", True),
        ("text_config.an_entry_of_tomorrow", 1),
    ],
)
def test_hub_configs_of_other_models_are_refused(entry, value) -> None:
    config = hub_config(clip())
    *inside, name = entry.split(".")
    (config[inside[0]] if inside else config)[name] = value
    with pytest.raises(ValueError, match=name):
        layout_of(EVACLIP, "eva-clip-hub").arguments(config)


def test_places_without_spreading_are_as_many_as_patches() -> None:
    published = {"vision_cfg": {"eva_model_name": "eva", "image_size": 64, "patch_size": 16, "rope": True}}
    with pytest.raises(ValueError, match="pt_hw_seq_len is 16 without intp_freq, and the grid 4x4"):
        layout_of(EvaTower, "eva-clip").arguments(published)
    published["vision_cfg"]["pt_hw_seq_len"] = 4
    assert layout_of(EvaTower, "eva-clip").arguments(published)["rope_grid"] is None


def test_the_fused_layer_norm_is_taken_first() -> None:
    published = {"vision_cfg": {"eva_model_name": "eva", "use_rms_norm": True, "fusedLN": True}}
    assert layout_of(EvaTower, "eva-clip").arguments(published)["norm"] == "layer"


@pytest.mark.parametrize(
    ("layout", "tower"),
    [
        ("eva-clip", {"layer_scale": 0.1}),
        ("eva-clip-root-ddp", {"norm": "rms", "qkv_bias": False, "post_norm": True}),
        ("eva02-clip", LARGE),
        ("eva02-clip-ddp", LARGE | {"rope_grid": None}),
        ("eva-clip-hub", RMS | {"norm_eps": 1e-3, "activation": "quick_gelu"}),
        ("eva-clip-hub-bias", {"post_norm": True}),
    ],
)
def test_what_is_written_for_the_authors_is_read_again(layout, tower, tmp_path) -> None:
    ours = clip(**tower)
    ours.to_upstream(tmp_path / "first", layout=layout)
    for cls in (EVACLIP, EVACLIPVision, EVACLIPText, EvaTower):
        name = next((one.name for one in cls.layouts if one.name == layout), None)
        if name is None:
            continue
        first = cls.from_pretrained(tmp_path / "first", layout=name)
        first.to_upstream(tmp_path / cls.__name__)
        again = cls.from_pretrained(tmp_path / cls.__name__, layout=name)
        assert again.config == first.config
        assert all(torch.equal(value, again.state_dict()[key]) for key, value in first.state_dict().items())
    pixels = torch.rand(1, 3, 28, 28)
    again = EVACLIP.from_pretrained(tmp_path / "first", layout=layout)
    torch.testing.assert_close(again.encode_image(pixels), ours.encode_image(pixels))


def test_what_the_authors_cannot_build_is_not_written(tmp_path) -> None:
    for options, message in (
        ({"norm_eps": 1e-3}, "norm_eps is 0.001; accepted in this layout: 1e-06"),
        ({"swiglu": True}, "attention_norm is False; accepted in this layout: True"),
        ({"activation": "relu"}, "activation is 'relu'"),
    ):
        with pytest.raises(ValueError, match=message):
            clip(**options).to_upstream(tmp_path / "x", layout="eva02-clip" if "swiglu" in options else "eva-clip")


def test_images_are_prepared_as_the_hubs_folder_says(tmp_path) -> None:
    ours = clip(**RMS)
    ours.to_upstream(tmp_path, layout="eva-clip-hub")
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert written["size"] == {"shortest_edge": 28} and written["crop_size"] == {"height": 28, "width": 28}
    assert EVACLIP.from_pretrained(tmp_path).vision.mean == ours.vision.mean
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(written | {"image_mean": [0.5, 0.5, 0.5]}))
    for cls in (EVACLIP, EVACLIPVision):
        again = cls.from_pretrained(tmp_path)
        assert (again.vision if cls is EVACLIP else again).mean == (0.5, 0.5, 0.5)
        again.to_upstream(tmp_path / "again", layout="eva-clip-hub")
        assert cls.from_pretrained(tmp_path / "again").config == again.config
        with pytest.raises(ValueError, match=r"mean is \(0\.5, 0\.5, 0\.5\)"):
            again.to_upstream(tmp_path / "authors", layout="eva-clip")
    for entry, message in (
        ({"crop_size": 20}, "crop_size is 20; accepted: 28"),
        ({"size": {"height": 28, "width": 28}}, "size is .* accepted: a number, or equal shortest_edge"),
        ({"do_center_crop": False}, "do_center_crop is False"),
        ({"resample": 2}, "resample is 2"),
        ({"image_processor_type": "SiglipImageProcessor"}, "accepted: CLIPImageProcessor"),
    ):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(written | entry))
        with pytest.raises(ValueError, match=message):
            EVACLIPVision.from_pretrained(tmp_path)
    EVACLIPText.from_pretrained(tmp_path)


@pytest.mark.parametrize("cls", [EVACLIP, EVACLIPVision, EVACLIPText])
def test_what_transformers_writes_for_itself_changes_nothing(cls) -> None:
    config, layout = hub_config(clip(**RMS)), layout_of(cls, "eva-clip-hub")
    more = {"projection_dim": 512, "attention_dropout": 0.0, "initializer_factor": 1.0}
    old = OLD_ENTRIES | config | {"architectures": ["EvaCLIPModel"], "logit_scale_init_value": 2.6592}
    old |= {part: OLD_ENTRIES | more | config[part] | {"hidden_act": "gelu"} for part in ("vision_config", "text_config")}
    old["vision_config"] |= {"model_type": "clip_vision_model", "num_channels": 3}
    old["text_config"] |= {"model_type": "clip_text_model", "k_bias": True, "post_layernorm": False}
    assert layout.arguments(old) == layout.arguments(config)
