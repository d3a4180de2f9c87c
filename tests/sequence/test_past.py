"""What is kept of a row says the same of one token more as the whole row does."""

import pytest
import torch

from mmblocks.sequence.following import FOLLOWING
from mmblocks.sequence.masks import Dense, densify, lower, visible
from mmblocks.sequence.past import Past
from mmblocks.sequence.tokens import NO_SPAN, PADDING, Modality, TokenTable
from tests.shared.random_tables import random_table


def written_table(generator: torch.Generator, *, batch: int = 4, prompt: int = 12, length: int = 40, left=True) -> TokenTable:
    """Rows padded on the left or not, and after the prompt token by token: text, images of one span, padding in the midst."""
    table = TokenTable.text(batch, length)

    def draw(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    for row in range(batch):
        span, step, side = 0, 0, 1
        for column in range(length):
            if column >= prompt and draw(3) == 0:  # an image begins, goes on, or the row goes back to text
                span, step, side = span + 1, 0, 1 + draw(3)
            in_image = span % 2 == 1
            table.span[row, column] = span if in_image else NO_SPAN
            table.modality[row, column] = Modality.VISION if in_image else Modality.TEXT
            table.grid[row, column] = torch.tensor([0, step // side, step % side]) if in_image else 0
            step += 1
            if (left and column < draw(prompt // 2)) or (column > prompt and draw(4) == 0):
                table.document[row, column] = table.modality[row, column] = PADDING
                table.span[row, column] = NO_SPAN
        table.order[row] = torch.arange(length)
    table.document[:, prompt - 1] = 0
    return table


def check(table: TokenTable, start: int, stop: int) -> None:
    """Every token from ``start`` on, against the rule and the schemes on whole rows."""
    past = Past.of(table, start)
    assert past is not None
    for place in range(start, stop):
        column, keys = table.slice(place, place + 1), table.slice(0, place + 1)
        assert past.read(column, keys)
        seen = densify(past.mask, 1, place + 1, "cpu").expand(len(table.document), -1, -1)
        wanted = visible(column, keys)
        if not isinstance(past.mask, Dense):
            assert wanted.all()
        assert torch.equal(seen, wanted)
        for scheme in FOLLOWING:
            assert torch.equal(past.positions(scheme), scheme(keys)), scheme.__name__


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_tokens_one_by_one_are_what_they_are_in_whole_rows(seed, left) -> None:
    check(written_table(torch.Generator().manual_seed(seed), left=left), 12, 40)


@pytest.mark.parametrize("seed", range(6))
def test_what_follows_packed_documents_of_any_layout(seed) -> None:
    """The prompt holds several documents and images that attend within themselves; text follows the last one."""
    table = random_table(torch.Generator().manual_seed(seed), batch=3, length=30)
    places = torch.arange(30)
    last = torch.where(table.document >= 0, places, -1).amax(dim=1, keepdim=True)
    room = TokenTable.padding(3, 42)
    room.write(0, table)
    for place in range(30, 42):
        room.document[:, place] = torch.where(torch.arange(3) == place % 4, PADDING, table.document.gather(1, last)[:, 0])
        room.modality[:, place] = torch.where(room.document[:, place] == PADDING, PADDING, Modality.TEXT)
        room.order[:, place] = table.order.gather(1, last)[:, 0] + (place - 30) // 2
    check(room, 30, 42)


def test_a_scheme_is_asked_for_at_any_time() -> None:
    table = written_table(torch.Generator().manual_seed(1))
    past = Past.of(table, 12)
    for place in range(12, 40):
        past.read(table.slice(place, place + 1), table.slice(0, place + 1))
        for number, scheme in enumerate(FOLLOWING):
            if place % (number + 2) == 0:
                assert torch.equal(past.positions(scheme), scheme(past.keys))
                assert torch.equal(past.positions(scheme), scheme(past.keys))  # and twice


def test_a_scheme_of_ones_own_is_computed_from_whole_rows() -> None:
    table = TokenTable.text(2, 8)
    past = Past.of(table, 5)
    past.read(table.slice(5, 6), table.slice(0, 6))

    def backwards(whole: TokenTable) -> torch.Tensor:
        return whole.order.flip(1)

    class Unhashable:
        __hash__ = None

        def __call__(self, whole: TokenTable) -> torch.Tensor:
            return whole.order + 1

    assert past.positions(backwards).tolist() == [[5, 4, 3, 2, 1, 0]] * 2
    assert past.positions(Unhashable()).tolist() == [[1, 2, 3, 4, 5, 6]] * 2


def test_rows_and_tokens_of_another_kind_are_left_to_the_rule() -> None:
    table = TokenTable.text(2, 8)
    assert Past.of(table, 0) is None
    noisy = table._replace(noisy=torch.arange(8) == 3)
    assert Past.of(table._replace(noisy=noisy.noisy.expand(2, 8)), 5) is None
    falling = table._replace(order=table.order.flip(1))
    assert Past.of(falling, 5) is None
    empty = table._replace(document=torch.full((2, 8), PADDING))
    assert Past.of(empty, 5) is None
    for changed in (
        {"noisy": torch.tensor([[False], [True]])},
        {"order": torch.tensor([[5], [3]])},  # falls
        {"document": torch.tensor([[0], [1]])},  # a document begins
    ):
        assert not Past.of(table, 5).read(table.slice(5, 6)._replace(**changed), table.slice(0, 6))


def test_the_cheapest_form_is_that_of_lowering() -> None:
    table = TokenTable.text(2, 8)
    past = Past.of(table, 5)
    past.read(table.slice(5, 6), table.slice(0, 6))
    assert past.mask == lower(table.slice(5, 6), table.slice(0, 6))
