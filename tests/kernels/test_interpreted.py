"""The Triton kernels, run by Triton's interpreter on a CPU, beside float64."""

import pytest
import torch
from torch.nn.functional import cross_entropy, group_norm, silu

from mmblocks import ops
from mmblocks.ops.group_norm_silu import group_norm_silu
from mmblocks.ops.linear_cross_entropy import linear_cross_entropy
from mmblocks.ops.nearest_code import nearest_code

pytestmark = pytest.mark.unchecked


@pytest.mark.parametrize("size", [(70, 200, 4), (1, 1, 3), (65, 130, 16), (33, 130, 40), (130, 64, 15)])
@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_nearest_code(size, metric, dtype) -> None:
    num_vectors, num_codes, dim = size
    generator = torch.Generator().manual_seed(0)
    x, codes = (torch.randn(count, dim, generator=generator).to(dtype) for count in (num_vectors, num_codes))
    ids = nearest_code(x, codes, metric, impl="triton")
    x, codes = x.double(), codes.double()
    if metric == "cosine":
        x, codes = x / x.norm(dim=1, keepdim=True), codes / codes.norm(dim=1, keepdim=True)
    score = -x @ codes.T + (codes.square().sum(dim=1) / 2 if metric == "l2" else 0)
    assert torch.equal(ids, score.argmin(dim=1))


@pytest.mark.parametrize("dim", [4, 32])
def test_nearest_code_takes_the_lowest_of_equals(dim) -> None:
    codes = torch.randint(-9, 9, (3, dim), generator=torch.Generator().manual_seed(0)).float().repeat(90, 1)  # no rounding
    ids = nearest_code(codes[:70], codes, impl="triton")
    assert torch.equal(ids, torch.arange(70) % 3)


@pytest.mark.parametrize("size", [(7, 5, 11), (65, 40, 130), (1, 64, 200)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("biased", [True, False])
def test_linear_cross_entropy(size, dtype, biased) -> None:
    num_rows, dim, vocab = size
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator).to(dtype) for shape in ((num_rows, dim), (vocab, dim), (vocab,))
    )
    target = torch.randint(vocab, (num_rows,), generator=generator)
    bias = bias if biased else None
    loss = linear_cross_entropy(hidden, weight, target, bias, reduction="none", z_loss=0.1, impl="triton")
    logits = hidden.double() @ weight.double().T + (0 if bias is None else bias.double())
    expected = cross_entropy(logits, target, reduction="none") + 0.1 * logits.logsumexp(dim=1).square()
    torch.testing.assert_close(loss, expected.float(), atol=1e-5, rtol=1e-5)
    plain = linear_cross_entropy(hidden.float(), weight.float(), target, impl="eager")
    torch.testing.assert_close(linear_cross_entropy(hidden.float(), weight.float(), target, impl="triton"), plain)


def test_linear_cross_entropy_of_extreme_logits_and_rows_left_out() -> None:
    hidden, weight = torch.full((3, 4), 1e4), torch.eye(6, 4).mul(1e4)
    target = torch.tensor([0, -100, 5])
    loss = linear_cross_entropy(hidden, weight, target, reduction="none", impl="triton")
    torch.testing.assert_close(loss, cross_entropy(hidden @ weight.T, target, reduction="none"))


@pytest.mark.parametrize("shape", [(2, 6, 5, 7), (1, 12, 3, 4, 5), (3, 8, 1, 1), (1, 4, 20, 30)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("plain", [True, False])
def test_group_norm_silu(shape, dtype, plain) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(*shape, generator=generator) + 3).to(dtype)
    weight, bias = (None, None) if plain else (torch.randn(shape[1], generator=generator).to(dtype) for _ in range(2))
    with torch.no_grad():
        found = group_norm_silu(x, 2, weight, bias, impl="triton")
    exact = silu(group_norm(x.double(), 2, *(None if value is None else value.double() for value in (weight, bias))))
    assert found.dtype == dtype and found.movedim(1, -1).is_contiguous()
    torch.testing.assert_close(found.double(), exact, atol=1e-5 if dtype == torch.float32 else 5e-3, rtol=2e-3)


def test_kernels_are_proper_ops_and_give_the_same_bits_in_each_run() -> None:
    generator = torch.Generator().manual_seed(0)
    x, codes, image = (torch.randn(*shape, generator=generator) for shape in ((9, 20), (70, 20), (1, 4, 3, 5)))
    nearest_code(x, codes, impl="triton")  # kernels are loaded when one is asked for
    linear_cross_entropy(x, codes, torch.arange(9), impl="triton")
    group_norm_silu(image, 2, impl="triton")
    calls = (
        (torch.ops.mmblocks.nearest_code, (x, codes, codes.square().sum(dim=1) / 2, "ieee")),
        (torch.ops.mmblocks.linear_cross_entropy, (x, codes, torch.arange(9), None)),
        (torch.ops.mmblocks.group_norm_silu, (image, 2, None, None, 1e-5)),
    )
    for op, arguments in calls:
        found = torch.library.opcheck(
            op.default, arguments, test_utils=("test_schema", "test_autograd_registration", "test_faketensor")
        )
        assert set(found.values()) == {"SUCCESS"}
        torch.testing.assert_close(op(*arguments), op(*arguments), rtol=0, atol=0)


def test_a_kernel_that_cannot_take_the_inputs_says_why() -> None:
    x, codes = torch.zeros(2, 4), torch.zeros(3, 4)
    target = torch.zeros(2, dtype=torch.long)
    assert ops.which("linear_cross_entropy", x.double(), codes.double()).reason.startswith("it takes float32, bfloat16 and float16")
    capped = {"scale": 0.5, "softcap": 3.0}
    assert ops.which("linear_cross_entropy", x, codes, **capped).reason.startswith("it takes logits as they are")
    assert ops.which("nearest_code", x[:0], codes).reason.startswith("0 vectors")
    assert ops.which("group_norm_silu", torch.zeros(1, 2, 3), 2).reason == "x has 3 axes; it takes maps and clips"
    with pytest.raises(RuntimeError, match="linear_cross_entropy cannot run: a gradient is needed; it has none"):
        linear_cross_entropy(x.requires_grad_(), codes, target, impl="triton")
    assert linear_cross_entropy(x.double(), codes.double(), target).dtype == torch.float64  # plain PyTorch, without a word


def test_a_kernel_that_is_asked_for_runs() -> None:
    x, codes = torch.zeros(2, 4), torch.zeros(3, 4)
    assert ops.which("nearest_code", x, codes, impl="triton").impl == "triton"
    with ops.using("triton"):
        assert ops.which("nearest_code", x, codes).impl == "triton"
