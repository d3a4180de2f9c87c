"""Modulated layers: against a plain loop over tokens, with a cache, sorted by expert, recomputed, in bfloat16."""

import pytest
import torch
from torch.nn.functional import silu

from mmblocks import Block, Decoder, TokenTable
from mmblocks.sequence import Conditions
from mmblocks.trunks import AdaLN, Attention, GatedMLP, Layer, Linear, MixtureOfExperts, Norm

DIM, ROWS, LENGTH, WIDTH = 16, 2, 7, 6
EXPERTS = ("text", "vision")
ROUTED = Linear(experts=EXPERTS)
BASE = {"mixer": Attention(num_heads=2), "feed_forward": GatedMLP(hidden_dim=24), "modulation": AdaLN(condition_dim=WIDTH)}
SHARED = AdaLN(condition_dim=WIDTH, shared=True)
KINDS = {
    "own": {"layers": Layer(**BASE)},
    "shared": {"layers": Layer(**{**BASE, "modulation": SHARED})},
    "parallel": {"layers": Layer(**BASE, parallel=True)},
    "parallel, shared": {"layers": Layer(**{**BASE, "modulation": SHARED}, parallel=True)},
    "after": {"layers": Layer(**BASE, norm_place="after", residual_scale=0.5)},
    "both": {"layers": Layer(**{**BASE, "modulation": SHARED}, norm_place="both")},
    "some": {
        "layers": {"plain": Layer(**{**BASE, "modulation": None}), "shared": Layer(**{**BASE, "modulation": SHARED})},
        "layer_types": ("shared", "plain"),
    },
    "by expert": {
        "layers": Layer(
            mixer=Attention(num_heads=2, linear=ROUTED),
            feed_forward=GatedMLP(hidden_dim=24, linear=ROUTED),
            norm=Norm(experts=EXPERTS),
            modulation=AdaLN(condition_dim=WIDTH),
        ),
    },
}


def trunk_of(options, seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    trunk = Decoder(dim=DIM, num_layers=2, **options).eval()
    for parameter in trunk.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return trunk


def inputs(seed: int = 1) -> tuple[torch.Tensor, TokenTable, Conditions]:
    """Tokens of two modalities in turns; some have no condition."""
    generator = torch.Generator().manual_seed(seed)
    table = TokenTable.text(ROWS, LENGTH)
    table = table._replace(modality=torch.tensor([[0, 1, 1, 0, 0, 1, 0], [1, 0, 1, 1, 0, 0, 1]]))
    of = torch.tensor([[-1, -1, 0, 0, 2, 2, -1], [1, 1, -1, 3, 3, 3, 0]])
    return torch.randn(ROWS, LENGTH, DIM, generator=generator), table, Conditions(torch.randn(4, WIDTH, generator=generator), of)


def moves_of(trunk: Decoder, layer, vector: torch.Tensor | None, branches: int) -> list[list]:
    """(shift, scale, gate) of each branch for one token, by the definition."""
    if vector is None or layer.modulation is None:
        return [[0.0, 0.0, 1.0]] * branches
    project = (layer.modulation.map or trunk.modulation)[1]
    numbers = project.weight @ silu(vector) + project.bias
    if layer.modulation.own is not None:
        numbers = numbers + layer.modulation.own.reshape(-1)
    return [list(numbers.view(branches, 3, DIM)[branch]) for branch in range(branches)]


def moved(x: torch.Tensor, moves: list[list[list]], branch: int, gated: bool) -> torch.Tensor:
    """Every token shifted and scaled, or gated, one after the other."""
    rows = [
        token * each[branch][2] if gated else token * (1 + each[branch][1]) + each[branch][0]
        for token, each in zip(x.flatten(0, 1), moves, strict=True)
    ]
    return torch.stack(rows).view_as(x)


def by_hand(trunk: Decoder, embeds, table: TokenTable, conditions: Conditions) -> torch.Tensor:
    """The trunk token by token, as far as modulation goes; attention, feed-forward parts and norms are the trunk's own."""
    context = trunk.context(embeds, table)
    for layer in trunk.layers:
        layer.prepare(context)
    x = embeds
    for index, layer in enumerate(trunk.layers):
        branches = 1 if layer.parallel else 2
        vectors = [None if of < 0 else conditions.vectors[of] for of in conditions.of.flatten().tolist()]
        moves = [moves_of(trunk, layer, vector, branches) for vector in vectors]

        def ordered(part, x, *more, context=context):
            return context.in_order(part(context.as_rows(x), *more))

        def norm(part, x, context=context):
            return x if part is None else context.in_order(context.apply(part, context.as_rows(x)))

        before, after = layer.norm_place != "after", layer.norm_place != "before"
        first = moved(norm(layer.attention_norm, x) if before else x, moves, 0, gated=False)
        mixed = ordered(layer.attention, first, context, index)
        if layer.parallel:
            x = x + moved(mixed + ordered(layer.mlp, first, context, index), moves, 0, gated=True)
            continue
        if after:
            mixed = norm(layer.attention_norm if not before else layer.attention_post_norm, mixed)
        x = x + layer.residual_scale * moved(mixed, moves, 0, gated=True)
        made = ordered(layer.mlp, moved(norm(layer.mlp_norm, x) if before else x, moves, 1, gated=False), context, index)
        if after:
            made = norm(layer.mlp_norm if not before else layer.mlp_post_norm, made)
        x = x + layer.residual_scale * moved(made, moves, 1, gated=True)
    return trunk.norm(x)


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_values_and_gradients_are_those_of_a_loop(options, recomputed) -> None:
    trunk = trunk_of(options).train()
    embeds, table, conditions = inputs()
    conditions.vectors.requires_grad_()
    aims = [conditions.vectors, *trunk.parameters()]
    wanted = by_hand(trunk, embeds, table, conditions)
    weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(3))
    expected = torch.autograd.grad((wanted * weights).sum(), aims)

    trunk.checkpoint_activations = recomputed
    found = trunk(embeds, table, conditions=conditions)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    for value, right in zip(torch.autograd.grad((found * weights).sum(), aims), expected, strict=True):
        assert right.any()
        torch.testing.assert_close(value, right, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_without_conditions_nothing_is_modulated(options) -> None:
    trunk, (embeds, table, conditions) = trunk_of(options), inputs()
    plain = trunk(embeds, table)
    nobody = conditions._replace(of=torch.full_like(conditions.of, -1))
    torch.testing.assert_close(trunk(embeds, table, conditions=nobody), plain, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(trunk(embeds, table, conditions=conditions), plain, atol=0.1)


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("of", [[[2], [-1]], [[0], [3]], [[-1, 3, 2], [0, 1, -1]]], ids=["row", "complete", "runs"])
def test_one_condition_for_each_run_of_tokens(options, of) -> None:
    trunk, (embeds, table, conditions) = trunk_of(options), inputs()
    embeds, table, of = embeds[:, :6], table.slice(0, 6), torch.tensor(of)
    wanted = trunk(embeds, table, conditions=conditions._replace(of=of.repeat_interleave(6 // of.shape[1], dim=1)))
    torch.testing.assert_close(trunk(embeds, table, conditions=conditions._replace(of=of)), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_steps_with_a_cache(options) -> None:
    trunk, (embeds, table, conditions) = trunk_of(options), inputs()
    cache, found = trunk.new_cache(ROWS, LENGTH), []
    for first, last in ((0, 3), (3, 4), (4, 7)):
        told = conditions._replace(of=conditions.of[:, first:last])
        found.append(trunk(embeds[:, first:last], table.slice(first, last), cache, conditions=told))
    torch.testing.assert_close(torch.cat(found, dim=1), trunk(embeds, table, conditions=conditions), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["own", "shared", "by expert"])
def test_bfloat16_and_saving(name, tmp_path) -> None:
    trunk, (embeds, table, conditions) = trunk_of(KINDS[name]), inputs()
    wanted = trunk(embeds, table, conditions=conditions)
    trunk.save_pretrained(tmp_path)
    again = Block.from_pretrained(tmp_path)
    assert again.config == trunk.config and torch.equal(again(embeds, table, conditions=conditions), wanted)
    half = trunk.bfloat16()(embeds.bfloat16(), table, conditions=conditions._replace(vectors=conditions.vectors.bfloat16()))
    assert half.dtype == torch.bfloat16
    errors = (half.float() - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    assert errors.median() < 0.03


def test_gates_begin_at_zero() -> None:
    trunk, (embeds, table, conditions) = Decoder(dim=DIM, num_layers=2, layers=Layer(**BASE)), inputs()
    conditions = conditions._replace(of=conditions.of.clamp(min=0))
    assert torch.equal(trunk(embeds, table, conditions=conditions), trunk.norm(embeds))


EMBEDS, TABLE, CONDITIONS = inputs()
OTHER = Layer(**{**BASE, "modulation": AdaLN(condition_dim=WIDTH + 1)})
PARALLEL = Layer(**{**BASE, "modulation": SHARED}, parallel=True)


def run(**changes) -> None:
    trunk_of(KINDS["own"])(EMBEDS, TABLE, conditions=CONDITIONS._replace(**changes))


def build(**layers: Layer) -> None:
    Decoder(dim=DIM, num_layers=2, layers=layers, layer_types=tuple(layers))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: trunk_of({"layers": Layer(**{**BASE, "modulation": None})})(EMBEDS, TABLE, conditions=CONDITIONS),
            "conditions are given; accepted: None, as no layer",
        ),
        (lambda: run(vectors=torch.zeros(4, 5)), r"conditions.vectors is \(4, 5\); accepted: \(M, 6\)"),
        (lambda: run(of=torch.zeros(2, 6, dtype=torch.long)), r"conditions.of is \(2, 6\); accepted: \(2, 7\), or"),
        (lambda: run(of=torch.full((2, 7), 4)), r"conditions.of lies in \[4, 4\]; accepted: \[-1, 3\]"),
        (lambda: run(of=torch.full((2, 1), -2)), r"conditions.of lies in \[-2, -2\]"),
        (lambda: AdaLN(condition_dim=0), "condition_dim is 0; accepted: 1 or more, or None"),
        (lambda: build(one=Layer(**BASE), other=OTHER), "several widths, {6, 7}"),
        (lambda: build(one=Layer(**{**BASE, "modulation": SHARED}), other=PARALLEL), "layers share maps of conditions that differ"),
    ],
)
def test_what_does_not_fit_is_refused(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_mixture_of_experts_can_be_modulated() -> None:
    experts = MixtureOfExperts(hidden_dim=12, num_experts=3)
    trunk, (embeds, table, conditions) = trunk_of({"layers": Layer(**{**BASE, "feed_forward": experts})}), inputs()
    assert not torch.allclose(trunk(embeds, table, conditions=conditions), trunk(embeds, table), atol=0.1)
