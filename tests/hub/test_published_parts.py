"""One part of a published model, from its Hub id alone."""

import json

import pytest
import torch
from open_clip import factory
from safetensors.torch import save

from mmblocks.embedders.eve1 import EVE1PatchEmbedding
from mmblocks.embedders.eve2 import EVE2PatchEmbedding
from mmblocks.encoders.open_clip_encoder import OpenClipEncoder
from mmblocks.tokenizers.emu3.tokenizer import Emu3VQ

# huggingface_hub's own use of its HTTP client.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

CONFIGS = {
    "eve1": {
        "hidden_size": 12,
        "mm_hidden_size": 16,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_tower": "openai/eve-patch14-anypixel-672",
        "mm_vision_tower_clip": "openai/clip-vit-large-patch14-336",
    },
    "eve2": {"hidden_size": 12, "mm_hidden_size": 8, "mm_vision_tower": "openai/eve-anyratio-res800-patch16"},
}
PARTS = {
    "eve1": lambda: EVE1PatchEmbedding(dim=12, hidden_dim=16, image_size=672),
    "eve2": lambda: EVE2PatchEmbedding(dim=12, hidden_dim=8, max_size=800),
}


@pytest.mark.parametrize("name", PARTS)
def test_eve_s_strides_come_with_its_hub_id(hub, name) -> None:
    torch.manual_seed(0)
    part = PARTS[name]()
    (layout,) = part.layouts
    stem = {key: value.contiguous() for key, value in layout.convert(part.state_dict(), part.config, to="theirs")}
    shards = {"model-00001-of-00002.safetensors": stem, "model-00002-of-00002.safetensors": {"lm_head.weight": torch.zeros(4, 12)}}
    index = {"weight_map": {key: file for file, tensors in shards.items() for key in tensors}}
    files = {file: save(tensors, metadata={"format": "pt"}) for file, tensors in shards.items()}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    hub.commit("someone/eve", files | {"config.json": json.dumps(CONFIGS[name]).encode()})

    loaded = type(part).from_pretrained("someone/eve")
    assert loaded.config == part.config
    assert "model-00002-of-00002.safetensors" not in hub.paths()  # which holds nothing of the part
    pixels = torch.rand(3, *(28, 56) if name == "eve1" else (32, 64))
    assert torch.equal(loaded([pixels]).embeds, part([pixels]).embeds)


def test_the_image_processor_comes_with_the_hub_id(hub, tmp_path) -> None:
    vq = Emu3VQ(num_codes=8, channels=32, multipliers=(1,), num_blocks=1, attention_levels=(), min_pixels=77, std=(0.1, 0.2, 0.3))
    vq.to_upstream(tmp_path, layout="emu3")
    hub.commit("someone/emu3", {file.name: file.read_bytes() for file in tmp_path.iterdir()})
    assert Emu3VQ.from_pretrained("someone/emu3").config == vq.config
    assert "preprocessor_config.json" in hub.paths()


def test_open_clips_own_config_comes_with_the_hub_id(hub, tmp_path, monkeypatch) -> None:
    tower = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 5, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}
    monkeypatch.setitem(factory._MODEL_CONFIGS, "tiny", {"embed_dim": 12, "vision_cfg": tower, "text_cfg": text})
    encoder = OpenClipEncoder(name="tiny", mean=(0.1, 0.2, 0.3), resizing="squash")
    encoder.to_upstream(tmp_path)
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    hub.commit("someone/clip", files | {"config.json": json.dumps({"model_type": "clip", "projection_dim": 12}).encode()})
    loaded = OpenClipEncoder.from_pretrained("someone/clip")
    assert (loaded.name, loaded.mean, loaded.std, loaded.resizing) == ("tiny", encoder.mean, encoder.std, "squash")
    assert "open_clip_config.json" in hub.paths()
