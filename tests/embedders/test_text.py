import pytest
import torch

from mmblocks import TextEmbedding

IDS = torch.tensor([[5, 0], [3, 3]])


def embedding(**options) -> TextEmbedding:
    torch.manual_seed(0)
    return TextEmbedding(vocab_size=6, dim=8, **options)


def test_vectors_are_the_rows_of_the_ids() -> None:
    assert torch.equal(embedding()(IDS), embedding().weight[IDS])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_scale_is_rounded_before_it_multiplies(dtype) -> None:
    scale = 2304**0.5 + 0.2  # between two bfloat16s
    part = embedding(scale=scale, init_std=1.0).to(dtype)
    assert torch.equal(part(IDS), part.weight[IDS] * torch.tensor(scale).to(dtype))


def test_gradients_are_scaled() -> None:
    part = embedding(scale=3.0)
    part(IDS).sum().backward()
    assert torch.equal(part.weight.grad.sum(dim=1), 8 * 3.0 * torch.tensor([1.0, 0, 0, 2, 0, 1]))


def test_the_scale_is_saved(tmp_path) -> None:
    part = embedding(scale=3.0)
    part.save_pretrained(tmp_path)
    assert torch.equal(TextEmbedding.from_pretrained(tmp_path)(IDS), part(IDS))


@pytest.mark.unchecked
def test_ids_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ids lie in \[0, 6\]; accepted: \[0, 5\]"):
        embedding()(torch.tensor([0, 6]))


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_a_scale_that_is_not_above_0_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=r"scale is .*; accepted: above 0, and finite"):
        TextEmbedding(vocab_size=4, dim=2, scale=scale)
