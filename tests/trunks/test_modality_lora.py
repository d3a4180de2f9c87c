"""Low-rank additions: to some modalities' tokens only, or mixed by a gate."""

import pytest
import torch

from mmblocks import Decoder, TokenTable
from mmblocks.trunks.parts.low_rank import GatedLoRA, ModalityLoRA
from mmblocks.trunks.routed.modality_lora import ModalityLoRADecoder, SlideLoRADecoder

WIDTH = 32
SIZES = {"dim": WIDTH, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "mlp_dim": 48, "qk_norm": True, "qkv_bias": True}
CLASSES = {"modality": (ModalityLoRADecoder, {"rank": 4}), "slide": (SlideLoRADecoder, {"rank": 4})}
TEXT = TokenTable.text(2, 9)


def mixed_table() -> TokenTable:
    table = TokenTable.text(2, 9)
    table.modality[0, 2:6] = 1
    return table


def plain() -> Decoder:
    torch.manual_seed(0)
    trunk = Decoder(**SIZES).eval()
    for parameter in trunk.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return trunk


def trained(trunk):
    """As if the additions had learned something."""
    for name, parameter in trunk.named_parameters():
        if any(part in name for part in (".narrow.", ".widen.", ".gate.")) and ".base." not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return trunk


@pytest.mark.parametrize(("cls", "options"), CLASSES.values(), ids=CLASSES)
def test_at_first_nothing_changes(cls, options) -> None:
    decoder, embeds = plain(), torch.randn(2, 9, WIDTH)
    trunk = cls.from_decoder(decoder, **options)
    assert torch.equal(trunk(embeds, TEXT), decoder(embeds, TEXT))
    torch.testing.assert_close(trunk(embeds, mixed_table()), decoder(embeds, TEXT), atol=1e-5, rtol=1e-5)
    assert not any(p.is_meta for p in trunk.parameters())


def test_text_alone_stays_bit_for_bit_whatever_the_additions_learn() -> None:
    """InternLM-XComposer2."""
    decoder, embeds = plain(), torch.randn(2, 9, WIDTH)
    trunk = trained(ModalityLoRADecoder.from_decoder(decoder, rank=4))
    assert torch.equal(trunk(embeds, TEXT), decoder(embeds, TEXT))
    mixed = trunk(embeds, mixed_table())
    assert not torch.allclose(mixed[0], decoder(embeds, TEXT)[0], atol=1e-2)
    torch.testing.assert_close(mixed[1], decoder(embeds, TEXT)[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixed[0, :2], decoder(embeds, TEXT)[0, :2], atol=1e-5, rtol=1e-5)


def test_one_map_against_the_formula() -> None:
    from mmblocks.ops.routed_linear import group_rows
    from mmblocks.trunks.parts.linears import RoutedLinear

    base = RoutedLinear(6, 5, experts=("text",))
    lora = trained(ModalityLoRA(base, 6, 5, experts=("text", "vision"), adapted=("vision",), rank=2, alpha=6.0, dropout=0.0))
    groups = group_rows(torch.tensor([1, 0, 1]), 2)
    x = torch.randn(3, 6)
    added = 3.0 * lora.widen["vision"](lora.narrow["vision"](x))
    wanted = base["text"](x) + torch.tensor([1.0, 0.0, 1.0])[:, None] * added
    torch.testing.assert_close(groups.restore(lora(groups.sort(x), groups)), wanted)

    gated = trained(GatedLoRA(base, 6, 5, num_experts=2, rank=2, alpha=2.0))
    share = gated.gate(x).softmax(-1)
    narrow, widen = gated.narrow.weight.split(2), gated.widen.weight.split(2, dim=1)
    parts = [x @ a.T @ b.T for a, b in zip(narrow, widen, strict=True)]
    wanted = base["text"](x) + parts[0] + share[:, :1] * parts[1] + share[:, 1:] * parts[2]
    torch.testing.assert_close(gated(x, groups), wanted)


@pytest.mark.parametrize(("cls", "options"), CLASSES.values(), ids=CLASSES)
def test_gradients_reach_every_addition(cls, options) -> None:
    trunk = trained(cls.from_decoder(plain(), **options)).train()
    trunk(torch.randn(2, 9, WIDTH), mixed_table()).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trunk.parameters())


@pytest.mark.parametrize(("cls", "options"), CLASSES.values(), ids=CLASSES)
def test_cached_equals_full_and_saved_equals_loaded(cls, options, tmp_path) -> None:
    trunk = trained(cls.from_decoder(plain(), **options))
    table, embeds = mixed_table(), torch.randn(2, 9, WIDTH)
    full = trunk(embeds, table)
    cache = trunk.new_cache(2, 9)
    steps = [trunk(embeds[:, i : i + 1], table.slice(i, i + 1), cache) for i in range(9)]
    torch.testing.assert_close(torch.cat(steps, dim=1), full, atol=1e-5, rtol=1e-5)
    trunk.save_pretrained(tmp_path / "trunk")
    assert torch.equal(cls.from_pretrained(tmp_path / "trunk")(embeds, table), full)


def test_some_maps_alone_have_additions() -> None:
    trunk = ModalityLoRADecoder(**SIZES, rank=4, maps=("query", "down"))
    with_additions = {name.split(".narrow.")[0] for name, _ in trunk.named_parameters() if ".narrow." in name}
    assert with_additions == {f"layers.{i}.{part}" for i in range(2) for part in ("attention.query", "mlp.down")}


def test_bfloat16_follows_float32() -> None:
    trunk, embeds = trained(ModalityLoRADecoder.from_decoder(plain(), rank=4)), torch.randn(2, 9, WIDTH)
    wanted = trunk(embeds, mixed_table())
    half = trunk.to(torch.bfloat16)(embeds.bfloat16(), mixed_table())
    assert (half.float() - wanted).norm() / wanted.norm() < 0.03


@pytest.mark.unchecked
@pytest.mark.parametrize(("cls", "options"), CLASSES.values(), ids=CLASSES)
def test_the_forward_is_one_graph(cls, options) -> None:
    torch.compiler.reset()
    trunk, embeds = trained(cls.from_decoder(plain(), **options)), torch.randn(2, 9, WIDTH)
    compiled = torch.compile(trunk, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(embeds, mixed_table()), trunk(embeds, mixed_table()), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rank": 0}, "rank is 0"), ({"adapted": ("audio",)}, "adapted is"), ({"maps": ("norm",)}, "maps is")],
)
def test_options_that_mean_nothing_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        ModalityLoRADecoder(**SIZES, **options)
