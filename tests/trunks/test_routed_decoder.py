"""A routed decoder against computing every expert for every token, against a plain decoder, and against itself."""

from itertools import pairwise

import pytest
import torch

from mmblocks import Decoder, TokenTable
from mmblocks.trunks import MoEDecoder, RoutedDecoder, hidden_states, llama_layer
from mmblocks.trunks.routed.routed_decoder import PARTS
from mmblocks.trunks.routing import by_modality, text_when_alone
from tests.shared.random_tables import random_table

WIDTH = 32
SIZES = {"dim": WIDTH, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "mlp_dim": 48}
ROUTED = {"all": PARTS, "mlp": ("mlp",), "no norms": ("attention", "mlp"), "none": ()}
TEXT = TokenTable.text(2, 9)


def filled(trunk):
    """Nothing at one or zero, so that every weight shows."""
    generator = torch.Generator().manual_seed(0)
    for parameter in trunk.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return trunk.eval()


def routed_decoder(**options) -> RoutedDecoder:
    return filled(RoutedDecoder(**{**SIZES, "qk_norm": True, "qkv_bias": True, **options}))


def mixed_table(batch: int = 2) -> TokenTable:
    table = TokenTable.text(batch, 9)
    table.modality[0, 2:6] = 1
    table.modality[-1, 4:] = 1
    return table


def of_one_expert(trunk: RoutedDecoder, expert: str) -> Decoder:
    """The plain decoder that all tokens of one expert go through."""
    names = {name for name, _ in Decoder(**SIZES, qk_norm=True, qkv_bias=True).named_parameters()}
    weights = trunk.state_dict()

    def weight_of(name: str) -> torch.Tensor:
        path, tensor = name.rsplit(".", 1)
        keys = (name, f"{path}.{expert}.{tensor}", f"{path}.text.{tensor}")
        return next(weights[key] for key in keys if key in weights)

    plain = Decoder(**SIZES, qk_norm=True, qkv_bias=True).eval()
    plain.load_state_dict({name: weight_of(name) for name in names})
    return plain


@pytest.mark.parametrize("routed", ROUTED.values(), ids=ROUTED)
@pytest.mark.parametrize("number", [0, 1])
def test_tokens_of_one_modality_pass_a_plain_decoder_bit_for_bit(routed, number) -> None:
    trunk = routed_decoder(routed=routed)
    plain = of_one_expert(trunk, trunk.config["experts"][number])
    for table in (TEXT, TokenTable.text(1, 1), TokenTable.text(1, 7)):
        table = table._replace(modality=torch.full_like(table.modality, number))
        embeds = torch.randn(*table.shape, WIDTH)
        assert torch.equal(trunk(embeds, table), plain(embeds, table))
        with torch.no_grad():
            assert torch.equal(trunk(embeds, table), plain(embeds, table))


@pytest.mark.parametrize("routed", ROUTED.values(), ids=ROUTED)
def test_mixed_tokens_equal_both_ways_computed_and_chosen(routed) -> None:
    """One layer, whose parts are computed for all tokens with either expert's weights."""
    trunk = routed_decoder(routed=routed, num_layers=1)
    table, embeds = mixed_table(), torch.randn(2, 9, WIDTH)
    wanted = dense_and_mix(trunk, embeds, table)
    torch.testing.assert_close(trunk(embeds, table), wanted, atol=1e-5, rtol=1e-5)

    upstream = torch.randn(2, 9, WIDTH)
    parameters = list(trunk.parameters())
    ours = torch.autograd.grad(trunk(embeds, table), parameters, upstream)
    theirs = torch.autograd.grad(wanted, parameters, upstream)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)


def dense_and_mix(trunk: RoutedDecoder, x: torch.Tensor, table: TokenTable) -> torch.Tensor:
    from einops import rearrange
    from torch.nn.functional import scaled_dot_product_attention, silu

    from mmblocks.sequence.positions import rotary_table, rotate_half_split, sequential

    layer, vision = trunk.layers[0], (table.modality == 1)[..., None].float()
    head_dim = WIDTH // SIZES["num_heads"]
    rotary = rotary_table(sequential(table), head_dim, 10000.0)

    def both(part, x):
        maps = list(part.values())
        weight = vision if x.ndim == 3 else vision[..., None]
        return maps[0](x) * (1 - weight) + maps[-1](x) * weight

    def heads(project, norm, x):
        split = rearrange(both(project, x), "b l (h d) -> b l h d", d=head_dim)
        return rearrange(split if norm is None else both(norm, split), "b l h d -> b h l d")

    attention, normed = layer.attention, both(layer.attention_norm, x)
    query = rotate_half_split(heads(attention.query, attention.query_norm, normed), rotary)
    key = rotate_half_split(heads(attention.key, attention.key_norm, normed), rotary)
    value = heads(attention.value, None, normed)
    found = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    x = x + both(attention.output, rearrange(found, "b h l d -> b l (h d)"))
    normed = both(layer.mlp_norm, x)
    return trunk.norm(x + both(layer.mlp.down, silu(both(layer.mlp.gate, normed)) * both(layer.mlp.up, normed)))


@pytest.mark.parametrize("routed", ROUTED.values(), ids=ROUTED)
def test_surgery_changes_nothing(routed) -> None:
    plain = filled(Decoder(**SIZES, qk_norm=True))
    trunk = RoutedDecoder.from_decoder(plain, routed=routed)
    embeds = torch.randn(2, 9, WIDTH)
    assert torch.equal(trunk(embeds, TEXT), plain(embeds, TEXT))
    torch.testing.assert_close(trunk(embeds, mixed_table()), plain(embeds, TEXT), atol=1e-5, rtol=1e-5)
    own = {parameter.data_ptr() for parameter in trunk.parameters()}
    assert len(own) == len(list(trunk.parameters())) and not own & {p.data_ptr() for p in plain.parameters()}


def test_training_the_vision_weights_leaves_text_alone_as_it_was() -> None:
    """LlamaFusion: text weights are frozen."""
    trunk = RoutedDecoder.from_decoder(filled(Decoder(**SIZES)))
    embeds = torch.randn(2, 9, WIDTH)
    before = trunk(embeds, TEXT)
    for name, parameter in trunk.named_parameters():
        parameter.requires_grad_(".vision." in name)
    trunk.train()
    optimizer = torch.optim.SGD([p for p in trunk.parameters() if p.requires_grad], lr=0.1)
    mixed = trunk(embeds, mixed_table())
    mixed.square().mean().backward()
    optimizer.step()
    assert not torch.allclose(trunk(embeds, mixed_table()), mixed, atol=1e-3)
    assert torch.equal(trunk(embeds, TEXT), before)


def test_gradients_reach_every_parameter_even_without_images() -> None:
    trunk = routed_decoder()
    trunk(torch.randn(2, 9, WIDTH), TEXT).sum().backward()
    assert all(parameter.grad is not None for parameter in trunk.parameters())
    trunk(torch.randn(2, 9, WIDTH), mixed_table()).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in trunk.parameters())


@pytest.mark.parametrize("seed", range(3))
def test_cached_equals_full_with_images_that_arrive_later(seed: int) -> None:
    trunk = routed_decoder()
    table = random_table(torch.Generator().manual_seed(seed), length=24)
    embeds = torch.randn(3, 24, WIDTH)
    full = trunk(embeds, table)
    inside = (table.order[:, 1:] == table.order[:, :-1]) & (table.document[:, 1:] == table.document[:, :-1])
    cuts = [0, *(i + 1 for i in range(23) if not inside[:, i].any()), 24]
    cache = trunk.new_cache(3, 24)
    steps = [trunk(embeds[:, a:b], table.slice(a, b), cache) for a, b in pairwise(cuts)]
    real = ~table.is_padding
    torch.testing.assert_close(torch.cat(steps, dim=1)[real], full[real], atol=1e-5, rtol=1e-5)


def test_one_token_alone_goes_to_its_own_weights_unless_upstreams_rule_is_asked_for() -> None:
    trunk = routed_decoder()
    table = mixed_table(1).slice(2, 3)
    embeds = torch.randn(1, 1, WIDTH)
    as_text = trunk(embeds, table._replace(modality=table.modality * 0))
    assert not torch.allclose(trunk(embeds, table), as_text, atol=1e-3)
    trunk.route = text_when_alone
    assert torch.equal(trunk(embeds, table), as_text)


def test_a_rule_of_ones_own() -> None:
    """Noised copies of images have weights of their own, and are images all the same."""
    trunk = routed_decoder(experts=("understanding", "generation"), route=lambda table: table.noisy.long())
    table, embeds = mixed_table(), torch.randn(2, 9, WIDTH)
    clean = trunk(embeds, table)
    assert torch.equal(clean, of_one_expert(trunk, "understanding")(embeds, table))
    table.noisy[0, 2:6] = True
    table.span[0, 2:6] = 0
    assert not torch.allclose(trunk(embeds, table), clean, atol=1e-3)


def test_padding_and_modalities_without_weights_go_to_the_first_expert() -> None:
    modality = torch.tensor([[-1, 0, 1, 2]])
    assert by_modality(TokenTable.text(1, 4)._replace(modality=modality)).tolist() == [[0, 0, 1, 0]]


def test_hidden_states_are_in_reading_order() -> None:
    trunk, table, embeds = routed_decoder(), mixed_table(), torch.randn(2, 9, WIDTH)
    states = hidden_states(trunk, embeds, table, range(4))
    assert torch.equal(states[0], embeds) and torch.equal(states[3], trunk(embeds, table))
    shorter = routed_decoder(num_layers=2)
    shorter.load_state_dict({name: value for name, value in trunk.state_dict().items() if not name.startswith("layers.2.")})
    torch.testing.assert_close(shorter.norm(states[2]), shorter(embeds, table))


def test_activation_checkpointing_changes_no_gradient() -> None:
    trunk = routed_decoder(dropout=0.2).train()
    table, embeds = mixed_table(), torch.randn(2, 9, WIDTH)
    gradients = []
    for checkpointed in (False, True):
        trunk.checkpoint_activations = checkpointed
        torch.manual_seed(3)
        gradients.append(torch.autograd.grad(trunk(embeds, table).square().sum(), list(trunk.parameters())))
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_bfloat16_follows_float32() -> None:
    trunk, table, embeds = routed_decoder(), mixed_table(), torch.randn(2, 9, WIDTH)
    wanted = trunk(embeds, table)
    half = trunk.to(torch.bfloat16)(embeds.bfloat16(), table)
    assert half.dtype == torch.bfloat16
    assert (half.float() - wanted).norm() / wanted.norm() < 0.03


def test_saved_and_loaded(tmp_path) -> None:
    trunk = routed_decoder(routed=("mlp",))
    trunk.save_pretrained(tmp_path / "trunk")
    embeds = torch.randn(2, 9, WIDTH)
    assert torch.equal(RoutedDecoder.from_pretrained(tmp_path / "trunk")(embeds, mixed_table()), trunk(embeds, mixed_table()))


@pytest.mark.unchecked
def test_the_forward_and_its_gradients_are_one_graph() -> None:
    torch.compiler.reset()
    trunk, table, embeds = routed_decoder(num_layers=2), mixed_table(), torch.randn(2, 9, WIDTH)
    compiled = torch.compile(trunk, fullgraph=True, backend="aot_eager")
    parameters = list(trunk.parameters())
    for case in (table, TEXT):
        outs = (compiled(embeds, case), trunk(embeds, case))
        results = [[out, *torch.autograd.grad(out.square().sum(), parameters)] for out in outs]
        for got, wanted in zip(*results, strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": ()}, "experts is ()"),
        ({"experts": ("text", "text")}, "experts is"),
        ({"experts": ("text", "smell")}, "smell.*are no modalities"),
        ({"routed": ("ears",)}, "routed is"),
    ],
)
def test_experts_and_parts_that_mean_nothing_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        routed_decoder(**options)


def test_surgery_on_another_class_is_refused() -> None:
    with pytest.raises(TypeError, match="decoder is a RoutedDecoder; accepted: a plain Decoder"):
        RoutedDecoder.from_decoder(routed_decoder())
    with pytest.raises(ValueError, match=r"decoder has .*layers.*, which a MoEDecoder cannot have"):
        MoEDecoder.from_decoder(Decoder(dim=WIDTH, num_layers=1, layers=llama_layer(num_heads=4, mlp_dim=8)), num_experts=2)
