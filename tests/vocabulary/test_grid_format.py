import pytest
import torch

from mmblocks.vocabulary.grid_format import ANY_CODE, EMU3, EMU35, FINISHED

FORMATS = {"emu3": EMU3, "emu3.5": EMU35}


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (3, 5), (12, 10), (101, 1)])
def test_what_is_written_can_be_read(format, size) -> None:
    codes = torch.randint(format.num_codes, size, generator=torch.Generator().manual_seed(0))
    written = format.write(codes)
    pieces = format.read([7, *written.ids.tolist(), 8, 9])
    assert pieces[0] == [7]
    assert torch.equal(pieces[1], codes)
    assert pieces[2] == [8, 9]
    body = written.ids[-format.length(*size) :]
    places = written.place[-format.length(*size) :]
    for token, (_, row, column) in zip(body.tolist(), places.tolist(), strict=True):
        assert row < 0 or token == codes[row, column] + format.first_code


def test_expected_is_batched_over_sizes() -> None:
    offset = torch.tensor([3, 3, 0, 99])
    expected = EMU35.expected(offset, torch.tensor([2, 1, 1, 1]), torch.tensor([3, 3, 1, 1]))
    assert expected.tolist() == [EMU35.row_end, EMU35.closing[-1], ANY_CODE, FINISHED]


def test_a_width_of_one_still_closes_the_image() -> None:
    assert EMU3.write(torch.zeros(2, 1, dtype=torch.long)).ids.tolist()[5:] == [
        EMU3.first_code, EMU3.row_end, EMU3.first_code, EMU3.row_end, *EMU3.closing,
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
        EMU3.read([EMU3.begin, *size, EMU3.image, EMU3.first_code])
