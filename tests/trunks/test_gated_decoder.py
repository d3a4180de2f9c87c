"""Gated cross-attention in a trunk: shut gates change no bit, text reads the right image, decoding equals a full pass."""

import pytest
import torch

from mmblocks import GREEDY, Block, Decoder, Generation, TextGrammar, text
from mmblocks.checkpoints.surgery.freezing import freeze
from mmblocks.generation.autoregressive import generate_ids
from mmblocks.sequence import Conditions
from mmblocks.sequence.tokens import Modality, TokenTable
from mmblocks.trunks import AdaLN, Attention, GatedCrossAttentionDecoder, GatedMLP, Layer, MoEDecoder, RoutedDecoder
from mmblocks.trunks.caches.static_cache import StaticCache
from mmblocks.trunks.hooks import TrunkHooks
from mmblocks.trunks.parts.cross_attention import images_before
from tests.shared.tiny import TOKENIZER, VOCABULARY, tiny_model

WIDTH, CONTEXT = 32, 6


def trunk_of(cls=Decoder, *, opened: bool = True, every: int = 2) -> GatedCrossAttentionDecoder:
    torch.manual_seed(0)
    inner = cls(dim=WIDTH, num_layers=4, num_heads=4, num_kv_heads=2, mlp_dim=48)
    trunk = GatedCrossAttentionDecoder(trunk=inner, context_dim=CONTEXT, every=every, num_heads=2, head_dim=8, mlp_dim=16).eval()
    if opened:
        for parameter in trunk.gated.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return trunk


def row(*documents: str, padding: int = 0) -> TokenTable:
    """One row: "i" is an image's token, "t" text."""
    letters = "".join(documents)
    table = TokenTable.padding(1, len(letters) + padding)
    table.write(0, TokenTable.text(1, len(letters)))
    numbers = [number for number, document in enumerate(documents) for _ in document]
    table.document[0, : len(letters)] = torch.tensor(numbers)
    span = 0
    for place, letter in enumerate(letters):
        if letter == "i":
            table.modality[0, place], table.span[0, place] = Modality.VISION.value, span
        elif place and letters[place - 1] == "i":
            span += 1
    return table


def test_which_image_is_the_last_one() -> None:
    assert images_before(row("titti", "tit", padding=1)).tolist() == [[0, 1, 1, 1, 2, 0, 3, 3, 0]]
    assert images_before(row("iit", "t", "i")).tolist() == [[1, 1, 1, 0, 2]]


def test_padding_inside_a_document_hides_no_image() -> None:
    """As of a row that reads nothing while others of its batch write an image."""
    whole, real = row("tiit", "tit"), torch.tensor([1, 3, 4, 6, 8, 10, 11])
    table = TokenTable.padding(1, 13)
    for column, given in zip(table, whole, strict=True):
        column[:, real] = given
    assert images_before(table)[:, real].tolist() == images_before(whole).tolist() == [[0, 1, 1, 1, 0, 2, 2]]
    assert images_before(table).sum() == images_before(whole).sum()


@pytest.mark.parametrize("cls", [Decoder, RoutedDecoder])
@pytest.mark.parametrize("every", [1, 2, 3])
def test_shut_gates_change_no_bit(cls, every) -> None:
    trunk, table = trunk_of(cls, opened=False, every=every), row("titt")
    embeds = torch.randn(1, 4, WIDTH)
    assert sorted(map(int, trunk.gated)) == [[0, 1, 2, 3], [1, 3], [2]][every - 1]
    assert torch.equal(trunk(embeds, table, images=torch.randn(1, 1, 5, CONTEXT)), trunk.trunk(embeds, table))


def test_text_alone_is_what_it_was_whatever_the_gates_learned() -> None:
    trunk, table, embeds = trunk_of(), row("ttttt"), torch.randn(1, 5, WIDTH)
    plain = trunk.trunk(embeds, table)
    assert torch.equal(trunk(embeds, table), plain)
    cache = trunk.new_cache(1, 5)
    assert torch.equal(trunk(embeds, table, cache), trunk.trunk(embeds, table, trunk.trunk.new_cache(1, 5)))


@pytest.mark.parametrize("cls", [Decoder, RoutedDecoder])
def test_only_what_follows_an_image_reads_it(cls) -> None:
    trunk, table = trunk_of(cls), row("ttitt", "titt")
    embeds, images = torch.randn(1, 9, WIDTH), torch.randn(1, 2, 5, CONTEXT)
    plain = trunk(embeds, table, images=images)
    for image, touched in ((0, [2, 3, 4]), (1, [6, 7, 8])):
        other = images.clone()
        other[:, image] += 1
        differs = (trunk(embeds, table, images=other) != plain).any(dim=-1)[0]
        assert differs.nonzero().flatten().tolist() == touched


@pytest.mark.parametrize("cuts", [(2, 3, 4, 5, 6, 7), (4, 7), (5, 6, 7)])
@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("static", [False, True])
def test_cached_equals_full_with_images_at_once_or_as_they_come(cuts, later, static) -> None:
    trunk, table = trunk_of(every=1), row("titttit")
    embeds, images = torch.randn(1, 7, WIDTH), torch.randn(1, 2, 5, CONTEXT)
    full = trunk(embeds, table, images=images)
    cache = trunk.new_cache(1, 9, images=None if later else images)
    if static:
        cache = StaticCache(cache)
    steps, start, given = [], 0, 0
    for stop in cuts:
        part, seen = table.slice(start, stop), int(images_before(table.slice(0, stop)).max())
        new = images[:, given:seen] if later and seen > given else None
        steps.append(trunk(embeds[:, start:stop], part, cache, mask=cache.mask_for(part), images=new))
        start, given = stop, seen
    torch.testing.assert_close(torch.cat(steps, dim=1), full, atol=1e-5, rtol=1e-5)


def test_generation_reads_the_images_in_the_cache() -> None:
    model = tiny_model(trunk=trunk_of()).eval()
    batch = model.batch_builder(TOKENIZER)([[text("ab")], [text("ab")]], padding="left")
    batch.table.modality[:, 0] = Modality.VISION.value

    def written(images: torch.Tensor) -> list[list[int]]:
        cache = model.trunk.new_cache(2, 9, images=images)
        found = generate_ids(model, batch, TextGrammar(VOCABULARY), Generation(max_tokens=8, sampling=GREEDY), cache=cache)
        return torch.stack([step.ids for step in found], dim=1).tolist()

    same = torch.randn(1, 1, 5, CONTEXT).expand(2, -1, -1, -1)
    first, second = written(same)
    assert first == second
    first, second = written(torch.cat([same[:1], 9 - same[:1]]))
    assert first != second


def test_training_of_the_gated_layers_alone_files_and_hooks(tmp_path) -> None:
    trunk, table = trunk_of(), row("titt")
    embeds, images = torch.randn(1, 4, WIDTH), torch.randn(1, 1, 5, CONTEXT)
    freeze(trunk, train=("gated.*",))
    trunk(embeds, table, images=images).square().sum().backward()
    for name, parameter in trunk.named_parameters():
        assert (parameter.grad is not None) == name.startswith("gated."), name
    trunk.save_pretrained(tmp_path / "trunk")
    again = Block.from_pretrained(tmp_path / "trunk")
    states = []
    hidden = again(embeds, table, images=images, hooks=TrunkHooks(hidden={1: states.append, 4: states.append}))
    assert torch.equal(hidden, trunk(embeds, table, images=images))
    assert torch.equal(again.trunk.norm(states[1]), hidden)
    chosen = again.new_cache(1, 4, images=images).rows(torch.tensor([0, 0]))
    twice = again(embeds.repeat(2, 1, 1), TokenTable(*(torch.cat([c, c]) for c in table)), chosen)
    torch.testing.assert_close(twice[1:], hidden, atol=1e-5, rtol=1e-5)
    half = again.bfloat16()(embeds.bfloat16(), table, images=images.bfloat16())
    assert half.dtype == torch.bfloat16


def test_what_does_not_fit_is_refused() -> None:
    trunk, embeds = trunk_of(), torch.randn(1, 4, WIDTH)
    with pytest.raises(ValueError, match="a row of the table has 2 images; accepted: at most 1"):
        trunk(embeds, row("itit"), images=torch.randn(1, 1, 5, CONTEXT))
    with pytest.raises(ValueError, match="has 1 images; accepted: at most 0"):
        trunk(embeds, row("ittt"))
    with pytest.raises(ValueError, match="has 1 images; accepted: at most 0"):
        trunk(embeds, row("ittt"), trunk.new_cache(1, 4))
    with pytest.raises(ValueError, match=r"images have shape \(1, 1, 5, 7\); accepted: \(1, M, Q, 6\)"):
        trunk(embeds, row("ittt"), images=torch.randn(1, 1, 5, 7))
    with pytest.raises(ValueError, match="every is 5; accepted: 1 to 4"):
        trunk_of(every=5)
    with pytest.raises(TypeError, match="trunk is a GatedCrossAttentionDecoder; accepted: a Decoder"):
        GatedCrossAttentionDecoder(trunk=trunk, context_dim=6)


def test_each_routers_hook_is_called_once() -> None:
    shown: list[int] = []
    trunk = GatedCrossAttentionDecoder(
        trunk=MoEDecoder(dim=WIDTH, num_layers=2, num_heads=2, mlp_dim=16, num_experts=2), context_dim=CONTEXT, every=1
    )
    hooks = TrunkHooks(routers={0: lambda p: shown.append(0), 1: lambda p: shown.append(1)})
    trunk(torch.randn(1, 4, WIDTH), row("titt"), images=torch.randn(1, 1, 5, CONTEXT), hooks=hooks)
    assert shown == [0, 1]


def test_conditions_reach_the_decoders_layers() -> None:
    """With gates shut it is what the decoder computes, cached or not; layers that take none refuse them."""
    layer = Layer(mixer=Attention(num_heads=4), feed_forward=GatedMLP(hidden_dim=48), modulation=AdaLN(condition_dim=6))
    inner = Decoder(dim=WIDTH, num_layers=4, layers=layer)
    for parameter in inner.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    trunk, table = GatedCrossAttentionDecoder(trunk=inner, context_dim=CONTEXT, every=2).eval(), row("titttit")
    embeds, images = torch.randn(1, 7, WIDTH), torch.randn(1, 2, 5, CONTEXT)
    conditions = Conditions(torch.randn(3, 6), torch.tensor([[-1, 0, 1, 1, 2, 0, -1]]))
    wanted = inner(embeds, table, conditions=conditions)
    assert torch.equal(trunk(embeds, table, images=images, conditions=conditions), wanted)
    assert not torch.allclose(wanted, inner(embeds, table), atol=1e-2)
    cache, steps = trunk.new_cache(1, 7, images=images), []
    for place in range(7):
        here = slice(place, place + 1)
        told = conditions._replace(of=conditions.of[:, here])
        steps.append(trunk(embeds[:, here], table.slice(place, place + 1), cache, conditions=told))
    torch.testing.assert_close(torch.cat(steps, dim=1), wanted, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="no layer of the trunk has a modulation"):
        trunk_of()(embeds, table, images=images, conditions=conditions)
