"""The Q-Former connector against transformers' BLIP-2, and LAVIS' names."""

import json

import pytest
import torch
from safetensors.torch import save_file

from mmblocks.connectors.qformer import QFormerConnector

SIZES = {"in_dim": 6, "hidden_dim": 12, "num_layers": 3, "num_heads": 2, "mlp_dim": 10, "num_queries": 5}


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module.eval()


@pytest.mark.parametrize("every", [1, 2])
def test_blip2_as_in_transformers(tmp_path, every) -> None:
    from transformers import Blip2QFormerConfig
    from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel

    config = Blip2QFormerConfig(
        hidden_size=12,
        encoder_hidden_size=6,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=10,
        cross_attention_frequency=every,
    )
    theirs, features, queries = randomised(Blip2QFormerModel(config)), torch.randn(2, 7, 6), torch.randn(1, 5, 12)
    norm, projection = randomised(torch.nn.LayerNorm(6, eps=1e-6)), randomised(torch.nn.Linear(12, 8))
    tensors = {"query_tokens": queries, "vision_model.embeddings.class_embedding": torch.zeros(1)}
    parts = (("qformer", theirs), ("vision_model.post_layernorm", norm), ("language_projection", projection))
    for name, part in parts:
        tensors |= {f"{name}.{key}": value for key, value in part.state_dict().items()}
    published = {"qformer_config": config.to_dict(), "vision_config": {"layer_norm_eps": 1e-6}, "text_config": {"hidden_size": 8}}
    (tmp_path / "config.json").write_text(json.dumps(published | {"num_query_tokens": 5}))
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ours = QFormerConnector.from_pretrained(tmp_path)

    with torch.no_grad():
        read = theirs(query_embeds=queries.expand(2, -1, -1), encoder_hidden_states=norm(features)).last_hidden_state
        torch.testing.assert_close(ours(features), projection(read), atol=1e-5, rtol=1e-4)
    (layout,) = (layout for layout in ours.layouts if layout.name == "blip2-transformers")
    written = dict(layout.convert(ours.state_dict(), ours.config, to="theirs"))
    assert all(torch.equal(written[name], tensor) for name, tensor in tensors.items() if "embeddings" not in name)


@pytest.mark.parametrize("projection", ["opt_proj", "t5_proj"])
def test_lavis(tmp_path, projection) -> None:
    connector = randomised(QFormerConnector(dim=8, **SIZES))
    layout = next(one for one in connector.layouts if any(f"{projection}.*" == getattr(rule, "theirs", "") for rule in one.rules))
    tensors = dict(layout.convert(connector.state_dict(), connector.config, to="theirs"))
    assert "Qformer.bert.encoder.layer.2.crossattention.self.key.weight" in tensors
    tensors["Qformer.bert.encoder.layer.0.intermediate.dense.weight"] = torch.zeros(1)
    torch.save({"model": tensors}, tmp_path / "blip2.pth")
    again = QFormerConnector.from_pretrained(tmp_path / "blip2.pth", dim=8, **SIZES)
    features = torch.randn(1, 4, 6)
    assert torch.equal(again(features), connector(features))


def test_a_causal_query_does_not_see_those_behind_it() -> None:
    connector = randomised(QFormerConnector(dim=None, causal=True, **SIZES))
    features = torch.randn(1, 4, 6)
    before = connector(features)
    with torch.no_grad():
        connector.qformer.queries[:, 3].normal_()
    after = connector(features)
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert not torch.allclose(after[:, 3:], before[:, 3:])
