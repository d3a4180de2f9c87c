"""NEO's trunk: places count, an image is read at once, caches and packing change nothing, and a Qwen3 can become one."""

from itertools import pairwise

import pytest
import torch

from mmblocks import Decoder, TokenTable
from mmblocks.sequence.tokens import Modality
from mmblocks.trunks.caches.static_cache import StaticCache
from mmblocks.trunks.neo.init import neo_from_qwen3
from mmblocks.trunks.neo.trunk import NEOTrunk
from tests.shared.random_tables import random_table

WIDTH = 32
SIZES = {"dim": WIDTH, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "mlp_dim": 40}


def neo(**options) -> NEOTrunk:
    torch.manual_seed(0)
    trunk = NEOTrunk(**{**SIZES, **options}).eval()
    for parameter in trunk.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return trunk


def text_and_image(rows: int, columns: int) -> TokenTable:
    """Two ids, an image, an id."""
    table = TokenTable.text(1, 3 + rows * columns)
    inside = slice(2, 2 + rows * columns)
    table.modality[:, inside] = Modality.VISION
    table.span[:, inside] = 0
    table.grid[:, inside, 1:] = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    table.order[:, inside] = 2
    table.order[:, -1] = 3
    return table


def test_rows_and_columns_count() -> None:
    trunk, embeds = neo(), torch.randn(1, 9, WIDTH)
    wide, tall = trunk(embeds, text_and_image(2, 3)), trunk(embeds, text_and_image(3, 2))
    torch.testing.assert_close(wide[:, :2], tall[:, :2])
    assert not torch.allclose(wide[:, 2:], tall[:, 2:], atol=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_cached_equals_full_with_images_padding_and_packed_documents(seed: int) -> None:
    trunk = neo()
    table = random_table(torch.Generator().manual_seed(seed), length=30)
    embeds = torch.randn(*table.shape, WIDTH)
    full = trunk(embeds, table)
    inside = (table.order[:, 1:] == table.order[:, :-1]) & (table.document[:, 1:] == table.document[:, :-1])
    cuts = [0, *(i + 1 for i in range(29) if not inside[:, i].any() and i % 3 == 0), 30]
    cache = trunk.new_cache(table.shape[0], 30)
    steps = [trunk(embeds[:, a:b], table.slice(a, b), cache) for a, b in pairwise(cuts)]
    real = ~table.is_padding
    torch.testing.assert_close(torch.cat(steps, dim=1)[real], full[real], atol=1e-5, rtol=1e-5)
    assert cache.keys[0].shape[-1] == 2 * cache.values[0].shape[-1]


def test_a_static_cache_holds_keys_wider_than_values() -> None:
    trunk, embeds, table = neo(), torch.randn(1, 11, WIDTH), text_and_image(2, 4)
    cache = StaticCache(trunk.new_cache(1, 14))
    steps = []
    for a, b in ((0, 2), (2, 10), (10, 11)):
        mask = cache.mask_for(table.slice(a, b))
        steps.append(trunk(embeds[:, a:b], table.slice(a, b), cache, mask=mask))
    torch.testing.assert_close(torch.cat(steps, dim=1), trunk(embeds, table), atol=1e-5, rtol=1e-5)


def test_gradients_reach_every_parameter_and_a_copy_is_equal(tmp_path) -> None:
    trunk, embeds, table = neo(bias=True, num_prebuffer_layers=1), torch.randn(1, 9, WIDTH), text_and_image(2, 3)
    trunk(embeds, table).square().sum().backward()
    # A bias of the keys that all of them share changes nothing but through their norm.
    assert all(parameter.grad.abs().max() > 0 for parameter in trunk.parameters())
    trunk.save_pretrained(tmp_path)
    again = NEOTrunk.from_pretrained(tmp_path)
    assert torch.equal(again(embeds, table), trunk(embeds, table))
    assert again.num_prebuffer_layers == 1


def test_bfloat16() -> None:
    assert neo().bfloat16()(torch.randn(1, 9, WIDTH).bfloat16(), text_and_image(2, 3)).dtype == torch.bfloat16


def test_a_qwen3_that_became_a_neo_computes_what_it_did() -> None:
    torch.manual_seed(0)
    qwen3 = Decoder(**SIZES, qk_norm=True, norm_eps=1e-6).eval()
    trunk, report = neo_from_qwen3(qwen3, num_prebuffer_layers=0)
    report.verify()
    embeds, table = torch.randn(2, 7, WIDTH), TokenTable.text(2, 7)
    torch.testing.assert_close(trunk.eval()(embeds, table), qwen3(embeds, table), atol=1e-5, rtol=1e-5)
    deeper, report = neo_from_qwen3(qwen3, num_prebuffer_layers=3)
    assert len(deeper.layers) == 5
    assert {name.split(".")[1] for name in report.new if "mlp" in name} == {"0", "1", "2"}


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="head_dim is 6"):
        neo(head_dim=6)
    with pytest.raises(ValueError, match="num_prebuffer_layers is 3"):
        neo(num_prebuffer_layers=3)
    with pytest.raises(ValueError, match="no Qwen3"):
        neo_from_qwen3(Decoder(**SIZES), num_prebuffer_layers=1)
    with pytest.raises(ValueError, match="do not fit"):
        neo()(torch.randn(1, 8, WIDTH), text_and_image(2, 3))
