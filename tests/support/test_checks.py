"""Values are looked at where that costs nothing, and refused by the argument's name."""

import re

import pytest
import torch

from mmblocks.support.checks import as_int64, check_finite, check_range, check_shape, is_readable


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.uint16, torch.uint32, torch.uint64])
def test_numbers_in_range_pass(dtype) -> None:
    check_range("ids", torch.tensor([[0, 4], [2, 3]], dtype=dtype), 5)
    check_range("ids", torch.empty(0, dtype=dtype), 5)
    assert torch.equal(as_int64("ids", torch.tensor([200, 3], dtype=dtype)), torch.tensor([200, 3]))


@pytest.mark.parametrize(("low", "high"), [(-1, 2), (0, 5)])
def test_numbers_out_of_range_are_named(low, high) -> None:
    values = torch.tensor([[1, low], [high, 1]])
    with pytest.raises(ValueError, match=rf"^ids lie in \[{low}, {high}\]; accepted: \[0, 4\]$"):
        check_range("ids", values, 5)
    with pytest.raises(ValueError, match=rf"^target lies in \[{low}, {high}\]; accepted: \[0, 4\], the last for none$"):
        check_range("target", values, 5, ", the last for none")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_what_is_no_number_of_something_is_refused(dtype) -> None:
    with pytest.raises(TypeError, match=f"ids: dtype {dtype}; accepted: integers"):
        check_range("ids", torch.zeros(2, dtype=dtype), 5)
    with pytest.raises(TypeError, match=f"ids: dtype {dtype}; accepted: integers"):
        as_int64("ids", torch.zeros(2, dtype=dtype))


def test_shapes_are_compared_axis_by_axis() -> None:
    check_shape("ids", torch.zeros(2, 3, 4), "B", "h", 4)
    check_shape("value", torch.tensor(1.0))
    for shape in ((3, 4), (2, 3, 5), (1, 2, 3, 4)):
        with pytest.raises(ValueError, match=re.escape(f"ids have shape {shape}; accepted: (B, h, 4)")):
            check_shape("ids", torch.zeros(shape), "B", "h", 4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(value) -> None:
    check_finite("target", torch.zeros(3))
    with pytest.raises(ValueError, match="target holds NaN or infinity"):
        check_finite("target", torch.tensor([0.0, value]))


def test_nothing_is_read_on_other_devices() -> None:
    values = torch.full((2,), 9, device="meta")  # reading it would raise
    assert not is_readable(values)
    check_range("ids", values, 5)
    check_finite("target", values.float())


@pytest.mark.unchecked
def test_nothing_is_read_inside_a_compiled_graph() -> None:
    @torch.compile(backend="eager", fullgraph=True)
    def checked(ids):
        check_range("ids", ids, 5)
        return ids + 1

    assert checked(torch.tensor([9])).tolist() == [10]
