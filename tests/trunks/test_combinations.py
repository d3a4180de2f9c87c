"""Described parts put together in ways that no class of its own has: each against itself in steps, saved, apart and in bfloat16."""

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from mmblocks import Block, Decoder, TokenTable
from mmblocks.sequence.masks import Causal
from mmblocks.sequence.positions import mrope
from mmblocks.sequence.tokens import Modality
from mmblocks.trunks import (
    MLP,
    Attention,
    ForwardContext,
    GatedCrossAttentionDecoder,
    GatedCrossAttentionLayer,
    GatedLowRank,
    GatedMLP,
    Layer,
    Linear,
    LowRank,
    MixtureOfExperts,
    Norm,
    Rotary,
    Site,
    llama_layer,
)
from mmblocks.trunks.caches.static_cache import StaticCache
from mmblocks.trunks.parts.cross_attention import images_before
from tests.shared.random_tables import cuts_between_images, random_table

WIDTH, CONTEXT, LENGTH = 32, 6, 24
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
EXPERTS = ("text", "vision")
SHARED, ROUTED, LOW_RANK = Linear(), Linear(experts=EXPERTS), LowRank(experts=EXPERTS, rank=4, alpha=8.0)
PLAIN, BY_EXPERT = Norm(), Norm(experts=EXPERTS)
SLIDE = GatedLowRank(rank=3, alpha=4.0)
HEADS = {"num_heads": 4, "num_kv_heads": 2}
MIXTURE = MixtureOfExperts(hidden_dim=20, num_experts=4, shared_dim=12)


def layer(linear: Linear = SHARED, feed_forward=None, norm: Norm = PLAIN, **attention) -> Layer:
    mixer = Attention(**HEADS, linear=linear, **attention)
    return Layer(mixer=mixer, feed_forward=feed_forward or GatedMLP(hidden_dim=40, linear=linear), norm=norm)


USUAL = layer()
SECTIONS = Rotary(sections=(1, 1, 2))
GATED = GatedCrossAttentionLayer(context_dim=CONTEXT, num_heads=2, head_dim=8, mlp_dim=16)

WITH_EXPERTS: dict[str, dict[str, Any]] = {
    "routed attention, mixture, head norms": {"layers": layer(ROUTED, MIXTURE, BY_EXPERT, qk_norm=BY_EXPERT)},
    "low rank, mixture, norms of each head": {"layers": layer(LOW_RANK, MIXTURE, qk_norm=Norm(), qk_norm_over="each_head")},
    "low rank, norms over all heads": {"layers": layer(LOW_RANK, norm=BY_EXPERT, qk_norm=BY_EXPERT, qk_norm_over="all_heads")},
    "low rank on some maps": {"layers": layer(replace(LOW_RANK, maps=("query", "down")), qkv_bias=True, output_bias=True)},
    "sections, low rank": {"layers": layer(LOW_RANK, rotary=SECTIONS)},
    "window, routed": {"layers": layer(ROUTED, norm=BY_EXPERT, window=3)},
    "routed MLP with biases": {"layers": layer(ROUTED, MLP(hidden_dim=40, linear=ROUTED), norm=BY_EXPERT)},
    "routed in the second alone": {"layers": {"a": USUAL, "b": layer(ROUTED, norm=BY_EXPERT)}, "layer_types": ("a", "b", "a")},
}
"""Weights by expert, whose counterparts without follow by name."""

KINDS = WITH_EXPERTS | {
    "shares by a gate, mixture": {"layers": layer(SLIDE, MIXTURE)},
    "dense first, then mixtures": {
        "layers": {"dense": USUAL, "mixture": layer(feed_forward=MIXTURE)},
        "layer_types": ("dense", "mixture", "mixture"),
    },
    "window in every second": {
        "layers": {"local": layer(window=3), "global": USUAL},
        "layer_types": ("local", "global", "local"),
    },
    "gated cross-attention": {"layers": {"usual": USUAL, "gated": GATED}, "layer_types": ("usual", "gated", "usual")},
    "gated cross-attention, routed": {
        "layers": {"usual": layer(ROUTED, norm=BY_EXPERT), "gated": GATED},
        "layer_types": ("gated", "usual", "usual"),
    },
    "layer norms, MLP": {"layers": layer(feed_forward=MLP(hidden_dim=40), norm=Norm(kind="layer", bias=True))},
    "layer norms without shifts": {"layers": layer(norm=Norm(kind="layer"), qk_norm=Norm(kind="layer"), qk_norm_over="each_head")},
    "norms without weights": {"layers": layer(norm=Norm(weight=False)), "norm": Norm()},
    "one plus": {"layers": layer(norm=Norm(one_plus=True), qk_norm=Norm(one_plus=True)), "embed_scale": 4.0},
    "parallel": {"layers": replace(USUAL, parallel=True, norm=Norm(kind="layer"))},
    "parallel, routed": {"layers": replace(layer(ROUTED, norm=BY_EXPERT), parallel=True)},
    "norms after": {"layers": replace(USUAL, norm_place="after"), "norm": Norm(kind="layer")},
    "norms on both sides": {"layers": replace(layer(softcap=5.0, scale=0.3, norm=Norm(one_plus=True)), norm_place="both")},
    "norms on both sides, routed": {"layers": replace(layer(ROUTED, MIXTURE, BY_EXPERT), norm_place="both")},
    "scaled residuals": {"layers": replace(USUAL, residual_scale=0.3)},
    "half of the channels, neighbours": {"layers": layer(rotary=Rotary(share=0.5, neighbours=True))},
    "angles of two kinds": {
        "layers": {"a": layer(rotary=Rotary(theta=100.0), window=4), "b": layer(rotary=None)},
        "layer_types": ("a", "b", "a"),
    },
}


def filled(trunk: Decoder) -> Decoder:
    """Nothing at one or zero, so that every weight shows."""
    generator = torch.Generator().manual_seed(0)
    for parameter in trunk.parameters():
        torch.nn.init.normal_(parameter, mean=0.1, std=0.25, generator=generator)
    return trunk.eval()


def trunk_of(options: dict[str, Any]) -> Decoder:
    return filled(Decoder(**{"dim": WIDTH, "num_layers": 3, **options}))


def inputs(seed: int, *, modality: Modality | None = None) -> tuple[Tensor, TokenTable, dict[str, Tensor]]:
    """Tokens with packed documents, images and padding, and as many images beside the rows as they may name."""
    generator = torch.Generator().manual_seed(seed)
    table = random_table(generator, length=LENGTH)
    if modality is not None:
        table = table._replace(modality=torch.where(table.is_padding, table.modality, modality.value))
    return (
        torch.randn(3, LENGTH, WIDTH, generator=generator),
        table,
        {"images": torch.randn(3, 12, 5, CONTEXT, generator=generator)},
    )


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("make", [lambda cache: cache, StaticCache], ids=["plain", "static"])
def test_cached_steps_equal_the_full_pass(options, make) -> None:
    trunk = trunk_of(options)
    for seed in range(3):
        embeds, table, images = inputs(seed)
        full, real = trunk(embeds, table, **images), ~table.is_padding
        cache, steps = make(trunk.new_cache(3, 30, **images)), []
        for start, stop in pairwise(cuts_between_images(table, 1 + 2 * seed)):
            part = table.slice(start, stop)
            steps.append(trunk(embeds[:, start:stop], part, cache, mask=cache.mask_for(part)))
        torch.testing.assert_close(torch.cat(steps, dim=1)[real], full[real], **CLOSE)


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_packed_and_padded_equal_separate(options) -> None:
    trunk = trunk_of(options)
    embeds, table, images = inputs(4)
    together, before = trunk(embeds, table, **images), images_before(table)
    for row in range(3):
        for document in set(table.document[row].tolist()) - {-1}:
            here = (table.document[row] == document).nonzero().flatten()
            alone = TokenTable(*(column[row : row + 1, here] for column in table))
            named = before[row, here].unique()
            own = images["images"][row : row + 1, named[named > 0] - 1]
            given = {"images": own} if own.shape[1] else {}
            separate = trunk(embeds[row : row + 1, here], alone, **given)
            torch.testing.assert_close(together[row, here], separate[0], **CLOSE)


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_gradients_reach_every_parameter_and_checkpointing_changes_none(options) -> None:
    trunk = trunk_of(options).train()
    embeds, table, images = inputs(1)
    gradients = []
    for trunk.checkpoint_activations in (False, True):
        hidden = trunk(embeds, table, **images)[~table.is_padding]
        gradients.append(torch.autograd.grad((hidden * hidden.detach().roll(1, -1)).mean(), list(trunk.parameters())))
    for (name, _), plain, recomputed in zip(trunk.named_parameters(), *gradients, strict=True):
        assert plain.abs().sum() > 0, name
        torch.testing.assert_close(recomputed, plain, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_bfloat16_follows_float32(options) -> None:
    trunk = trunk_of(options)
    embeds, table, images = inputs(2)
    wanted, real = trunk(embeds, table, **images), ~table.is_padding
    half = trunk.bfloat16()(embeds.bfloat16(), table, images=images["images"].bfloat16())
    assert half.dtype == torch.bfloat16
    errors = (half.float() - wanted)[real].norm(dim=-1) / wanted[real].norm(dim=-1)
    assert errors.median() < 0.03  # a router's choice may flip for single tokens


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_saved_equals_loaded(options, tmp_path) -> None:
    trunk = trunk_of(options)
    embeds, table, images = inputs(3)
    trunk.save_pretrained(tmp_path)
    again = Block.from_pretrained(tmp_path)
    assert again.config == trunk.config
    assert torch.equal(again(embeds, table, **images), trunk(embeds, table, **images))


def test_a_config_reads_as_the_call_does(tmp_path) -> None:
    trunk = trunk_of(KINDS["gated cross-attention, routed"])
    trunk.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    names = ["dim", "num_layers", "layers", "layer_types", "norm", "embed_scale", "dropout", "route", "positions"]
    assert [name for name in config if not name.startswith("_")] == names
    assert config["layer_types"] == ["gated", "usual", "usual"]
    assert config["layers"]["gated"] == {
        "_kind": "GatedCrossAttentionLayer", "context_dim": 6, "num_heads": 2, "head_dim": 8, "mlp_dim": 16,
    }  # fmt: skip
    usual = config["layers"]["usual"]
    assert list(usual) == ["_kind", "mixer", "feed_forward", "norm", "norm_place", "parallel", "residual_scale", "modulation"]
    assert usual["norm"] == {
        "_kind": "Norm", "kind": "rms", "eps": 1e-05, "weight": True, "bias": False, "one_plus": False,
        "experts": ["text", "vision"],
    }  # fmt: skip
    assert usual["feed_forward"]["linear"] == {"_kind": "Linear", "experts": ["text", "vision"]}
    assert usual["mixer"]["rotary"]["_kind"] == "Rotary"


def without_experts(value: Any) -> Any:
    """The description with the same weights for all tokens, and no additions."""
    if isinstance(value, Linear):
        return Linear()
    if isinstance(value, dict):
        return {name: without_experts(entry) for name, entry in value.items()}
    if isinstance(value, Norm):
        return replace(value, experts=())
    if isinstance(value, Layer | Attention | GatedMLP | MLP):
        return replace(value, **{name: without_experts(entry) for name, entry in value.entries().items()})
    return value


@pytest.mark.parametrize("options", WITH_EXPERTS.values(), ids=WITH_EXPERTS)
@pytest.mark.parametrize("expert", [Modality.TEXT, Modality.VISION])
def test_tokens_of_one_modality_pass_a_trunk_of_their_weights_alone(options, expert: Modality) -> None:
    trunk, plain = trunk_of(options), Decoder(dim=WIDTH, num_layers=3, **without_experts(options)).eval()
    weights, own = trunk.state_dict(), expert.name.lower()

    def weight_of(name: str) -> Tensor:
        path, tensor = name.rsplit(".", 1)
        places = [f"{path}{base}{of}" for base in ("", ".base") for of in ("", f".{own}")]
        found = next(weights[f"{place}.{tensor}"] for place in places if f"{place}.{tensor}" in weights)
        narrow, widen = (weights.get(f"{path}.{part}.{own}.weight") for part in ("narrow", "widen"))
        return found if narrow is None or tensor == "bias" else found + 2.0 * widen @ narrow  # alpha / rank

    plain.load_state_dict({name: weight_of(name) for name in plain.state_dict()})
    embeds, table, _ = inputs(5, modality=expert)
    real = ~table.is_padding
    torch.testing.assert_close(trunk(embeds, table)[real], plain(embeds, table)[real], **CLOSE)


def test_tokens_of_several_modalities_have_their_own_weights_each() -> None:
    trunk = trunk_of(WITH_EXPERTS["low rank, mixture, norms of each head"])
    embeds, table, _ = inputs(6)
    first = trunk(embeds, table)
    for name, parameter in trunk.named_parameters():
        if ".vision." in name:
            parameter.data += 1
    text_only = [row for row in range(3) if not (table.modality[row] == Modality.VISION.value).any()]
    changed = (trunk(embeds, table) != first).any(-1)
    assert not changed[text_only].any()
    assert changed[table.modality == Modality.VISION.value].all()


def test_gated_layers_of_the_stack_are_those_of_the_trunk_around_it() -> None:
    """Before every fourth layer, with the same weights: equal bits, also in steps."""
    around = filled(
        GatedCrossAttentionDecoder(
            trunk=Decoder(dim=WIDTH, num_layers=8, num_heads=4, mlp_dim=40),
            context_dim=CONTEXT, every=4, num_heads=2, head_dim=8, mlp_dim=16,
        )
    )  # fmt: skip
    kinds = {"usual": llama_layer(num_heads=4, mlp_dim=40), "gated": GATED}
    types = (*["usual"] * 3, "gated", "usual") * 2
    stack = Decoder(dim=WIDTH, num_layers=10, layers=kinds, layer_types=types).eval()
    plain = iter(around.trunk.layers)
    gated = iter(around.gated.values())
    for kind, made in zip(types, stack.layers, strict=True):
        source = next(plain) if kind == "usual" else next(gated)
        (made if kind == "usual" else made.gated).load_state_dict(source.state_dict())
    stack.norm.load_state_dict(around.trunk.norm.state_dict())

    embeds, table, images = inputs(7)
    wanted = around(embeds, table, **images)
    assert torch.equal(stack(embeds, table, **images), wanted)
    caches = [trunk.new_cache(3, LENGTH, **images) for trunk in (stack, around)]
    for start, stop in pairwise(cuts_between_images(table, 3)):
        one, other = (
            trunk(embeds[:, start:stop], table.slice(start, stop), cache)
            for trunk, cache in zip((stack, around), caches, strict=True)
        )
        assert torch.equal(one, other)
    closed = Decoder(dim=WIDTH, num_layers=10, layers=kinds, layer_types=types).eval()
    usual = [module for kind, module in zip(types, closed.layers, strict=True) if kind == "usual"]
    context = closed.context(embeds, table, **images)
    assert torch.equal(closed(embeds, table, **images), closed.norm(closed.run(embeds, context, list(enumerate(usual)))))


@pytest.mark.parametrize("place", ["before", "after", "both", "parallel"])
def test_where_norms_stand(place: str) -> None:
    """One layer by its formula."""
    norms = {"parallel": True} if place == "parallel" else {"norm_place": place}
    trunk = trunk_of({"num_layers": 1, "layers": replace(USUAL, residual_scale=0.5, **norms)})
    embeds, table, _ = inputs(8)
    context, made = trunk.context(embeds, table), trunk.layers[0]
    made.prepare(context)

    def attention(x: Tensor) -> Tensor:
        return made.attention(x, context, 0)

    def mlp(x: Tensor) -> Tensor:
        return made.mlp(x, context, 0)

    first, second, third, fourth = (
        getattr(made, name) for name in ("attention_norm", "attention_post_norm", "mlp_norm", "mlp_post_norm")
    )
    if place == "parallel":
        wanted = embeds + 0.5 * (attention(first(embeds)) + mlp(first(embeds)))
    elif place == "before":
        x = embeds + 0.5 * attention(first(embeds))
        wanted = x + 0.5 * mlp(third(x))
    elif place == "after":
        x = embeds + 0.5 * first(attention(embeds))
        wanted = x + 0.5 * third(mlp(x))
    else:
        x = embeds + 0.5 * second(attention(first(embeds)))
        wanted = x + 0.5 * fourth(mlp(third(x)))
    torch.testing.assert_close(trunk(embeds, table), trunk.norm(wanted))


@pytest.mark.parametrize("over", ["head", "each_head", "all_heads"])
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_what_the_norms_of_queries_and_keys_span(over: str, kind: Any) -> None:
    """Attention by its formula."""
    mixer = Attention(**HEADS, qk_norm=Norm(kind=kind), qk_norm_over=over, rotary=None)
    made = filled(mixer.build(Site(WIDTH)))
    embeds, table = torch.randn(2, 7, WIDTH), TokenTable.text(2, 7)
    context = ForwardContext(table, table, Causal())
    made.prepare(context)
    assert made.query_norm.weight.shape == {"head": (8,), "each_head": (4, 8), "all_heads": (32,)}[over]

    def normed(project: nn.Module, norm: nn.Module) -> Tensor:
        heads = project(embeds).unflatten(-1, (-1, 8))
        axes = (-2, -1) if over == "all_heads" else (-1,)
        centred = heads - heads.mean(axes, keepdim=True) if kind == "layer" else heads
        scaled = centred / (centred.square().mean(axes, keepdim=True) + 1e-5).sqrt()
        return (scaled * (norm.weight if over != "all_heads" else norm.weight.view(-1, 8))).transpose(1, 2)

    key, value = normed(made.key, made.key_norm), made.value(embeds).unflatten(-1, (-1, 8)).transpose(1, 2)
    found = scaled_dot_product_attention(normed(made.query, made.query_norm), key, value, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(made(embeds, context, 0), made.output(found.transpose(1, 2).flatten(2)), **CLOSE)


@pytest.mark.unchecked
@pytest.mark.parametrize("name", ["routed attention, mixture, head norms", "low rank, norms over all heads", "window, routed"])
def test_compiled_it_is_one_graph_and_the_same(name: str) -> None:
    torch.compiler.reset()
    trunk, (embeds, table, _) = trunk_of(WITH_EXPERTS[name]), inputs(1)
    found: list[list[Tensor]] = []
    for function in (torch.compile(trunk, fullgraph=True, backend="aot_eager"), trunk):
        hidden = function(embeds, table)
        found.append([hidden, *torch.autograd.grad(hidden[~table.is_padding].square().sum(), list(trunk.parameters()))])
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-3, rtol=1e-3)


def test_a_position_scheme_serves_sections_beside_plain_angles() -> None:
    """A layer with angles of several axes and one with plain angles have their own schemes each where the trunk says none."""
    layers = {"sections": layer(LOW_RANK, rotary=SECTIONS), "plain": USUAL}
    embeds, table, _ = inputs(9)
    trunk = trunk_of({"layers": layers, "layer_types": ("sections", "plain", "sections")})
    named = trunk_of({"num_layers": 1, "layers": layers["sections"], "positions": mrope})
    alone = trunk_of({"num_layers": 1, "layers": layers["sections"]})
    assert torch.equal(named(embeds, table), alone(embeds, table))
    context = trunk.context(embeds, table)
    trunk.run(context.as_rows(embeds), context)
    assert len(context.angles) == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Attention(num_heads=4, num_kv_heads=0), "num_kv_heads is 0; it must divide num_heads, 4"),
        (lambda: Attention(num_heads=4, head_dim=0), "head_dim is 0; accepted: 1 or more, or None"),
        (lambda: layer(qk_norm=BY_EXPERT, qk_norm_over="each_head"), "qk_norm has .*; accepted with 'each_head'"),
        (lambda: layer(qk_norm=Norm(one_plus=True), qk_norm_over="each_head"), "qk_norm has .*; accepted with 'each_head'"),
        (lambda: layer(qk_norm=Norm(weight=False), qk_norm_over="each_head"), "qk_norm has .*; accepted with 'each_head'"),
        (lambda: trunk_of({"layers": {"a": USUAL, "b": USUAL}}), "layer_types is None; accepted: 3 of the names in layers, a, b"),
        (lambda: trunk_of({"layers": {"a": USUAL}, "layer_types": ("a", "b", "a")}), r"layer_types is \('a', 'b', 'a'\)"),
        (lambda: trunk_of({"layers": {}}), "layers is {}; accepted"),
        (lambda: trunk_of({"layers": layer(ROUTED, norm=Norm(experts=("text", "audio")))}), "experts of parts are"),
        (lambda: trunk_of({"layers": layer(Linear(experts=("a", "b")))}), r"experts has \['a', 'b'\], which are no modalities"),
        (
            lambda: trunk_of({"layers": layer(rotary=Rotary(sections=(1, 1, 1)))}),
            r"rope_sections are \(1, 1, 1\); accepted: 4 in all",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.unchecked
def test_places_that_have_no_name_are_refused() -> None:
    with pytest.raises(ValueError, match="qk_norm_over is 'every head'; accepted: 'head', 'each_head', 'all_heads'"):
        layer(qk_norm_over="every head")
    with pytest.raises(ValueError, match="norm_place is 'behind'; accepted: 'before', 'after', 'both'"):
        replace(USUAL, norm_place="behind")
    with pytest.raises(ValueError, match="kind is 'batch'; accepted: 'rms', 'layer'"):
        Norm(kind="batch")
