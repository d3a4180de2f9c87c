import pytest
import torch
from torch.nn.functional import normalize

from mmblocks.ops.nearest_code import nearest_code, reference


@pytest.fixture
def small_tiles(monkeypatch) -> None:
    monkeypatch.setattr(reference, "CPU_TILE", (3, 8))
    monkeypatch.setattr(reference, "GROUP", 4)


@pytest.mark.parametrize(("n", "k", "d"), [(0, 5, 3), (1, 1, 1), (70, 200, 48), (300, 7, 4), (5, 64, 3), (9, 2180, 8)])
def test_nearest_in_float64(n: int, k: int, d: int) -> None:
    random = torch.Generator().manual_seed(0)
    x, codebook = torch.randn(n, d, generator=random), torch.randn(k, d, generator=random)
    assert torch.equal(nearest_code(x, codebook), torch.cdist(x.double(), codebook.double()).argmin(1))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("k", [1, 4, 7, 8, 9, 16, 30])
@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
def test_tiles_of_any_fit(k: int, metric: str) -> None:
    random = torch.Generator().manual_seed(0)
    x, codebook = torch.randn(10, 5, generator=random), torch.randn(k, 5, generator=random)
    wide, codes = x.double(), codebook.double()
    wanted = {
        "l2": -torch.cdist(wide, codes),
        "cosine": normalize(wide, dim=1) @ normalize(codes, dim=1).T,
        "dot": wide @ codes.T,
    }
    assert torch.equal(nearest_code(x, codebook, metric), wanted[metric].argmax(1))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("others", [1, 3, 4, 9, 20])
def test_the_lowest_of_equals_wins_within_a_group_and_across_tiles(others: int) -> None:
    code, far = torch.tensor([[1.0, 0.0]]), torch.full((others, 2), 5.0)
    codebook = torch.cat([far, code, far, code, code])
    assert nearest_code(torch.tensor([[1.0, 0.0], [0.9, 0.1]]), codebook).tolist() == [others, others]
    assert nearest_code(torch.zeros(1, 2), torch.zeros(40, 2)).tolist() == [0]


def test_scores_are_float32_under_autocast_and_in_half_precision() -> None:
    random = torch.Generator().manual_seed(0)
    x, codebook = torch.randn(50, 8, generator=random).bfloat16(), torch.randn(500, 8, generator=random).bfloat16()
    wanted = nearest_code(x.float(), codebook.float())
    assert torch.equal(nearest_code(x, codebook), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_code(x.float(), codebook.float()), wanted)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("codes", "metric", "message"),
    [
        (torch.zeros(3, 5), "l2", "x is 4 wide, the codes 5"),
        (torch.zeros(0, 4), "l2", "codebook is empty"),
        (torch.zeros(3, 4), "l1", "accepted: l2, cosine, dot"),
    ],
)
def test_what_cannot_be_compared_is_refused(codes, metric, message) -> None:
    with pytest.raises(ValueError, match=message):
        nearest_code(torch.zeros(2, 4), codes, metric)


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
@pytest.mark.parametrize("k", [5, 200, 20000])
@pytest.mark.parametrize("place", [0, -1])
def test_a_code_that_is_no_number_is_refused(metric: str, k: int, place: int) -> None:
    random = torch.Generator().manual_seed(0)
    x, codebook = torch.randn(3, 4, generator=random), torch.randn(k, 4, generator=random)
    codebook[place, 2] = torch.nan
    number = place % k
    with pytest.raises(
        ValueError, match=rf"codebook holds NaN or infinity in 1 of {k} codes, such as number {number}; accepted: fin"
    ):
        nearest_code(x, codebook, metric)
    codebook[place] = torch.inf
    with pytest.raises(ValueError, match="codebook holds NaN or infinity"):
        nearest_code(torch.cat([x, -x]), codebook, metric)


def test_vectors_that_are_no_numbers_are_refused() -> None:
    x = torch.zeros(3, 4)
    x[1, 2] = torch.nan
    with pytest.raises(ValueError, match="x holds NaN or infinity; accepted: finite values"):
        nearest_code(x, torch.ones(5, 4))
    with pytest.raises(ValueError, match="so large that float32 does not hold their products"):
        nearest_code(torch.full((3, 4), 1e30), torch.full((5, 4), 1e30), "dot")
