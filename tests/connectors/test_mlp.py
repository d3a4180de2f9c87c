"""The projector against those of transformers, and the layouts of LLaVA's own files."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mmblocks.connectors.mlp import MLPProjector


def saved(tmp_path, tensors, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


@pytest.mark.parametrize("prefix", ["", "model."])
def test_llava_as_in_transformers(tmp_path, prefix) -> None:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    sizes = {"intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision, text = CLIPVisionConfig(hidden_size=6, **sizes), LlamaConfig(hidden_size=10, **sizes)
    config = LlavaConfig(vision_config=vision, text_config=text)
    theirs = LlavaMultiModalProjector(config)
    tensors = {f"{prefix}multi_modal_projector.{name}": tensor for name, tensor in theirs.state_dict().items()}
    tensors[f"{prefix}vision_tower.x"] = torch.zeros(1)
    ours = MLPProjector.from_pretrained(saved(tmp_path, tensors, config.to_dict()))
    features = torch.randn(2, 3, 6)
    torch.testing.assert_close(ours(features), theirs(features))


@pytest.mark.parametrize("official", [True, False])
def test_internvl(tmp_path, official) -> None:
    theirs = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 10), nn.GELU(), nn.Linear(10, 10))
    names = (
        {"0": "mlp1.0", "1": "mlp1.1", "3": "mlp1.3"}
        if official
        else {
            number: f"model.multi_modal_projector.{name}"
            for number, name in (("0", "layer_norm"), ("1", "linear_1"), ("3", "linear_2"))
        }
    )
    tensors = {f"{names[name[0]]}{name[1:]}": torch.randn_like(tensor) for name, tensor in theirs.state_dict().items()}
    theirs.load_state_dict({name: tensors[f"{names[name[0]]}{name[1:]}"] for name in theirs.state_dict()})
    text = {"llm_config" if official else "text_config": {"hidden_size": 10}}
    ours = MLPProjector.from_pretrained(
        saved(tmp_path, tensors, {"downsample_ratio": 0.5, "vision_config": {"hidden_size": 6}, **text})
    )
    features = torch.randn(2, 3, 24)
    torch.testing.assert_close(ours(features), theirs(features))


@pytest.mark.parametrize(("kind", "names"), [("linear", [""]), ("mlp2x_gelu", ["0.", "2."]), ("mlp3x_gelu", ["0.", "2.", "4."])])
def test_llava(tmp_path, kind, names) -> None:
    tensors = {}
    for number, name in enumerate(names):
        tensors[f"model.mm_projector.{name}weight"] = torch.randn(10, 10 if number else 6)
        tensors[f"model.mm_projector.{name}bias"] = torch.randn(10)
    config = {"mm_hidden_size": 6, "hidden_size": 10, "mm_projector_type": kind}
    ours = MLPProjector.from_pretrained(saved(tmp_path, tensors, config))
    x = features = torch.randn(2, 6)
    for number, name in enumerate(names):
        x = nn.functional.gelu(x) if number else x
        x = x @ tensors[f"model.mm_projector.{name}weight"].T + tensors[f"model.mm_projector.{name}bias"]
    torch.testing.assert_close(ours(features[:, None])[:, 0], x)


@pytest.mark.parametrize("config", [{"mm_projector_type": "cabstract"}, {"mm_projector_type": "mlp2x_silu"}])
def test_other_projectors_are_refused(tmp_path, config) -> None:
    tensors = {"model.mm_projector.0.weight": torch.randn(10, 6)}
    with pytest.raises(ValueError, match=r"mm_projector_type is '(cabstract|mlp2x_silu)'; accepted: 'linear'"):
        MLPProjector.from_pretrained(saved(tmp_path, tensors, {"mm_hidden_size": 6, "hidden_size": 10, **config}))


def test_no_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="num_layers is 0; accepted: at least 1"):
        MLPProjector(in_dim=6, dim=8, num_layers=0)
