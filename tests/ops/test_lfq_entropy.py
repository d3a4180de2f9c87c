import pytest
import torch
from torch import Tensor

from mmblocks.ops.lfq_entropy import lfq_entropy, reference


def dense(x: Tensor, temperature: float, floor: str, scale: float) -> tuple[Tensor, Tensor]:
    """As the definition has it, with all scores at once, in float64."""
    bits = x.shape[1]
    codes = scale * (2.0 * (torch.arange(2**bits)[:, None] >> torch.arange(bits) & 1) - 1).double()
    logits = 2 * x.double() @ codes.T / temperature
    weights, logs = logits.softmax(-1), logits.log_softmax(-1)
    mean = weights.mean(0)
    if floor == "add":
        return -(weights * logs).sum(-1).mean(), -(mean * (mean + 1e-5).log()).sum()
    return -(weights * weights.clamp(min=1e-5).log()).sum(-1).mean(), -(mean * mean.clamp(min=1e-5).log()).sum()


@pytest.mark.parametrize("floor", ["add", "clamp"])
@pytest.mark.parametrize("temperature", [0.01, 0.3, 10.0])
@pytest.mark.parametrize("bits", [1, 2, 7, 12])
@pytest.mark.parametrize("num_pieces", [1, 4])
def test_values_and_gradients_are_those_of_the_definition(bits, temperature, floor, num_pieces, monkeypatch) -> None:
    rows = 40 // num_pieces
    monkeypatch.setattr(reference, "TILE_BYTES", rows * 4 * 2 ** ((bits + 1) // 2))
    x = torch.randn(40, bits, generator=torch.Generator().manual_seed(0)).mul(0.5).requires_grad_()
    ours = lfq_entropy(x, temperature=temperature, scale=0.8, floor=floor)
    wanted = dense(x, temperature, floor, 0.8)
    gradients = []
    for sample, codebook in (ours, wanted):
        gradients.append(torch.autograd.grad(sample - 1.3 * codebook, x)[0].double())
    for value, definition in zip(ours, wanted, strict=True):
        torch.testing.assert_close(value.double(), definition, atol=1e-5, rtol=1e-5)
    assert (gradients[0] - gradients[1]).norm() <= 1e-4 * gradients[1].norm()


def test_second_oracle() -> None:
    from vector_quantize_pytorch import LFQ

    x = torch.randn(2, 64, 12, generator=torch.Generator().manual_seed(0))
    _, terms = LFQ(dim=12)(x, inv_temperature=5.0, return_loss_breakdown=True)
    sample, codebook = lfq_entropy(x.flatten(0, 1), temperature=0.2, floor="clamp")
    torch.testing.assert_close(sample, terms.per_sample_entropy, atol=1e-4, rtol=0)
    torch.testing.assert_close(codebook, terms.batch_entropy, atol=1e-4, rtol=0)


def test_many_bits_and_large_features_stay_finite() -> None:
    x = (torch.randn(16, 22, generator=torch.Generator().manual_seed(0)) * 1e4).requires_grad_()
    for floor in ("add", "clamp"):
        sample, codebook = lfq_entropy(x, floor=floor)
        (gradient,) = torch.autograd.grad(sample - codebook, x)
        assert sample.isfinite() and codebook.isfinite() and gradient.isfinite().all()


def test_half_precision_is_worked_on_in_float32() -> None:
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    wanted = lfq_entropy(x.float(), temperature=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        assert lfq_entropy(x, temperature=0.5) == wanted


@pytest.mark.unchecked
def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="accepted: add, clamp"):
        lfq_entropy(torch.zeros(2, 3), floor="max")
    with pytest.raises(ValueError, match="x has 40 bits; accepted: at most 30"):
        lfq_entropy(torch.zeros(2, 40))
