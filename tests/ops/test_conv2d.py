import pytest
import torch
from torch.nn import functional

import mmblocks.ops.conv2d as op
from mmblocks.ops import arithmetic
from mmblocks.ops.conv2d import conv2d, winograd

SHAPES = [(2, 64, 96, 17, 26), (1, 96, 64, 20, 20), (1, 64, 64, 300, 3)]


@pytest.fixture(autouse=True)
def no_half_precision(monkeypatch) -> None:
    """The same way on every machine."""
    monkeypatch.setattr(arithmetic, "_EMULATED", frozenset((torch.bfloat16, torch.float16)))


def drawn(batch, channels, wide, height, width, size, dtype):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(batch, channels, height, width), torch.randn(wide, channels, size, size), torch.randn(wide)
    return [value.to(dtype) for value in (x, weight, bias)]


def exact(x, weight, bias, **options):
    return functional.conv2d(x.double(), weight.double(), bias.double(), **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_rounded_once(shape, dtype) -> None:
    """What comes out is the exact result, rounded: it may fall to the neighbouring number where it lies between two."""
    x, weight, bias = drawn(*shape, 3, dtype)
    assert op._winograd_wins(x, weight, 1, 1)
    found, right = conv2d(x, weight, bias, padding=1), exact(x, weight, bias, padding=1)
    assert found.dtype == dtype
    least = (right.to(dtype).double() - right).abs().max()
    assert (found.double() - right).abs().max() <= 1.1 * least


@pytest.mark.parametrize(
    ("shape", "size", "options"),
    [
        ((1, 3, 64, 9, 10), 3, {"padding": 1}),
        ((2, 64, 64, 17, 18), 3, {"stride": 2}),
        ((1, 64, 80, 18, 20), 1, {}),
        ((1, 64, 64, 20, 17), 3, {"padding": (0, 1)}),
    ],
)
@torch.no_grad()
def test_other_convolutions(shape, size, options) -> None:
    x, weight, bias = drawn(*shape, size, torch.bfloat16)
    torch.testing.assert_close(conv2d(x, weight, bias, **options), exact(x, weight, bias, **options).bfloat16())


def test_gradients() -> None:
    values = [value.requires_grad_() for value in drawn(*SHAPES[0], 3, torch.bfloat16)]
    wide = [value.detach().double().requires_grad_() for value in values]
    factors = torch.randn(2, 96, 17, 26, dtype=torch.float64)
    (conv2d(*values, padding=1) * factors.bfloat16()).sum().backward()
    (functional.conv2d(*wide, padding=1) * factors.bfloat16()).sum().backward()
    for value, right in zip(values, wide, strict=True):
        torch.testing.assert_close(value.grad, right.grad.bfloat16(), rtol=0.02, atol=0.2)


@pytest.mark.parametrize("strip", [1, 100_000])
@torch.no_grad()
def test_strips_leave_nothing_out(monkeypatch, strip) -> None:
    """Whatever number of rows a strip has; memory that was not written holds NaN."""
    monkeypatch.setattr(winograd, "STRIP_BYTES", strip)
    monkeypatch.setattr(torch, "empty", lambda *size, **where: torch.full(size, torch.nan, **where))
    x, weight, bias = drawn(2, 5, 7, 21, 10, 3, torch.float32)
    torch.testing.assert_close(
        winograd.conv3x3_winograd(x, weight, bias), exact(x, weight, bias, padding=1).float(), rtol=1e-4, atol=1e-4
    )
    without = winograd.conv3x3_winograd(x, weight)
    torch.testing.assert_close(without, exact(x, weight, 0 * bias, padding=1).float(), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_float32_is_pytorchs() -> None:
    x, weight, bias = drawn(*SHAPES[0], 3, torch.float32)
    assert torch.equal(conv2d(x, weight, bias, padding=1), functional.conv2d(x, weight, bias, padding=1))
