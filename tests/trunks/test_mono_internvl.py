"""Mono-InternVL's files and numbers, against its layer written out plainly."""

import json

import pytest
import torch
from einops import rearrange
from safetensors.torch import save_file
from torch.nn.functional import linear, rms_norm, silu

from mmblocks import LMHead, TextEmbedding, TokenTable
from mmblocks.sequence.tokens import Modality
from mmblocks.trunks import RoutedDecoder

HEADS, KV_HEADS, HEAD_DIM, WIDTH, INNER, LAYERS, IDS = 6, 2, 8, 40, 56, 2, 11
LLM = {
    "model_type": "internlm2",
    "vocab_size": IDS,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5000.0,
    "rope_scaling": None,
    "bias": False,
}


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"model.tok_embeddings": (IDS, WIDTH), "output": (IDS, WIDTH), "model.norm": (WIDTH,)}
    for number in range(LAYERS):
        layer = f"model.layers.{number}"
        shapes |= {
            f"{layer}.attention.wqkv": ((HEADS + 2 * KV_HEADS) * HEAD_DIM, WIDTH),
            f"{layer}.attention.wo": (WIDTH, HEADS * HEAD_DIM),
            **{f"{layer}.{norm}": (WIDTH,) for norm in ("attention_norm", "ffn_norm")},
            **{f"{layer}.{mlp}.{name}": (INNER, WIDTH) for mlp in ("feed_forward", "feed_forward_ve") for name in ("w1", "w3")},
            **{f"{layer}.{mlp}.w2": (WIDTH, INNER) for mlp in ("feed_forward", "feed_forward_ve")},
        }
    state = {f"language_model.{name}.weight": 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {**state, "vision_model.embeddings.class_embedding": torch.zeros(1, 1, 4), "mlp1.1.weight": torch.zeros(WIDTH, 4)}


@pytest.fixture(scope="module")
def folder(published, tmp_path_factory):
    where = tmp_path_factory.mktemp("mono")
    (where / "config.json").write_text(json.dumps({"llm_config": LLM}))
    save_file(published, where / "model.safetensors")
    return where


def turned(x: torch.Tensor) -> torch.Tensor:
    """Heads (B, L, H, C) with their rotary angles."""
    angle = torch.arange(x.shape[1])[:, None] * 5000.0 ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    cos, sin = (torch.cat([f(angle), f(angle)], dim=-1)[:, None] for f in (torch.cos, torch.sin))
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def plainly(state: dict[str, torch.Tensor], x: torch.Tensor, vision: torch.Tensor) -> torch.Tensor:
    """The model: every token through both feed-forward layers, mixed by who is visual."""

    def weight(name: str) -> torch.Tensor:
        return state[f"language_model.model.{name}.weight"]

    future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    for number in range(LAYERS):
        layer = f"layers.{number}"
        fused = linear(rms_norm(x, (WIDTH,), weight(f"{layer}.attention_norm"), 1e-5), weight(f"{layer}.attention.wqkv"))
        groups = rearrange(fused, "b l (k g c) -> b l k g c", k=KV_HEADS, c=HEAD_DIM)
        query = turned(groups[..., :-2, :].flatten(2, 3))
        key, value = (part.repeat_interleave(HEADS // KV_HEADS, dim=2) for part in (turned(groups[..., -2, :]), groups[..., -1, :]))
        scores = torch.einsum("blhc,bmhc->bhlm", query, key) / HEAD_DIM**0.5
        weights = scores.masked_fill(future, float("-inf")).softmax(dim=-1)
        found = torch.einsum("bhlm,bmhc->blhc", weights, value).flatten(2)
        x = x + linear(found, weight(f"{layer}.attention.wo"))
        normed = rms_norm(x, (WIDTH,), weight(f"{layer}.ffn_norm"), 1e-5)
        text, seen = (
            linear(
                silu(linear(normed, weight(f"{layer}.{mlp}.w1"))) * linear(normed, weight(f"{layer}.{mlp}.w3")),
                weight(f"{layer}.{mlp}.w2"),
            )
            for mlp in ("feed_forward", "feed_forward_ve")
        )
        x = x + torch.where(vision[..., None], seen, text)
    return rms_norm(x, (WIDTH,), weight("norm"), 1e-5)


def test_the_numbers_are_those_of_the_layer_written_out(folder, published) -> None:
    trunk = RoutedDecoder.from_pretrained(folder)
    assert trunk.origin.layout == "mono-internvl"
    table = TokenTable.text(2, 9)
    table.modality[0, 2:6] = table.modality[1, 5:8] = Modality.VISION.value
    embeds = torch.randn(2, 9, WIDTH)
    wanted = plainly(published, embeds, table.modality == Modality.VISION.value)
    torch.testing.assert_close(trunk(embeds, table), wanted, atol=1e-5, rtol=1e-4)
    cache = trunk.new_cache(2, 9)  # visual tokens after a cache go to the visual weights too, unlike upstream
    steps = [trunk(embeds[:, a:b], table.slice(a, b), cache) for a, b in ((0, 5), (5, 6), (6, 9))]
    torch.testing.assert_close(torch.cat(steps, 1), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("cls", [RoutedDecoder, TextEmbedding, LMHead])
def test_there_and_back_byte_for_byte(folder, published, cls) -> None:
    part = cls.from_pretrained(folder)
    (layout,) = (layout for layout in cls.layouts if layout.name == "mono-internvl")
    written = dict(layout.convert(part.state_dict(), part.config, to="theirs"))
    assert all(torch.equal(value, published[name]) for name, value in written.items())
    assert len(written) == (1 if cls is not RoutedDecoder else 10 * LAYERS + 1)


def test_biases_are_refused(tmp_path, published) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"llm_config": {**LLM, "bias": True}}))
    save_file(published, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="bias of the llm_config is true"):
        RoutedDecoder.from_pretrained(tmp_path, layout="mono-internvl")
