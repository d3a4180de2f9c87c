"""Codes that are no grid of one code a place: rows of codes, clips, several levels."""

import pytest
import torch

from mmblocks.vocabulary import EMU3, CodeIds, DepthCodeFormat, GridFormat
from mmblocks.vocabulary.grid_format import ANY_CODE, FINISHED

DIGITS = {"image": 2, "times": 3, "digits": tuple(range(10, 20))}


def _format(**options) -> GridFormat:
    return GridFormat(**{"begin": 0, "closing": (1,), "codes": CodeIds(sizes=(6,), first=30)} | options)


LEVELS = CodeIds(sizes=(6, 5, 4), first=30)
TABLE = CodeIds(sizes=(3, 2), table=(34, 30, 32, 33, 31))
SHARED = CodeIds(sizes=(6, 5, 4), first=30, shared=True)
FORMATS = {
    "row of codes": (_format(fixed_size=(5,)), (5,)),
    "one code": (_format(fixed_size=(1,)), (1,)),
    "row whose length is written": (_format(**DIGITS, axes=1), (11,)),
    "row whose length is written without times": (_format(**DIGITS | {"times": None}, axes=1), (11,)),
    "clip": (_format(fixed_size=(2, 3, 4)), (2, 3, 4)),
    "clip with ends of rows": (_format(fixed_size=(3, 2, 1), row_end=4), (3, 2, 1)),
    "clip with ends of frames": (_format(**DIGITS, axes=3, row_end=4, frame_end=5), (2, 3, 4)),
    "clip with ends of all rows": (_format(**DIGITS, axes=3, row_end=4, frame_end=5, last_row_end=True), (3, 1, 2)),
    "clip of frames alone": (_format(**DIGITS, axes=3, frame_end=5), (2, 1, 2)),
    "levels": (_format(codes=LEVELS, fixed_size=(2, 3)), (2, 3)),
    "levels with ends of rows": (_format(codes=LEVELS, **DIGITS, row_end=4), (3, 1)),
    "levels of one range": (_format(codes=SHARED, **DIGITS, row_end=4, last_row_end=True), (2, 5)),
    "levels of a table": (_format(codes=TABLE, fixed_size=(2, 3)), (2, 3)),
    "levels of a row": (_format(codes=LEVELS, fixed_size=(4,), begin=None, closing=()), (4,)),
    "levels of a clip": (_format(codes=LEVELS, **DIGITS, axes=3, row_end=4, frame_end=5), (2, 3, 2)),
}


def _codes(form: GridFormat, size: tuple[int, ...]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    levels = [torch.randint(count, size, generator=generator) for count in form.codes.sizes]
    return levels[0] if len(levels) == 1 else torch.stack(levels, dim=-1)


@pytest.mark.parametrize(("form", "size"), FORMATS.values(), ids=FORMATS)
def test_what_is_written_can_be_read(form, size) -> None:
    grid = _codes(form, size)
    written = form.write(grid)
    ids = written.ids.tolist()
    assert torch.equal(form.read_image(ids), grid)
    head = form.head(*size)
    assert ids[: len(head)] == head and len(ids) == len(head) + form.length(*size)
    if form.begin is not None:
        text, image, more = form.read([7, *ids, 8])
        assert text == [7] and torch.equal(image, grid) and more == [8]


@pytest.mark.parametrize(("form", "size"), FORMATS.values(), ids=FORMATS)
def test_each_token_is_what_its_place_and_level_say(form, size) -> None:
    grid = _codes(form, size).reshape(*(1,) * (3 - len(size)), *size, form.num_levels)
    written, head = form.write(_codes(form, size)), len(form.head(*size))
    expected = form.expected(torch.arange(form.length(*size) + 1), *size).tolist()
    assert expected.count(ANY_CODE) == grid.numel() and expected.index(FINISHED) == form.length(*size)
    seen = []
    for offset, (token, place) in enumerate(zip(written.ids[head:].tolist(), written.place[head:].tolist(), strict=True)):
        if place[0] < 0:
            assert token == expected[offset]
            continue
        level = form.level(offset, *size)
        assert form.place_in(offset, *size) == tuple(place)
        frame, row, column = place
        assert token == form.codes.ids(level)[grid[frame, row, column, level]]
        assert any(first <= token < stop for first, stop in form.codes.ranges_of(level))
        seen.append((*place, level))
    assert seen == sorted(set(seen)) and len(seen) == grid.numel()


def test_rows_and_frames_are_closed_where_they_end() -> None:
    form = _format(**DIGITS, axes=3, row_end=4, frame_end=5)
    ids = form.write(torch.zeros(2, 2, 1, dtype=torch.long)).ids.tolist()
    assert ids == [0, 12, 3, 12, 3, 11, 2, 30, 4, 30, 5, 30, 4, 30, 5, 1]
    closed = _format(**DIGITS, axes=3, row_end=4, frame_end=5, last_row_end=True)
    assert closed.write(torch.zeros(1, 2, 1, dtype=torch.long)).ids.tolist()[7:] == [30, 4, 30, 4, 5, 1]
    assert {4, 5} <= form.structure


def test_one_frame_is_written_as_emu3_writes_an_image() -> None:
    clip = GridFormat(**vars(EMU3) | {"axes": 3, "frame_end": EMU3.closing[0], "closing": EMU3.closing[1:]})
    grid = torch.randint(32768, (3, 5))
    written, image = clip.write(grid[None]), EMU3.write(grid)
    assert written.ids[-EMU3.length(3, 5) :].tolist() == image.ids[-EMU3.length(3, 5) :].tolist()
    assert torch.equal(written.place[-EMU3.length(3, 5) :], image.place[-EMU3.length(3, 5) :])


def test_expected_is_batched_over_clips() -> None:
    form = _format(**DIGITS, axes=3, row_end=4, frame_end=5)
    sizes = [torch.tensor(side) for side in ([1, 2, 1], [2, 1, 1], [1, 1, 2])]
    assert form.expected(torch.tensor([1, 3, 3]), *sizes).tolist() == [4, 5, 1]


@pytest.mark.parametrize(
    ("form", "shape", "accepted"),
    [
        (_format(fixed_size=(4,)), (2, 2), r"\(N,\) with N at least 1"),
        (_format(fixed_size=(4,)), (0,), r"\(N,\) with N at least 1"),
        (_format(fixed_size=(4,)), (5,), r"accepted: \(4,\), the only size"),
        (_format(fixed_size=(1, 2, 2)), (2, 2), r"\(T, H, W\) with T and H and W at least 1"),
        (_format(codes=LEVELS, fixed_size=(2, 2)), (2, 2), r"\(H, W, 3\) with H and W at least 1"),
        (_format(codes=LEVELS, fixed_size=(2, 2)), (2, 2, 2), r"\(H, W, 3\)"),
        (_format(codes=LEVELS, fixed_size=(4,)), (4,), r"\(N, 3\) with N"),
    ],
)
def test_grids_of_other_shapes_are_refused(form, shape, accepted) -> None:
    with pytest.raises(ValueError, match=rf"codes has shape .*; accepted: .*{accepted.removeprefix('accepted: ')}"):
        form.write(torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"fixed_size": (1, 1, 1, 1)}, "fixed_size is"),
        ({"fixed_size": ()}, "fixed_size is"),
        ({"fixed_size": (2, 0, 2)}, "fixed_size is"),
        ({"fixed_size": (2, 2), "axes": 3}, "axes is 3, fixed_size"),
        ({**DIGITS, "axes": 4}, "axes is 4"),
        ({"fixed_size": (2, 2), "frame_end": 5}, "frame_end is 5 with 2 axes"),
        ({**DIGITS, "times": None}, "fixed_size is None"),
    ],
)
def test_formats_that_cannot_be_are_refused(options, named) -> None:
    with pytest.raises(ValueError, match=named):
        _format(**options)


def test_a_code_of_another_level_is_refused() -> None:
    form = _format(codes=LEVELS, fixed_size=(1, 1))
    with pytest.raises(ValueError, match="do not follow the format"):
        form.read_image([0, 30, 30, 41, 1])


DEPTH = {
    "together": (DepthCodeFormat(sizes=(6, 5, 4)), (2, 3)),
    "delayed": (DepthCodeFormat(sizes=(6, 5, 4), delays=(0, 1, 2)), (2, 3)),
    "first alone": (DepthCodeFormat(sizes=(6, 5, 4), delays=(0, 2, 2), axes=1), (1,)),
    "last first": (DepthCodeFormat(sizes=(6, 5), delays=(1, 0), axes=1), (5,)),
    "clip": (DepthCodeFormat(sizes=(6, 5), delays=(0, 3), axes=3), (2, 1, 2)),
}


@pytest.mark.parametrize(("form", "size"), DEPTH.values(), ids=DEPTH)
def test_codes_of_a_place_are_one_token(form, size) -> None:
    grid = torch.stack([torch.randint(count, size) for count in form.sizes], dim=-1)
    ids, place = form.write(grid)
    assert torch.equal(form.read(ids, *size), grid)
    assert len(ids) == len(place) == form.length(*size)
    flat, delays = grid.reshape(-1, len(form.sizes)), form.delays or (0,) * len(form.sizes)
    for at, token in enumerate(ids.tolist()):
        for level, code in enumerate(token):
            own = at - delays[level]
            assert code == (flat[own, level] if 0 <= own < len(flat) else -1)
            assert form.present(*size)[at, level] == (code >= 0)
    assert place[0].tolist() == [0, 0, 0] and place[-1].tolist() == [*(0,) * (3 - len(size)), *(side - 1 for side in size)]


def test_what_is_no_depth_code_is_refused() -> None:
    form = DepthCodeFormat(sizes=(6, 5))
    with pytest.raises(ValueError, match=r"codes hold 5; accepted: from 0 to below \(6, 5\)"):
        form.write(torch.tensor([[[0, 5]]]))
    with pytest.raises(ValueError, match=r"accepted: \(H, W, 2\)"):
        form.write(torch.zeros(2, 2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"ids have shape \(3, 2\).*accepted: \(4, 2\)"):
        form.read(torch.zeros(3, 2, dtype=torch.long), 2, 2)
    with pytest.raises(ValueError, match="codes hold -1"):
        form.read(torch.full((4, 2), -1), 2, 2)
    for wrong in ({"sizes": (4,)}, {"sizes": (4, 0)}, {"axes": 4}, {"delays": (0,)}, {"delays": (1, 1)}, {"delays": (0, -1)}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is"):
            DepthCodeFormat(**{"sizes": (6, 5)} | wrong)


@pytest.mark.unchecked
def test_codes_that_are_no_integers_are_refused() -> None:
    with pytest.raises(TypeError, match=r"codes are torch\.float32"):
        DepthCodeFormat(sizes=(6, 5)).write(torch.zeros(2, 2, 2))
