"""Which tokens matter: attention that is received, features alone, windows, and the tokens that ask."""

import pytest
import torch

from mmblocks.layers.reduction.token_importance import (
    asking_tokens,
    attention_received,
    chosen,
    keep_local,
    last_tokens,
    prunable,
    similarity_received,
)
from mmblocks.sequence.masks import visible
from mmblocks.sequence.tokens import NO_HEAD, Modality, TokenTable


def rows(batch: int = 2, before: int = 2, image: int = 9, after: int = 3) -> TokenTable:
    """Text, an image of three rows, text."""
    table = TokenTable.text(batch, before + image + after)
    here = slice(before, before + image)
    table.modality[:, here], table.span[:, here] = Modality.VISION, 0
    table.grid[:, here, 1:] = torch.cartesian_prod(torch.arange(image // 3), torch.arange(3))
    return table


def test_attention_received_is_a_mean_of_softmaxes() -> None:
    query, key, table = torch.randn(2, 4, 14, 8), torch.randn(2, 2, 14, 8), rows()
    seen, counted = visible(table), prunable(table)
    whole = (query @ key.repeat_interleave(2, dim=1).mT / 8**0.5).masked_fill(~seen[:, None], -torch.inf).softmax(-1)
    wanted = torch.stack([whole[row, :, counted[row]].mean(dim=(0, 1)) for row in range(2)])
    torch.testing.assert_close(attention_received(query, key, seen, counted), wanted)
    index, real = chosen(counted)
    few = query.gather(2, index[:, None, :, None].expand(-1, 4, -1, 8))
    assert real.all()
    torch.testing.assert_close(attention_received(few, key, seen[:, 2:11], real), wanted)


def test_features_alone_find_what_is_common() -> None:
    table, x = rows(1), torch.zeros(1, 14, 4)
    x[..., 0] = 5
    x[0, 5] = 0
    importance = similarity_received(x, table, prunable(table))
    assert int(importance[0, 2:11].argmin()) == 3 and not importance[0, :2].any()


def test_a_local_scan_keeps_some_of_each_window() -> None:
    table = rows(2, image=12)
    importance = torch.rand(2, 17)
    keep = keep_local(importance, table, prunable(table), window=(2, 2))
    assert keep[:, :2].all() and keep[:, 14:].all() and keep[:, 2:14].sum(1).tolist() == [4, 4]
    best = importance[0, [2, 3, 5, 6]].argmax()
    assert keep[0, [2, 3, 5, 6]].nonzero().item() == best
    with pytest.raises(ValueError, match=r"window is \(0, 2\), count 1"):
        keep_local(importance, table, prunable(table), window=(0, 2))


def test_the_tokens_that_ask() -> None:
    table = rows(1)
    table.document[0, 7:] = 1
    table.target[0, [1, 2, 12]] = 0
    assert last_tokens(table)[0].nonzero().flatten().tolist() == [6, 13]
    assert asking_tokens(table)[0].nonzero().flatten().tolist() == [1, 12]
    assert not asking_tokens(table._replace(target=torch.full_like(table.target, NO_HEAD))).any()


def test_asked_and_noised_tokens_are_no_candidates() -> None:
    table = rows()
    table.target[0, 3] = 0
    table.noisy[1, 4] = True
    assert prunable(table).sum(1).tolist() == [8, 8] and not prunable(table)[0, 3] and not prunable(table)[1, 4]
