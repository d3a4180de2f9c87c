"""Random token tables: packed documents of text and images, padded on either side."""

import torch

from mmblocks.sequence.tokens import NO_SPAN, Modality, TokenTable


def random_table(generator: torch.Generator, *, batch: int = 3, length: int = 40, noisy: bool = False) -> TokenTable:
    """Rows of one to three documents, each a random run of text, images seen at once and images seen causally.

    With ``noisy``, some images are followed by a noised copy that carries the order of the clean one.
    """
    table = TokenTable.padding(batch, length)
    for row in range(batch):
        column = _draw(0, 4, generator)
        for document in range(_draw(1, 4, generator)):
            column = _write_document(table, row, column, document, generator, noisy)
    return table


def cuts_between_images(table: TokenTable, every: int) -> list[int]:
    """Where a row may be cut, about every so many tokens: an image that attends within itself has to come in one piece."""
    order, document = table.order, table.document
    inside = ((order[:, 1:] == order[:, :-1]) & (document[:, 1:] == document[:, :-1])).any(dim=0).tolist()
    allowed = [place + 1 for place, within in enumerate(inside) if not within and place % every == 0]
    return [0, *allowed, table.shape[1]]


def _write_document(table: TokenTable, row: int, column: int, document: int, generator: torch.Generator, noisy: bool) -> int:
    order = 0
    for span in range(_draw(1, 5, generator)):
        size = _draw(1, 7, generator)
        kind = _draw(0, 3, generator)
        copies = 2 if noisy and kind == 1 else 1
        for copy in range(copies):
            stop = min(column + size, table.shape[1] - 1)
            here = slice(column, stop)
            steps = torch.zeros(stop - column) if kind == 1 else torch.arange(stop - column)
            table.document[row, here] = document
            table.modality[row, here] = Modality.VISION if kind else Modality.TEXT
            table.span[row, here] = 2 * span + copy if kind else NO_SPAN
            table.order[row, here] = order + steps.long()
            table.noisy[row, here] = copy == 1
            column = stop
        order += size
    return column


def _draw(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high, (), generator=generator))
