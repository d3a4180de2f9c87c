"""Ids to vectors of a table, and these to what a trunk reads."""

import pytest
import torch

from mmblocks import TextEmbedding
from mmblocks.connectors import MLPProjector
from mmblocks.embedders import ProjectedEmbedding


def test_rows_of_the_table_go_through_the_connector() -> None:
    torch.manual_seed(0)
    table, connector = TextEmbedding(vocab_size=9, dim=6), MLPProjector(in_dim=6, dim=8)
    ids = torch.tensor([3, 8, 3])
    found = ProjectedEmbedding(table=table, connector=connector)(ids)
    assert torch.equal(found, connector(table.weight[ids]))
    found.sum().backward()
    assert table.weight.grad is not None and table.weight.grad[[0, 1, 2, 4, 5, 6, 7]].abs().max() == 0


def test_other_ids_are_refused_and_none_are_none() -> None:
    part = ProjectedEmbedding(table=TextEmbedding(vocab_size=9, dim=6), connector=MLPProjector(in_dim=6, dim=8))
    with pytest.raises(ValueError, match="ids"):
        part(torch.tensor([9]))
    assert part(torch.zeros(0, dtype=torch.long)).shape == (0, 8)
    assert part.to(torch.bfloat16)(torch.tensor([1])).dtype == torch.bfloat16
