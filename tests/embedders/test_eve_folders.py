"""EVE's published folders: config.json and weights, and none of the presets in which the strides stand upstream."""

import json

import pytest
import torch
from safetensors.torch import save_file

from mmblocks.embedders.eve1 import EVE1PatchEmbedding
from mmblocks.embedders.eve2 import EVE2PatchEmbedding

EVE1 = {
    "architectures": ["EVELlamaForCausalLM"],
    "hidden_size": 12,
    "mm_hidden_size": 16,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_tower": "openai/eve-patch14-anypixel-1344",
    "mm_vision_tower_clip": "openai/clip-vit-large-patch14-336",
    "requires_cliploss": True,
}
EVE2 = {
    "architectures": ["EVEQwen2ForCausalLM"],
    "hidden_size": 12,
    "mm_hidden_size": 8,
    "mm_vision_tower": "openai/eve-anyratio-res1600-patch16",
}


def published(folder, part, config) -> None:
    """The folder as published: the whole model's config, its shards with an index, and tensors of other parts in them."""
    (layout,) = part.layouts
    tensors = dict(layout.convert(part.state_dict(), part.config, to="theirs"))
    tensors |= {"model.embed_tokens.weight": torch.zeros(4, 12), "lm_head.weight": torch.zeros(4, 12)}
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[:3], "model-00002-of-00002.safetensors": names[3:]}
    for file, keys in shards.items():
        save_file({key: tensors[key].clone() for key in keys}, folder / file, metadata={"format": "pt"})
    weight_map = {key: file for file, keys in shards.items() for key in keys}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("tower", "image_size"), [("openai/eve-patch14-anypixel-672", 672), ("/data/openai/eve-patch14-anypixel-1344", 1344)]
)
def test_eve1_knows_its_size_from_the_folder_alone(tower, image_size, tmp_path) -> None:
    torch.manual_seed(0)
    part = EVE1PatchEmbedding(dim=12, hidden_dim=16, image_size=image_size)
    published(tmp_path, part, EVE1 | {"mm_vision_tower": tower})
    loaded = EVE1PatchEmbedding.from_pretrained(tmp_path)
    assert loaded.config == part.config and loaded.canvas["scale"] == image_size // 336
    pixels = torch.rand(3, 28, 56)
    assert torch.equal(loaded([pixels]).embeds, part([pixels]).embeds)


@pytest.mark.parametrize("max_size", [800, 1600])
def test_eve2_knows_its_strides_from_the_folder_alone(max_size, tmp_path) -> None:
    torch.manual_seed(0)
    part = EVE2PatchEmbedding(dim=12, hidden_dim=8, max_size=max_size)
    published(tmp_path, part, EVE2 | {"mm_vision_tower": f"openai/eve-anyratio-res{max_size}-patch16"})
    loaded = EVE2PatchEmbedding.from_pretrained(tmp_path)
    assert loaded.config == part.config
    pixels = torch.rand(3, 64, 32)
    assert torch.equal(loaded([pixels]).embeds, part([pixels]).embeds)


def test_a_presets_entries_in_the_config_come_first(tmp_path) -> None:
    entries = {"patch_stride": 4, "dense_stride": 3, "max_size": 64, "mm_vision_tower": "./my-preset"}
    published(tmp_path, EVE2PatchEmbedding(dim=12, hidden_dim=8, patch_size=4, merge_size=3), EVE2 | entries)
    assert EVE2PatchEmbedding.from_pretrained(tmp_path).max_size == 64
    arguments = EVE1PatchEmbedding.layouts[0].arguments(EVE1 | {"conv_stride": 4, "patch_stride_clip": 16, "image_size_clip": 224})
    assert (arguments["merge_size"], arguments["teacher_patch_size"], arguments["teacher_image_size"]) == (4, 16, 224)
    assert arguments["image_size"] == 1344


@pytest.mark.parametrize(("cls", "config"), [(EVE1PatchEmbedding, EVE1), (EVE2PatchEmbedding, EVE2)])
def test_presets_of_unknown_names_are_refused(cls, config) -> None:
    with pytest.raises(ValueError, match=r"mm_vision_tower is './my-preset'; accepted: .*in config\.json"):
        cls.layouts[0].arguments(config | {"mm_vision_tower": "./my-preset"})
