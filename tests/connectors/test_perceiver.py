"""The resampler against transformers' IDEFICS, and in Flamingo's own layout against its formula."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from mmblocks.connectors.perceiver import PerceiverResampler


@pytest.mark.parametrize("qk_norm", [True, False])
def test_idefics_as_in_transformers(tmp_path, qk_norm) -> None:
    from transformers import IdeficsConfig
    from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

    torch.manual_seed(0)
    perceiver = {
        "resampler_n_latents": 5,
        "resampler_depth": 2,
        "resampler_n_heads": 3,
        "resampler_head_dim": 4,
        "qk_layer_norms_perceiver": qk_norm,
    }
    config = IdeficsConfig(vision_config={"embed_dim": 6}, perceiver_config=perceiver)
    theirs = IdeficsPerceiverResampler(config, 6, 2, 3, 4, 5)
    tensors = {f"model.perceiver_resampler.{name}": torch.randn_like(value) for name, value in theirs.state_dict().items()}
    theirs.load_state_dict({name.removeprefix("model.perceiver_resampler."): value for name, value in tensors.items()})
    save_file(tensors | {"lm_head.weight": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    published = {"vision_config": {"embed_dim": 6}, "perceiver_config": perceiver}
    (tmp_path / "config.json").write_text(json.dumps(published))
    ours = PerceiverResampler.from_pretrained(tmp_path)
    features = torch.randn(2, 7, 6)
    torch.testing.assert_close(ours(features), theirs(features), atol=1e-5, rtol=1e-4)
    written = dict(ours.layouts[-1].convert(ours.state_dict(), ours.config, to="theirs"))
    assert written.keys() == tensors.keys() and all(torch.equal(written[name], tensors[name]) for name in tensors)


def flamingo_layer(weights: dict[str, Tensor], latents: Tensor, context: Tensor, heads: int) -> Tensor:
    """One layer by its formula, of one image, from the published names."""

    def norm(x: Tensor, name: str) -> Tensor:
        return layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    normed = norm(latents, "0.norm_latents")
    seen = torch.cat([norm(context, "0.norm_media"), normed])
    query = normed @ weights["0.to_q.weight"].T
    key, value = (seen @ weights["0.to_kv.weight"].T).chunk(2, dim=-1)
    read = []
    for q, k, v in zip(query.chunk(heads, -1), key.chunk(heads, -1), value.chunk(heads, -1), strict=True):
        read.append((q @ k.T / q.shape[-1] ** 0.5).softmax(-1) @ v)
    latents = latents + torch.cat(read, -1) @ weights["0.to_out.weight"].T
    return latents + gelu(norm(latents, "1.0") @ weights["1.1.weight"].T) @ weights["1.3.weight"].T


@pytest.mark.parametrize("max_frames", [None, 4])
def test_flamingo_by_its_formula(tmp_path, max_frames) -> None:
    torch.manual_seed(0)
    sizes = {"dim": 6, "num_latents": 5, "num_layers": 2, "num_heads": 3, "head_dim": 4, "max_frames": max_frames}
    ours = PerceiverResampler(**sizes)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_()
    layout = next(one for one in ours.layouts if one.name == "open_flamingo")
    tensors = {name: value.contiguous() for name, value in layout.convert(ours.state_dict(), ours.config, to="theirs")}
    assert tensors["perceiver.layers.0.0.to_kv.weight"].shape == (24, 6) and ("perceiver.frame_embs" in tensors) == bool(max_frames)
    save_file(tensors | {"lang_encoder.x": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    features = torch.randn(1, 3, 1, 2, 6)
    again = PerceiverResampler.from_pretrained(tmp_path, **sizes)
    assert torch.equal(again(features), ours(features))

    frames = 0 if max_frames is None else tensors["perceiver.frame_embs"][:3, None]
    latents, context = tensors["perceiver.latents"], (features[0, :, 0] + frames).flatten(0, 1)
    for number in range(2):
        prefix = f"perceiver.layers.{number}."
        layer = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        latents = flamingo_layer(layer, latents, context, heads=3)
    wanted = layer_norm(latents, (6,), tensors["perceiver.norm.weight"], tensors["perceiver.norm.bias"])
    torch.testing.assert_close(ours(features)[0], wanted, atol=1e-5, rtol=1e-4)


def test_too_many_frames_are_refused() -> None:
    resampler = PerceiverResampler(dim=6, num_layers=1, max_frames=2)
    with pytest.raises(ValueError, match="features have 3 frames; accepted: 1 to 2"):
        resampler(torch.randn(1, 3, 1, 1, 6))
