"""Dropping tokens between layers: the same numbers as masking them there, in prefill and in decoding, and less to hold."""

from functools import partial

import pytest
import torch

from mmblocks import GREEDY, Block, Generation, TextGrammar, image, text
from mmblocks.layers.flop_count import count_flops
from mmblocks.layers.reduction.token_importance import prunable
from mmblocks.sequence import Conditions
from mmblocks.sequence.masks import Dense, lower, visible
from mmblocks.sequence.tokens import Modality, TokenTable
from mmblocks.trunks import AdaLN, Attention, GatedMLP, Layer, Norm
from mmblocks.trunks.decoder import Decoder
from mmblocks.trunks.hooks import TrunkHooks
from mmblocks.trunks.pruned.decoder import PrunedDecoder
from tests.shared.random_tables import random_table
from tests.shared.tiny import EOS, TOKENIZER, VOCABULARY, tiny_model
from tests.shared.tiny import WIDTH as TINY_WIDTH

WIDTH = 32
PRUNING = ((1, 0.5), (3, 0.25))


def pruned(pruning=PRUNING, **options) -> PrunedDecoder:
    torch.manual_seed(0)
    trunk = Decoder(dim=WIDTH, num_layers=4, num_heads=4, num_kv_heads=2, mlp_dim=48, qk_norm=True)
    for parameter in trunk.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return PrunedDecoder(trunk=trunk, pruning=pruning, **options).eval()


def prompt(batch: int = 1, before: int = 2, image: int = 12, after: int = 4, *, one_step: bool = False) -> TokenTable:
    """Text, an image, text."""
    table = TokenTable.text(batch, before + image + after)
    here = slice(before, before + image)
    table.modality[:, here], table.span[:, here] = Modality.VISION, 0
    if one_step:
        table.order[:, here] = before
    return table


def masked(
    part: PrunedDecoder, embeds: torch.Tensor, table: TokenTable, kept: list[torch.Tensor], seen=None, conditions=None
) -> torch.Tensor:
    """All tokens through all layers; from each stage on, keys that were dropped are masked."""
    trunk, x = part.trunk, embeds
    seen = visible(table) if seen is None else seen
    for stage, places in zip(part.stages, [None, *kept], strict=True):
        if places is not None:
            left = torch.zeros(*table.shape, dtype=torch.long).scatter_add(1, places.clamp(min=0), (places >= 0).long()).bool()
            seen = (seen & left[:, None]) | torch.eye(table.shape[1], dtype=torch.bool)
        context = trunk.context(embeds, table, mask=Dense(seen), conditions=conditions)
        x = trunk.run(x, context, list(enumerate(trunk.layers))[stage.first : stage.stop])
    return trunk.norm(x)


def last_kept(places: torch.Tensor, length: int) -> torch.Tensor:
    return torch.zeros(len(places), length, dtype=torch.long).scatter_add(1, places.clamp(min=0), (places >= 0).long()).bool()


@pytest.mark.parametrize("importance", ["instruction", "visual"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("lowered", [True, False])
def test_dropping_equals_masking_with_images_padding_and_packed_documents(importance, seed: int, lowered: bool) -> None:
    part = pruned(importance=importance)
    table = random_table(torch.Generator().manual_seed(seed), noisy=seed == 2)
    embeds, kept = torch.randn(3, 40, WIDTH), []
    made = part(embeds, table, mask=lower(table) if lowered else None, kept=kept)
    left = last_kept(kept[-1], 40)
    torch.testing.assert_close(made[left], masked(part, embeds, table, kept)[left], atol=1e-4, rtol=1e-4)
    assert not made[~left].any()
    counts, may_go = prunable(table).sum(1), prunable(table)
    for places, share in zip(kept, (0.5, 0.25), strict=True):
        there = last_kept(places, 40)
        assert torch.equal((there & may_go).sum(1), (counts * share).long())
        assert torch.equal(there & ~may_go, ~may_go & ~table.is_padding)
    assert kept[-1].shape[1] < 40


@pytest.mark.parametrize("one_step", [True, False])
@pytest.mark.parametrize("left", [0, 3])
def test_decoding_goes_on_behind_shorter_rows_and_equals_masking(one_step: bool, left: int) -> None:
    part, table = pruned(), prompt(2, one_step=one_step)
    for column, blank in zip(table, TokenTable.padding(1, left), strict=True):
        column[:1, :left] = blank  # the first row is shorter, and padded on the left
    embeds, cache, kept = torch.randn(2, 23, WIDTH), part.new_cache(2, 23), []
    made = [part(embeds[:, :18], table, cache, mask=cache.mask_for(table, lowered=lower(table)), kept=kept)]
    for step in range(18, 23):
        newest = TokenTable.text(2, 1)
        newest.order[:] = step
        made.append(part(embeds[:, step : step + 1], newest, cache, mask=cache.mask_for(newest)))
    newer = torch.arange(18, 23).expand(2, -1)
    wanted = masked(part, embeds, cache.table, [torch.cat([places, newer], dim=1) for places in kept])
    there = last_kept(torch.cat([kept[-1], newer], dim=1), 23)
    torch.testing.assert_close(torch.cat(made, dim=1)[there], wanted[there], atol=1e-4, rtol=1e-4)
    assert cache.length == 23 and [held.cache.length for held in cache.stages] == [23, 17, 14]
    assert cache.num_bytes == sum(layers * tokens for layers, tokens in ((1, 23), (2, 17), (1, 14))) * 2 * 2 * 2 * 8 * 4


def test_a_later_image_is_pruned_too_and_rows_can_be_chosen() -> None:
    part, cache, embeds = pruned(), pruned().new_cache(2, 40), torch.randn(2, 40, WIDTH)
    first, second = prompt(2), prompt(2)
    second = second._replace(order=second.order + 18, span=torch.where(second.span == 0, 1, second.span))
    kept, kept_later = [], []
    part(embeds[:, :18], first, cache, kept=kept)
    one = cache.rows(torch.tensor([1]))
    part(embeds[:, 18:36], second, cache, kept=kept_later)
    alone = part(embeds[1:, 18:36], second.rows(torch.tensor([1])), one)
    both = [torch.cat([a, b + 18], dim=1) for a, b in zip(kept, kept_later, strict=True)]
    there = last_kept(both[-1], 36)
    wanted = masked(part, embeds[:, :36], cache.table, both)
    torch.testing.assert_close(alone[there[1:, 18:]], wanted[1:][there[1:] & (torch.arange(36) >= 18)], atol=1e-4, rtol=1e-4)


def test_text_alone_is_untouched_and_so_are_tokens_that_are_asked() -> None:
    part, embeds, table = pruned(), torch.randn(2, 18, WIDTH), TokenTable.text(2, 18)
    assert torch.equal(part(embeds, table), part.trunk(embeds, table))
    table = prompt(2)
    table.target[:, 5:9] = 0
    kept = []
    part(embeds, table, kept=kept)
    assert (kept[-1][:, :, None] == torch.arange(5, 9)).any(1).all()


def test_the_instruction_decides_what_stays() -> None:
    part, table = pruned(pruning=((1, 0.1),)), prompt(image=10)
    embeds = torch.randn(1, 16, WIDTH)
    kept, changed = [], []
    part(embeds, table, kept=kept)
    for seed in range(6):
        torch.manual_seed(seed)
        part(torch.cat([embeds[:, :-1], torch.randn(1, 1, WIDTH)], dim=1), table, kept=changed)
    assert len({tuple(places[0].tolist()) for places in kept + changed}) > 1


@pytest.mark.parametrize("one_step", [False, True])
def test_hooks_see_and_change_what_is_left(one_step: bool) -> None:
    part, table = pruned(), prompt(2, one_step=one_step)
    embeds, kept, seen = torch.randn(2, 18, WIDTH), [], {}
    plain = part(embeds, table, kept=kept)
    hooks = TrunkHooks(
        hidden={n: partial(seen.__setitem__, ("hidden", n)) for n in range(5)},
        attention={n: partial(seen.__setitem__, ("attention", n)) for n in range(4)},
        heads={3: partial(seen.__setitem__, "heads")},
    )
    torch.testing.assert_close(part(embeds, table, hooks=hooks), plain, atol=1e-5, rtol=1e-4)
    lengths = [18, kept[0].shape[1], kept[0].shape[1], kept[1].shape[1]]
    assert [seen["attention", n].shape[2:] for n in range(4)] == [(length, length) for length in lengths]
    torch.testing.assert_close(part.trunk.norm(seen["hidden", 4]), plain.gather(1, kept[1][..., None].expand(-1, -1, WIDTH)))

    assert torch.equal(part(embeds * 2, table, hooks=TrunkHooks(hidden={0: lambda _: embeds})), plain)
    without = part(embeds, table, hooks=TrunkHooks(heads={3: lambda found: found * 0}))
    with torch.no_grad():
        part.trunk.layers[3].attention.output.weight.zero_()
    torch.testing.assert_close(part(embeds, table), without)
    with pytest.raises(ValueError, match="accepted: 0 to 3"):
        part(embeds, table, hooks=TrunkHooks(heads={4: print}))


def test_decoding_with_hooks() -> None:
    part, table, embeds, seen = pruned(), prompt(), torch.randn(1, 20, WIDTH), []
    table = TokenTable(*(torch.cat([column, column[:, -1:], column[:, -1:]], 1) for column in table))
    caches = [part.new_cache(1, 20) for _ in range(2)]
    hooks = TrunkHooks(attention={3: seen.append}, hidden={2: lambda x: x})
    for start, stop in ((0, 18), (18, 19), (19, 20)):
        plain, hooked = (
            part(embeds[:, start:stop], table.slice(start, stop), cache, hooks=given)
            for cache, given in zip(caches, (None, hooks), strict=True)
        )
        torch.testing.assert_close(hooked, plain, atol=1e-5, rtol=1e-4)
    assert [weights.shape[-1] for weights in seen] == [9, 10, 11]


@pytest.mark.parametrize(
    "options",
    [
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "max_position": 8}},
        {"rope_sections": (1, 1, 2)},
        {"rope_dtype": "bfloat16"},
    ],
)
def test_angles_are_the_trunks_own(options) -> None:
    trunk = Decoder(dim=WIDTH, num_layers=2, num_heads=4, mlp_dim=48, **options).eval()
    embeds, table = torch.randn(1, 18, WIDTH), prompt()
    torch.testing.assert_close(PrunedDecoder(trunk=trunk, pruning=((1, 1.0),))(embeds, table), trunk(embeds, table))


def test_as_many_operations_as_the_same_removal_by_hand() -> None:
    """Two of four layers read 20 of 64 tokens; a share of 1 leaves all and costs what choosing costs."""
    part, table, embeds = pruned(pruning=((2, 0.25),)), prompt(image=58), torch.randn(1, 64, WIDTH)
    saved = part.flops_saved(embeds, table)
    of_choosing = pruned(pruning=((2, 1.0),)).flops_saved(embeds, table)
    halves = [Decoder(dim=WIDTH, num_layers=2, num_heads=4, num_kv_heads=2, mlp_dim=48) for _ in range(2)]
    short, short_table = embeds[:, :20].clone(), TokenTable.text(1, 20)
    by_hand = count_flops(lambda: (halves[0](embeds, table), halves[1](short, short_table)))
    assert saved.full == count_flops(lambda: [half(embeds, table) for half in halves])
    assert saved.pruned == by_hand + of_choosing.pruned - of_choosing.full
    assert saved.share == 1 - saved.pruned / saved.full > 0.3


def test_gradients_to_every_weight() -> None:
    part, table = pruned(pruning=((2, 0.25),)).train(), prompt(image=58)
    part(torch.randn(1, 64, WIDTH), table)[:, -1].square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in part.parameters())


def test_a_model_learns_and_generates_with_it() -> None:
    trunk = Decoder(dim=TINY_WIDTH, num_layers=2, num_heads=4, mlp_dim=48)
    model = tiny_model(trunk=PrunedDecoder(trunk=trunk, pruning=((1, 0.5),)))
    photo = torch.rand(3, 8, 12, generator=torch.Generator().manual_seed(0))
    samples = [[text("what is it? "), image(photo), text("a cat", target="lm")], [text("a"), text("b", target="lm")]]
    output = model.train()(model.batch_builder(TOKENIZER)(samples))
    output.losses["lm"].backward()
    assert len(output.token_losses["lm"]) == 6 and all(parameter.grad is not None for parameter in model.trunk.parameters())

    model, prompts = model.eval(), [[text("what is it? "), image(photo), text(" ")], [text("a")]]
    options = Generation(max_tokens=6, sampling=GREEDY)
    together = dict(model.generate(prompts, TextGrammar(VOCABULARY, (EOS,)), options, tokenizer=TOKENIZER))
    for row, prompt in enumerate(prompts):
        (alone,) = model.generate([prompt], TextGrammar(VOCABULARY, (EOS,)), options, tokenizer=TOKENIZER)
        assert alone.segment == together[row]


def test_saving_and_half_precision(tmp_path) -> None:
    part, embeds, table = pruned(), torch.randn(2, 18, WIDTH), prompt(2)
    part.save_pretrained(tmp_path)
    assert torch.equal(Block.from_pretrained(tmp_path)(embeds, table), part(embeds, table))
    made = part.bfloat16()(embeds.bfloat16(), table)
    assert made.dtype == torch.bfloat16 and made.isfinite().all()


def test_a_users_rule_is_asked_about_what_is_left() -> None:
    part, embeds, table = pruned(), torch.randn(2, 18, WIDTH), prompt(2)
    made = part(embeds, table, mask=lambda q, k: q.order[:, :, None] >= k.order[:, None])
    torch.testing.assert_close(made, part(embeds, table))


@pytest.mark.parametrize("pruning", [((0, 0.5),), ((4, 0.5),), ((2, 0.5), (1, 0.2)), ((1, 0.2), (2, 0.5)), ((1, 1.5),)])
def test_layers_and_shares_that_do_not_fit_are_refused(pruning) -> None:
    with pytest.raises(ValueError, match="rising from 1 to 3, and a share, falling from 1 to 0"):
        pruned(pruning=pruning)


@pytest.mark.unchecked
def test_other_trunks_and_importances_are_refused() -> None:
    with pytest.raises(TypeError, match="trunk is a PrunedDecoder; accepted: a Decoder"):
        PrunedDecoder(trunk=pruned(), pruning=PRUNING)
    with pytest.raises(ValueError, match="importance is 'text'; accepted"):
        pruned(importance="text")


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"do not fit; accepted: \(B, L, 32\)"):
        pruned()(torch.randn(1, 5, WIDTH), TokenTable.text(1, 6))
    cache = pruned().new_cache(1, 4)
    with pytest.raises(ValueError, match="5 tokens after 0 do not fit a cache of 4"):
        pruned()(torch.randn(1, 5, WIDTH), TokenTable.text(1, 5), cache)


def test_a_table_of_padding_alone_passes() -> None:
    assert pruned()(torch.randn(1, 4, WIDTH), TokenTable.padding(1, 4)).isfinite().all()


def modulated(pruning=PRUNING, *, shared: bool = False) -> PrunedDecoder:
    torch.manual_seed(0)
    layer = Layer(
        mixer=Attention(num_heads=4, num_kv_heads=2, qk_norm=Norm()),
        feed_forward=GatedMLP(hidden_dim=48),
        modulation=AdaLN(condition_dim=6, shared=shared),
    )
    trunk = Decoder(dim=WIDTH, num_layers=4, layers=layer)
    for parameter in trunk.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return PrunedDecoder(trunk=trunk, pruning=pruning).eval()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("runs", [1, 9, 18])
def test_conditions_stay_with_their_tokens(runs: int, shared: bool) -> None:
    part, table = modulated(shared=shared), prompt(2, one_step=True)
    embeds = torch.randn(2, 18, WIDTH)
    conditions = Conditions(torch.randn(5, 6) * 3, torch.randint(-1 if runs == 18 else 0, 5, (2, runs)))
    kept: list[torch.Tensor] = []
    hidden = part(embeds, table, kept=kept, conditions=conditions)
    left = last_kept(kept[-1], 18)
    wanted = masked(part, embeds, table, kept, conditions=conditions)
    torch.testing.assert_close(hidden[left], wanted[left], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(hidden[left], part(embeds, table)[left], atol=1e-2)

    # What stays is what the modulated layer itself attends to most.
    weights: list[torch.Tensor] = []
    part.trunk(embeds, table, hooks=TrunkHooks(attention={1: weights.append}), conditions=conditions)
    visual = weights[0].mean(dim=1)[:, -1, 2:14]
    likeliest = visual.topk(6, dim=1).indices.sort(dim=1).values + 2
    assert torch.equal(kept[0], torch.cat([torch.tensor([[0, 1]] * 2), likeliest, torch.tensor([[14, 15, 16, 17]] * 2)], dim=1))

    cache = part.new_cache(2, 19)
    part(embeds, table, cache, conditions=conditions)
    one = TokenTable.text(2, 1)._replace(order=torch.full((2, 1), 40))
    told = [
        part(embeds[:, :1], one, cache.rows(torch.arange(2)), conditions=told)
        for told in (None, Conditions(torch.randn(1, 6), torch.zeros(2, 1).long()))
    ]
    assert not torch.allclose(*told, atol=1e-2)


def test_conditions_of_layers_that_take_none_are_refused() -> None:
    with pytest.raises(ValueError, match="no layer of the trunk has a modulation"):
        pruned()(torch.randn(1, 18, WIDTH), prompt(), conditions=Conditions(torch.randn(1, 6), torch.zeros(1, 1).long()))
