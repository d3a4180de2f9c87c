"""Where documents begin in a row, whatever padding stands in them: before them, after them, and inside.

Shapes: B batch, L tokens.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mmblocks.sequence.tokens import TokenTable


def last_real(table: TokenTable) -> Int[Tensor, "B L"]:
    """The place of each token, and for padding that of the last token before it; -1 where there is none."""
    index = torch.arange(table.shape[1], device=table.document.device).expand_as(table.document)
    return torch.where(table.is_padding, -1, index).cummax(dim=1).values


def noised_run_begins(table: TokenTable) -> Int[Tensor, "B L"]:
    """Where the run of each token begins: of one document, one span, all noised or all clean. Padding belongs to any."""
    place = last_real(table).clamp(min=0)
    kind = torch.stack([table.noisy.long(), table.span, table.document]).gather(2, place.expand(3, -1, -1))
    begins = torch.cat([torch.ones_like(table.noisy[:, :1]), (kind[..., 1:] != kind[..., :-1]).any(dim=0)], dim=1)
    index = torch.arange(table.shape[1], device=table.order.device).expand_as(table.order)
    return torch.where(begins, index, 0).cummax(dim=1).values


def document_begins(table: TokenTable) -> Bool[Tensor, "B L"]:
    """True at the first token of each document, whatever padding stands inside: where a recurrence over a row begins anew.

    Examples:
        >>> from mmblocks import TokenTable
        >>> from mmblocks.sequence import document_begins
        >>> table = TokenTable.text(1, 5)
        >>> table.document[:, 3:] = 1  # two samples packed into one row
        >>> document_begins(table).int().tolist()
        [[1, 0, 0, 1, 0]]
    """
    first = torch.arange(table.shape[1], device=table.document.device) == 0
    before = torch.where(first, -1, last_real(table).roll(1, dims=1))
    other = table.document != table.document.gather(1, before.clamp(min=0))
    return ~table.is_padding & ((before < 0) | other)
