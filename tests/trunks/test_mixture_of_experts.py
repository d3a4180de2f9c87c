"""A mixture of experts against computing all of them, against a dense decoder and against transformers' Mixtral."""

import pytest
import torch
from torch.nn.functional import silu

from mmblocks import Decoder, TokenTable
from mmblocks.checkpoints.surgery.low_rank import attach_lora, merge_lora
from mmblocks.sequence.masks import Causal
from mmblocks.trunks import ForwardContext, MixtureOfExperts, MoEDecoder, Site, TrunkHooks, load_balance

WIDTH = 32
SIZES = {"dim": WIDTH, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "mlp_dim": 48}
TEXT = TokenTable.text(2, 9)


def filled(trunk):
    torch.manual_seed(0)
    for parameter in trunk.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return trunk.eval()


@pytest.mark.parametrize("experts_per_token", [1, 2, 4])
def test_each_token_gets_its_experts_weighted_sum(experts_per_token: int) -> None:
    layer = filled(MixtureOfExperts(hidden_dim=12, num_experts=4, experts_per_token=experts_per_token).build(Site(8)))
    x, table = torch.randn(3, 5, 8), TokenTable.text(3, 5)
    context = ForwardContext(table, table, Causal())
    mixed, probabilities = layer(x, context, 0), context.routers[0]
    every = torch.stack([down(silu(gate(x)) * up(x)) for gate, up, down in zip(layer.gate, layer.up, layer.down, strict=True)], -2)
    kept = probabilities >= probabilities.topk(experts_per_token).values[..., -1:]
    weights = probabilities * kept
    wanted = (every * (weights / weights.sum(-1, keepdim=True))[..., None]).sum(-2)
    torch.testing.assert_close(mixed, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(probabilities, layer.router(x).softmax(-1))


def test_load_balance_is_least_where_all_experts_are_used_alike() -> None:
    even = torch.eye(4).repeat(2, 2, 1) * 1e-3 + 0.25
    skewed = torch.tensor([0.7, 0.1, 0.1, 0.1]).expand(2, 8, 4)
    torch.testing.assert_close(load_balance(even, 1), torch.tensor(1.0), atol=1e-2, rtol=0)
    torch.testing.assert_close(load_balance(skewed, 1), torch.tensor(2.8))
    real = torch.ones(2, 8, dtype=torch.bool)
    real[:, 4:] = False
    changed = skewed.clone()
    changed[:, 4:] = torch.tensor([0.0, 0.0, 0.0, 1.0])
    torch.testing.assert_close(load_balance(changed, 1, real), torch.tensor(2.8))


def test_surgery_changes_nothing_but_rounding() -> None:
    decoder = filled(Decoder(**SIZES))
    trunk = MoEDecoder.from_decoder(decoder, num_experts=3)
    embeds = torch.randn(2, 9, WIDTH)
    torch.testing.assert_close(trunk(embeds, TEXT), decoder(embeds, TEXT), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradients_reach_every_parameter(checkpointed: bool) -> None:
    trunk = filled(MoEDecoder(**SIZES, num_experts=3)).train()
    trunk.checkpoint_activations = checkpointed
    routers: dict[int, torch.Tensor] = {}
    hooks = TrunkHooks(routers={0: lambda p: routers.update({0: p}), 1: lambda p: routers.update({1: p})})
    hidden = trunk(torch.randn(2, 9, WIDTH), TEXT, hooks=hooks)
    balance = sum(load_balance(probabilities, 2, ~TEXT.is_padding) for probabilities in routers.values())
    assert sorted(routers) == [0, 1] and routers[0].shape == (2, 9, 3)
    (hidden.square().mean() + 0.01 * balance).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trunk.parameters())


def test_cached_equals_full_and_saved_equals_loaded(tmp_path) -> None:
    trunk, embeds = filled(MoEDecoder(**SIZES, num_experts=3)), torch.randn(2, 9, WIDTH)
    full = trunk(embeds, TEXT)
    cache = trunk.new_cache(2, 9)
    steps = [trunk(embeds[:, i : i + 1], TEXT.slice(i, i + 1), cache) for i in range(9)]
    torch.testing.assert_close(torch.cat(steps, dim=1), full, atol=1e-5, rtol=1e-5)
    trunk.save_pretrained(tmp_path / "trunk")
    assert torch.equal(MoEDecoder.from_pretrained(tmp_path / "trunk")(embeds, TEXT), full)


def test_bfloat16_follows_float32() -> None:
    layer = filled(MixtureOfExperts(hidden_dim=12, num_experts=2).build(Site(8)))
    x, table = torch.randn(1, 7, 8), TokenTable.text(1, 7)
    context = ForwardContext(table, table, Causal())
    wanted = layer(x, context, 0)
    half, probabilities = layer.to(torch.bfloat16)(x.bfloat16(), context, 0), context.routers[0]
    assert half.dtype == torch.bfloat16 and probabilities.dtype == torch.float32
    assert (half.float() - wanted).norm() / wanted.norm() < 0.03


def test_states_equal_transformers_mixtral() -> None:
    transformers = pytest.importorskip("transformers")
    config = {
        "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    }  # fmt: skip
    theirs = filled(transformers.MixtralModel(transformers.MixtralConfig(**config)))
    layout = MoEDecoder.layouts[0]
    ours = MoEDecoder(**layout.arguments(config)).eval()
    ours.load_state_dict(dict(layout.convert(published(theirs), ours.config)))
    ids = torch.randint(40, (2, 9))
    wanted = theirs(ids).last_hidden_state
    torch.testing.assert_close(ours(theirs.embed_tokens(ids), TEXT), wanted, atol=2e-5, rtol=1e-4)


def published(model) -> dict[str, torch.Tensor]:
    """Names of the published files; newer transformers join the experts' weights when it reads them."""
    state = {}
    for name, value in model.state_dict().items():
        layer = name.split(".mlp.")[0]
        if name.endswith("experts.gate_up_proj"):
            for number, both in enumerate(value):
                for w, weight in zip(("w1", "w3"), both.chunk(2), strict=True):
                    state[f"model.{layer}.block_sparse_moe.experts.{number}.{w}.weight"] = weight
        elif name.endswith("experts.down_proj"):
            for number, weight in enumerate(value):
                state[f"model.{layer}.block_sparse_moe.experts.{number}.w2.weight"] = weight
        else:
            state[f"model.{name.replace('.mlp.gate.', '.block_sparse_moe.gate.')}"] = value
    return state


@pytest.mark.unchecked
def test_the_forward_is_one_graph() -> None:
    torch.compiler.reset()
    trunk, embeds = filled(MoEDecoder(**SIZES, num_experts=3)), torch.randn(2, 9, WIDTH)
    compiled = torch.compile(trunk, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(embeds, TEXT), trunk(embeds, TEXT), atol=1e-4, rtol=1e-4)


def test_more_experts_a_token_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="experts_per_token is 3; accepted: 1 to num_experts, 2"):
        MoEDecoder(**SIZES, num_experts=2, experts_per_token=3)


def test_adapters_of_experts_count_and_learn() -> None:
    """Merged into the weights they give the same numbers."""
    pytest.importorskip("peft")
    trunk, embeds = filled(MoEDecoder(**SIZES, num_experts=3)), torch.randn(2, 9, WIDTH)
    attach_lora(trunk, ["layers.{}.mlp.gate.{}", "layers.{}.mlp.up.{}", "layers.{}.mlp.down.{}"], rank=2)
    adapters = {name: parameter for name, parameter in trunk.named_parameters() if parameter.requires_grad}
    for parameter in adapters.values():
        torch.nn.init.normal_(parameter, std=0.3)
    adapted = trunk(embeds, TEXT)
    adapted.square().sum().backward()
    assert all(parameter.grad is not None for parameter in adapters.values())
    merge_lora(trunk)
    torch.testing.assert_close(adapted, trunk(embeds, TEXT), atol=1e-5, rtol=1e-5)
