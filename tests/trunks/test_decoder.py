"""A decoder against itself: cached and full, packed and separate, padded and single; and against transformers' Llama."""

import subprocess
import sys
from itertools import pairwise

import pytest
import torch

from mmblocks.sequence.masks import Dense, visible
from mmblocks.sequence.positions import v2pe
from mmblocks.sequence.tokens import TokenTable
from mmblocks.trunks import Attention, ChameleonTrunk, LlamaGenTrunk, Rotary, hidden_states
from mmblocks.trunks.decoder import Decoder
from tests.shared.random_tables import random_table

WIDTH = 32
VARIANTS = {
    "plain": {},
    "grouped": {"num_kv_heads": 2},
    "one_kv_head_wide": {"num_kv_heads": 1, "head_dim": 24},
    "qk_norm": {"qk_norm": True, "head_dim": 12},
    "biases": {"qkv_bias": True},
    "linear": {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "rounded": {"rope_dtype": "bfloat16"},
}


def decoder(**options) -> Decoder:
    torch.manual_seed(0)
    trunk = Decoder(**{"dim": WIDTH, "num_layers": 3, "num_heads": 4, "mlp_dim": 48, **options}).eval()
    for parameter in trunk.parameters():  # nothing at one or zero, so that every weight shows
        torch.nn.init.normal_(parameter, std=0.3)
    return trunk


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("cuts", [(1, 2, 3, 4, 5, 6, 7, 8, 9, 10), (5, 10), (3, 4, 10), (10,)])
def test_cached_equals_full(options, cuts) -> None:
    trunk = decoder(**options)
    embeds, table = torch.randn(2, 10, WIDTH), TokenTable.text(2, 10)
    cache = trunk.new_cache(2, 12)
    starts = (0, *cuts[:-1])
    steps = [trunk(embeds[:, a:b], table.slice(a, b), cache) for a, b in zip(starts, cuts, strict=True)]
    torch.testing.assert_close(torch.cat(steps, dim=1), trunk(embeds, table), atol=1e-5, rtol=1e-5)
    assert cache.length == 10


@pytest.mark.parametrize("seed", range(6))
def test_cached_equals_full_with_images_padding_and_packed_documents(seed: int) -> None:
    trunk = decoder(num_kv_heads=2)
    table = random_table(torch.Generator().manual_seed(seed), length=30)
    embeds = torch.randn(3, 30, WIDTH)
    full = trunk(embeds, table)
    # An image that attends within itself has to come in one piece: cut where no row is inside one.
    inside = (table.order[:, 1:] == table.order[:, :-1]) & (table.document[:, 1:] == table.document[:, :-1])
    cuts = [0, *(i + 1 for i in range(29) if not inside[:, i].any() and i % 3 == 0), 30]
    cache = trunk.new_cache(3, 30)
    steps = [trunk(embeds[:, a:b], table.slice(a, b), cache) for a, b in pairwise(cuts)]
    real = ~table.is_padding
    torch.testing.assert_close(torch.cat(steps, dim=1)[real], full[real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("seed", range(4))
def test_packed_and_padded_equal_separate(options, seed: int) -> None:
    trunk = decoder(**options)
    table = random_table(torch.Generator().manual_seed(seed))
    embeds = torch.randn(3, 40, WIDTH)
    together = trunk(embeds, table)
    for row in range(3):
        for document in table.document[row].unique().tolist():
            if document < 0:
                continue
            here = (table.document[row] == document).nonzero().flatten()
            alone = TokenTable(*(column[row : row + 1, here] for column in table))
            separate = trunk(embeds[row : row + 1, here], alone)
            torch.testing.assert_close(together[row, here], separate[0], atol=1e-5, rtol=1e-5)


def test_right_padding_leaves_the_rest_as_it_is() -> None:
    trunk = decoder()
    table = TokenTable.padding(2, 8)
    table.write(0, TokenTable.text(2, 5))
    embeds = torch.randn(2, 8, WIDTH)
    torch.testing.assert_close(trunk(embeds, table)[:, :5], trunk(embeds[:, :5], TokenTable.text(2, 5)))


def test_long_rows_attended_span_by_span_equal_the_dense_mask() -> None:
    trunk = decoder(num_kv_heads=2)
    table = random_table(torch.Generator().manual_seed(1), batch=2, length=1100)
    table = TokenTable(*(torch.cat([c[:, :40]] * 28, dim=1)[:, :1100] for c in table))
    table = table._replace(document=table.document + 10 * (torch.arange(1100) // 40))
    embeds = torch.randn(2, 1100, WIDTH)
    real = ~table.is_padding
    dense = trunk(embeds, table, mask=Dense(visible(table)))
    torch.testing.assert_close(trunk(embeds, table)[real], dense[real], atol=1e-5, rtol=1e-5)


def test_a_rule_of_ones_own() -> None:
    """A window of two tokens: the first of three no longer matters to the third."""
    trunk = decoder(num_layers=1)

    def window(queries: TokenTable, keys: TokenTable) -> torch.Tensor:
        near = queries.order[:, :, None] - keys.order[:, None, :]
        return (near >= 0) & (near < 2)

    embeds, table = torch.randn(1, 3, WIDTH), TokenTable.text(1, 3)
    changed = embeds.clone()
    changed[:, 0] += 1
    assert torch.equal(trunk(embeds, table, mask=window)[:, 2], trunk(changed, table, mask=window)[:, 2])
    assert not torch.equal(trunk(embeds, table)[:, 2], trunk(changed, table)[:, 2])


def test_a_position_scheme_of_ones_own() -> None:
    """V2PE: with an increment of one it is the plain scheme, with a smaller one it is not; cached steps continue it."""
    table = TokenTable.text(1, 6)
    table.span[0, 2:5] = 0
    embeds = torch.randn(1, 6, WIDTH)
    plain = decoder()(embeds, table)
    assert torch.equal(decoder(positions=lambda t: v2pe(t, 1.0))(embeds, table), plain)
    assert not torch.allclose(decoder(positions=lambda t: v2pe(t, 1 / 16))(embeds, table), plain, atol=1e-3)

    trunk = decoder(positions=lambda t: v2pe(t, 1 / 16))
    cache = trunk.new_cache(1, 6)
    steps = [trunk(embeds[:, i : i + 1], table.slice(i, i + 1), cache) for i in range(6)]
    torch.testing.assert_close(torch.cat(steps, dim=1), trunk(embeds, table), atol=1e-5, rtol=1e-5)


def test_hidden_states_are_those_after_so_many_layers() -> None:
    trunk = decoder()
    embeds, table = torch.randn(1, 4, WIDTH), TokenTable.text(1, 4)
    last, first, third = hidden_states(trunk, embeds, table, [3, 0, 2])
    assert torch.equal(first, embeds)
    assert torch.equal(last, trunk(embeds, table))
    assert torch.equal(trunk.norm(trunk.run(third, trunk.context(embeds, table), [(2, trunk.layers[2])])), last)
    with pytest.raises(ValueError, match=r"hooks.hidden has \[4\]; accepted: 0 to 3"):
        hidden_states(trunk, embeds, table, [4])


def test_activation_checkpointing_changes_no_gradient() -> None:
    trunk = decoder(dropout=0.2).train()
    embeds, table = torch.randn(2, 6, WIDTH), TokenTable.text(2, 6)
    gradients = []
    for checkpointed in (False, True):
        trunk.checkpoint_activations = checkpointed
        torch.manual_seed(3)
        loss = trunk(embeds, table).square().sum()
        gradients.append(torch.autograd.grad(loss, list(trunk.parameters())))
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_dropout_acts_while_training_only() -> None:
    trunk = decoder(dropout=0.5)
    embeds, table = torch.randn(1, 4, WIDTH), TokenTable.text(1, 4)
    assert torch.equal(trunk(embeds, table), trunk(embeds, table))
    trunk.train()
    assert not torch.equal(trunk(embeds, table), trunk(embeds, table))


def test_bfloat16_follows_float32() -> None:
    trunk = decoder(num_kv_heads=2, qk_norm=True)
    embeds = torch.randn(2, 9, WIDTH)
    table = TokenTable.text(2, 9)
    wanted = trunk(embeds, table)
    half = trunk.to(torch.bfloat16)(embeds.bfloat16(), table)
    assert half.dtype == torch.bfloat16
    assert (half.float() - wanted).norm() / wanted.norm() < 0.03


def test_two_generations_can_run_on_one_trunk() -> None:
    trunk = decoder()
    embeds = torch.randn(2, 6, WIDTH)
    table = TokenTable.text(1, 6)
    caches = [trunk.new_cache(1, 6) for _ in range(2)]
    for i in range(6):
        for row, cache in enumerate(caches):
            last = trunk(embeds[row : row + 1, i : i + 1], table.slice(i, i + 1), cache)
    torch.testing.assert_close(last, trunk(embeds[1:], table)[:, -1:], atol=1e-5, rtol=1e-5)


def test_a_cache_can_drop_and_repeat_rows() -> None:
    trunk = decoder()
    embeds, table = torch.randn(3, 5, WIDTH), TokenTable.text(3, 5)
    cache = trunk.new_cache(3, 5)
    trunk(embeds[:, :4], table.slice(0, 4), cache)
    index = torch.tensor([2, 0, 2])
    chosen = cache.rows(index)
    last = trunk(embeds[index, 4:], table.slice(4, 5), chosen)
    torch.testing.assert_close(last, trunk(embeds, table)[index, 4:], atol=1e-5, rtol=1e-5)


def test_a_full_cache_says_so() -> None:
    trunk = decoder()
    cache = trunk.new_cache(1, 4)
    assert cache.num_bytes == 2 * 3 * 4 * WIDTH * 4
    with pytest.raises(ValueError, match="5 tokens after 0 do not fit a cache of 4"):
        trunk(torch.randn(1, 5, WIDTH), TokenTable.text(1, 5), cache)
    with pytest.raises(ValueError, match="table has 2 rows; the cache was made for 1"):
        trunk(torch.randn(2, 1, WIDTH), TokenTable.text(2, 1), cache)
    assert cache.length == 0


@pytest.mark.unchecked
def test_embeds_that_do_not_fit_the_table_are_refused() -> None:
    with pytest.raises(ValueError, match=r"embeds \(1, 5, 32\) and a table \(1, 4\)"):
        decoder()(torch.randn(1, 5, WIDTH), TokenTable.text(1, 4))
    with pytest.raises(ValueError, match=r"\(1, 4, 31\)"):
        decoder()(torch.randn(1, 4, 31), TokenTable.text(1, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 5}, "dim is 32 and num_heads 5"),
        ({"num_kv_heads": 3}, "num_kv_heads is 3"),
        ({"head_dim": 7}, "head_dim is 7"),
        ({"rope_scaling": {"type": "ntk"}}, "rope_scaling is"),
        ({"num_layers": -1}, "num_layers is -1; accepted: 0 or more"),
        ({"embed_scale": 0.0}, "embed_scale is 0.0; accepted: above 0"),
        ({"dropout": 1.0}, "dropout is 1.0; accepted: 0 or more, below 1"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        decoder(**options)


def test_angles_can_keep_the_rounding_of_the_dtype_that_a_model_was_made_in() -> None:
    exact, rounded = decoder(), decoder(rope_dtype="bfloat16")
    embeds, table = torch.randn(1, 9, WIDTH), TokenTable.text(1, 9)

    def cosines(trunk):
        context = trunk.context(embeds, table)
        trunk.layers[0].prepare(context)
        return context.angles[trunk.layers[0].attention.angles].cos

    assert torch.equal(cosines(rounded), cosines(exact).bfloat16().float())
    assert not torch.equal(cosines(rounded), cosines(exact))
    with pytest.raises(ValueError, match="rope_dtype is 'float8'; accepted: None, 'bfloat16', 'float16'"):
        decoder(rope_dtype="float8")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Attention(num_heads=0), "num_heads is 0; accepted: 1 or more"),
        (lambda: Attention(num_heads=4, num_kv_heads=0), "num_kv_heads is 0; it must divide num_heads, 4"),
        (lambda: Attention(num_heads=4, num_kv_heads=-2), "num_kv_heads is -2"),
        (lambda: Attention(num_heads=4, head_dim=0), "head_dim is 0; accepted: 1 or more, or None"),
    ],
)
def test_heads_that_there_cannot_be_are_refused(build, message) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_a_description_does_not_change_with_a_dict_that_it_was_given() -> None:
    scaling = {"type": "longrope", "factor": 2.0, "max_position": 4, "short_factor": [1.0], "long_factor": [2.0]}
    rotary = Rotary(scaling=scaling)
    scaling["factor"] = 9.0
    scaling["long_factor"].append(3.0)
    assert rotary.scaling is not None
    assert (rotary.scaling["factor"], rotary.scaling["long_factor"]) == (2.0, (2.0,))


@pytest.mark.parametrize(
    "scaling",
    [
        {"type": "dynamic", "factor": 2.0, "max_position": 4},
        {"type": "longrope", "factor": 2.0, "max_position": 4, "short_factor": (1.0,) * 4, "long_factor": (2.0,) * 4},
    ],
)
def test_rows_without_tokens_have_scaled_angles_too(scaling) -> None:
    trunk = Decoder(dim=32, num_layers=1, num_heads=4, mlp_dim=48, rope_scaling=scaling)
    assert trunk(torch.randn(2, 0, 32), TokenTable.text(2, 0)).shape == (2, 0, 32)


WRONG = {
    'Attention(num_heads=4, qk_norm_over="heads")': "ValueError qk_norm_over is 'heads'; accepted: 'head', 'each_head'",
    "Layer(mixer=Norm(), feed_forward=GatedMLP(hidden_dim=8))": "TypeError mixer is a Norm; accepted: a Part",
    "Layer(mixer=Attention(num_heads=4), feed_forward=Layer)": "TypeError feed_forward is Layer; accepted: a Part",
    "Decoder(dim=8, num_layers=1, layers=[])": "TypeError layers has []; accepted: a description such as Layer",
    'Decoder(dim=8, num_layers=1, layers={"a": Layer})': "TypeError layers has <class",
}


def test_other_things_than_descriptions_are_refused() -> None:
    """In a process of its own, without the types that tests check before the library does."""
    lines = ["from mmblocks import Decoder", "from mmblocks.trunks import Attention, GatedMLP, Layer, Norm"]
    for code in WRONG:
        lines += ["try:", f"    {code}", "except Exception as error:", "    print(type(error).__name__, error)"]
    found = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True).stdout.splitlines()
    for line, wanted in zip(found, WRONG.values(), strict=True):
        assert line.startswith(wanted)


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (ChameleonTrunk, {"qk_norm": True}),
        (LlamaGenTrunk, {"rope_scaling": {"type": "linear", "factor": 2.0}}),
        (LlamaGenTrunk, {"rope_dtype": "bfloat16"}),
    ],
)
def test_arguments_that_a_trunk_has_its_own_way_for_are_refused(cls, options) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} is .*; accepted by {cls.__name__}: (False|None)"):
        cls(dim=32, num_layers=1, num_heads=4, mlp_dim=8, **options)
    cls(dim=32, num_layers=1, num_heads=4, mlp_dim=8, **{name: False if name == "qk_norm" else None})
