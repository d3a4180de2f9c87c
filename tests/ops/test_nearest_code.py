import pytest
import torch

from mmblocks.ops.nearest_code import nearest_code, reference


@pytest.mark.parametrize(("n", "k", "d"), [(0, 5, 3), (1, 1, 1), (70, 200, 48), (300, 7, 4)])
def test_nearest_in_float64(n: int, k: int, d: int, monkeypatch) -> None:
    random = torch.Generator().manual_seed(0)
    x, codebook = torch.randn(n, d, generator=random), torch.randn(k, d, generator=random)
    wanted = torch.cdist(x.double(), codebook.double()).argmin(1)
    assert torch.equal(nearest_code(x, codebook), wanted)
    monkeypatch.setattr(reference, "CHUNK_BYTES", 4 * k * 3)  # three vectors at a time
    assert torch.equal(nearest_code(x, codebook), wanted)


def test_the_lowest_of_equals_wins() -> None:
    codebook = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert nearest_code(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), codebook).tolist() == [0, 0]
