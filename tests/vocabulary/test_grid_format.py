from dataclasses import replace

import pytest
import torch

from mmblocks.vocabulary.code_ids import CodeIds
from mmblocks.vocabulary.grid_format import ANY_CODE, EMU3, EMU35, FINISHED, GridFormat, chameleon_format

FORMATS = {"emu3": EMU3, "emu3.5": EMU35}


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (3, 5), (12, 10), (101, 1)])
def test_what_is_written_can_be_read(format, size) -> None:
    codes = torch.randint(format.codes.num_ids, size, generator=torch.Generator().manual_seed(0))
    written = format.write(codes)
    pieces = format.read([7, *written.ids.tolist(), 8, 9])
    assert pieces[0] == [7]
    assert torch.equal(pieces[1], codes)
    assert pieces[2] == [8, 9]
    body = written.ids[-format.length(*size) :]
    places = written.place[-format.length(*size) :]
    for token, (_, row, column) in zip(body.tolist(), places.tolist(), strict=True):
        assert row < 0 or token == codes[row, column] + format.codes.start


SIDES = GridFormat(begin=0, closing=(1,), row_end=2, codes=CodeIds(sizes=(8,), first=20), sides=((1, 10), (2, 11), (4, 12)))


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (4, 2)])
@pytest.mark.parametrize("image", [None, 3])
def test_a_side_may_have_an_id_of_its_own(size, image) -> None:
    form = replace(SIDES, image=image)
    grid = torch.arange(size[0] * size[1]).reshape(size)
    ids = form.write(grid % 8).ids.tolist()
    named = {1: 10, 2: 11, 4: 12}
    assert ids[1:3] == [named[side] for side in size] and (image is None or ids[3] == image)
    assert form.read_size(ids[1:3]) == size
    pieces = form.read([7, *ids, 8])
    assert pieces[0] == [7] and torch.equal(pieces[1], grid % 8) and pieces[2] == [8]
    assert {10, 11, 12, 1, 2} <= form.structure


def test_sides_without_an_id_and_ids_without_a_side_are_refused() -> None:
    with pytest.raises(ValueError, match=r"size is \(2, 3\); accepted: sides of 1, 2, 4 tokens"):
        SIDES.write(torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"ids \[10, 13\] after begin are no size; accepted: 2 of 10, 11, 12"):
        SIDES.read([0, 10, 13, 20, 1])
    with pytest.raises(ValueError, match="are no size"):
        SIDES.read([0, 10])
    with pytest.raises(ValueError, match="each of them once"):
        replace(SIDES, sides=((1, 10), (2, 10)))
    with pytest.raises(ValueError, match="sides alone"):
        replace(SIDES, fixed_size=(2, 2))
    with pytest.raises(ValueError, match="sides alone"):
        replace(SIDES, digits=tuple(range(30, 40)))


def test_expected_is_batched_over_sizes() -> None:
    offset = torch.tensor([3, 3, 0, 99])
    expected = EMU35.expected(offset, torch.tensor([2, 1, 1, 1]), torch.tensor([3, 3, 1, 1]))
    assert expected.tolist() == [EMU35.row_end, EMU35.closing[-1], ANY_CODE, FINISHED]


def test_a_width_of_one_still_closes_the_image() -> None:
    assert EMU3.write(torch.zeros(2, 1, dtype=torch.long)).ids.tolist()[5:] == [
        EMU3.codes.start, EMU3.row_end, EMU3.codes.start, EMU3.row_end, *EMU3.closing,
    ]  # fmt: skip


@pytest.mark.parametrize("codes", [torch.tensor([[-1]]), torch.tensor([[32768]])])
def test_codes_outside_the_vocabulary_are_refused(codes) -> None:
    with pytest.raises(ValueError, match=r"accepted: \[0, 32767\]"):
        EMU3.write(codes)


def test_an_empty_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="H and W at least 1"):
        EMU3.write(torch.zeros(0, 3, dtype=torch.long))


def test_a_broken_off_image_is_refused() -> None:
    ids = EMU3.write(torch.zeros(2, 2, dtype=torch.long)).ids.tolist()
    with pytest.raises(ValueError, match="end inside a 2x2 image"):
        EMU3.read(ids[:-1])


def test_an_image_with_a_misplaced_row_end_is_refused() -> None:
    ids = EMU3.write(torch.zeros(2, 2, dtype=torch.long)).ids.tolist()
    ids[5], ids[7] = ids[7], ids[5]
    with pytest.raises(ValueError, match="do not follow the format"):
        EMU3.read(ids)


@pytest.mark.parametrize("size", [[], [17], [17, 9], [9, 17], [15, 9, 17], [400, 9, 17]])
def test_a_size_that_spells_nothing_is_refused(size) -> None:
    with pytest.raises(ValueError, match="do not spell a size"):
        EMU3.read([EMU3.begin, *size, EMU3.image, EMU3.codes.start])


def test_the_names_that_codes_replaced_still_work() -> None:
    written = {"begin": 1, "closing": (2,), "fixed_size": (1, 1)}
    now = GridFormat(**written, codes=CodeIds(sizes=(4,), first=3))
    with pytest.warns(FutureWarning, match=r"GridFormat's first_code, num_codes, code_ids is codes=CodeIds\(\.\.\.\) now; .* 0\.3"):
        assert GridFormat(**written, first_code=3, num_codes=4) == now
    with pytest.warns(FutureWarning):
        assert replace(now, first_code=9).codes == CodeIds(sizes=(4,), first=9)
    with pytest.warns(FutureWarning):
        shuffled = GridFormat(**written, first_code=3, num_codes=4, code_ids=(5, 3, 4, 6))
    assert shuffled.codes == CodeIds(sizes=(4,), table=(5, 3, 4, 6))
    for name, value in {"first_code": 3, "num_codes": 4, "code_ids": (5, 3, 4, 6)}.items():
        with pytest.warns(FutureWarning, match=f"GridFormat's {name} is codes"):
            assert getattr(shuffled, name) == value
    with pytest.warns(FutureWarning, match="code_ids is a CodeIds now"):
        assert chameleon_format([4, 6, 5]) == chameleon_format(CodeIds(sizes=(3,), table=(4, 6, 5)))
