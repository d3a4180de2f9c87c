"""Codebooks that move without gradients are the same in all processes, whatever each saw, and what one process would have."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, distributed

from mmblocks import Block
from mmblocks.tokenizers.bottlenecks.clustering_vector_quantizer import ClusteringVectorQuantizer
from mmblocks.tokenizers.bottlenecks.dual import DualBottleneck
from mmblocks.tokenizers.bottlenecks.ema import EMAVectorQuantizer
from mmblocks.tokenizers.bottlenecks.multi_head import MultiHeadVectorQuantizer
from mmblocks.tokenizers.bottlenecks.residual.quantizer import ResidualQuantizer
from mmblocks.tokenizers.bottlenecks.residual.rq import JointRQBottleneck, RQBottleneck
from mmblocks.tokenizers.bottlenecks.vector_quantizer import VectorQuantizer
from tests.training.processes import results_of_processes

SIZES = {"num_codes": 24, "dim": 8}
ALONE: dict[str, Callable[[], Block]] = {
    "clustering": lambda: ClusteringVectorQuantizer(**SIZES),
    "clustering by angle": lambda: ClusteringVectorQuantizer(**SIZES, metric="cosine"),
    "clustering by product": lambda: ClusteringVectorQuantizer(**SIZES, metric="dot"),
    "ema": lambda: EMAVectorQuantizer(**SIZES, decay=0.8),
    "ema by angle": lambda: EMAVectorQuantizer(**SIZES, decay=0.8, metric="cosine"),
    "ema with revival": lambda: EMAVectorQuantizer(**SIZES, decay=0.8, dead_below=1.0),
    "ema with k-means": lambda: EMAVectorQuantizer(**SIZES, kmeans_init=True),
    "ema with k-means by angle": lambda: EMAVectorQuantizer(**SIZES, metric="cosine", kmeans_init=True, dead_below=1.0),
    "rq": lambda: RQBottleneck(**SIZES, depth=2),
    "rq of many codes": lambda: RQBottleneck(num_codes=100, dim=8, depth=2),
    "rq without revival": lambda: RQBottleneck(**SIZES, depth=2, restart_unused=False),
    "shared rq": lambda: JointRQBottleneck(**SIZES, depth=2, shared=True),
    "dual": lambda: DualBottleneck(
        pixel=RQBottleneck(num_codes=24, dim=4, depth=1), semantic=RQBottleneck(num_codes=24, dim=4, depth=1)
    ),
}
"""What one process would learn from the features of all, the processes learn."""

LIBRARY: dict[str, Callable[[], Block]] = {
    "heads": lambda: MultiHeadVectorQuantizer(**SIZES, num_heads=2, options={"threshold_ema_dead_code": 1}),
    "heads with k-means": lambda: MultiHeadVectorQuantizer(**SIZES, options={"kmeans_init": True, "threshold_ema_dead_code": 2}),
    "residual": lambda: ResidualQuantizer(
        **SIZES, num_quantizers=4, options={"quantize_dropout": True, "threshold_ema_dead_code": 1}
    ),
}
METHODS: dict[str, Callable[[], Any]] = {
    "vector": lambda: VectorQuantizer(**SIZES),
    "vector by angle": lambda: VectorQuantizer(**SIZES, metric="cosine"),
    "ema": lambda: EMAVectorQuantizer(**SIZES),
}
"""Those with ``fit`` and ``replace_unused``."""

SHARES = ((2, 2), (1, 3), (4, 0), (0, 4), (0, 0), (3, 1))
"""Maps of each process, step by step."""


def shares(rank: int) -> list[Tensor]:
    """The maps of a process at each step."""
    draws = Generator().manual_seed(3)
    batches = [torch.randn(sum(counts), 3, 3, 8, generator=draws) for counts in SHARES]
    return [batch.split(list(counts))[rank] for batch, counts in zip(batches, SHARES, strict=True)]


def whole() -> list[Tensor]:
    """What all processes see, in one."""
    return [torch.cat(both) for both in zip(shares(0), shares(1), strict=True)]


def after(made: Block, batches: list[Tensor], seed: int) -> dict[str, Tensor]:
    """The state after a step of training on each batch, with draws of one's own."""
    torch.manual_seed(seed)
    made.train()
    for batch in batches:
        made(batch)
    return made.state_dict()


def fitted(made: Any, batches: list[Tensor], seed: int) -> dict[str, Tensor]:
    """The state after k-means, and after codes were revived, one of them used by the last process alone."""
    generator = Generator().manual_seed(seed)
    rows = [batch.flatten(0, -2) for batch in batches]
    made.fit(torch.cat(rows[:3]), generator=generator)
    used = torch.zeros(24, dtype=torch.long)
    used[: 20 + seed] = 3
    revived = made.replace_unused(rows[3], used, generator)
    return made.state_dict() | {"revived": torch.tensor(revived)}


def built(makers: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """The same in every process."""
    torch.manual_seed(0)
    return {name: make() for name, make in makers.items()}


def refused(rank: int) -> list[str]:
    """What options say that would have codes drift apart, and what the library does where a process saw nothing."""
    said = []
    for make in (
        lambda: MultiHeadVectorQuantizer(**SIZES, options={"sync_codebook": False}),
        lambda: MultiHeadVectorQuantizer(**SIZES, options={"sync_kmeans": False}),
    ):
        with pytest.raises(ValueError, match="accepted in several processes") as info:
            make().train()(torch.randn(1, 3, 3, 8))
        said.append(str(info.value))
    for name in LIBRARY:
        with pytest.raises(ValueError, match=r"features hold \[0, 9\] vectors \(of each process\); accepted: at least one"):
            LIBRARY[name]().train()(torch.zeros(rank, 3, 3, 8))
    return said


def refused_together(rank: int) -> dict[str, str]:
    """What each says where one process alone saw a NaN, and that it learned nothing. Nobody waits for another that has left."""
    # Where one process has left the others waiting, the test fails soon: in a group of the usual kind it would be in half an hour.
    impatient = distributed.new_group(timeout=timedelta(seconds=20))
    said = {}
    for name, made in built(ALONE | LIBRARY).items():
        before = {key: value.clone() for key, value in made.state_dict().items()}
        features = torch.randn(2, 3, 3, 8)
        features[0, 0, 0, 0] = (1.0, torch.nan)[rank]
        with pytest.raises(ValueError, match="NaN") as info:
            made.train()(features)
        said[name] = str(info.value)
        distributed.barrier(group=impatient)
        assert all(torch.equal(value, before[key]) for key, value in made.state_dict().items()), name
    return said


MISSHAPEN = {
    "narrow": lambda rank: torch.randn(2, 3, 3, 8 - rank),
    "odd": lambda rank: torch.randn(2, 4, 4 - rank, 8),
}
"""Features that do not fit in the last process alone."""


def misshapen_together(rank: int) -> list[str]:
    """What each says where the features of one process alone do not fit, and that it learned nothing."""
    impatient = distributed.new_group(timeout=timedelta(seconds=20))
    said = []
    makers = {f"narrow {name}": make for name, make in (ALONE | LIBRARY).items()}
    makers["odd rq"] = lambda: RQBottleneck(**SIZES, depth=2, merge=(2, 2))
    for name, made in built(makers).items():
        before = {key: value.clone() for key, value in made.state_dict().items()}
        with pytest.raises(ValueError, match=r"accepted|do not fit") as info:
            made.train()(MISSHAPEN[name.split()[0]](rank))
        said.append(str(info.value))
        distributed.barrier(group=impatient)
        assert all(torch.equal(value, before[key]) for key, value in made.state_dict().items()), name
    for made in built(METHODS).values():
        rows = torch.randn(30, 8 - rank)
        for call in (made.fit, partial(made.replace_unused, used=torch.zeros(24).long())):
            with pytest.raises(ValueError, match=r"accepted|do not fit") as info:
                call(rows)
            said.append(str(info.value))
            distributed.barrier(group=impatient)
    return said


def in_one_process(rank: int) -> dict[str, Any]:
    """All states of a process. Its draws and its share of the features are its own."""
    states = {name: after(made, shares(rank), rank) for name, made in built(ALONE).items()}
    seen = [batch for counts, batch in zip(SHARES, shares(rank), strict=True) if all(counts)]
    states |= {name: after(made, seen, rank) for name, made in built(LIBRARY).items()}
    states |= {f"methods of {name}": fitted(made, shares(rank), rank) for name, made in built(METHODS).items()}
    return states | {"refused": refused(rank), "refused together": refused_together(rank), "misshapen": misshapen_together(rank)}


@pytest.fixture(scope="module")
def states() -> list[dict[str, Any]]:
    return results_of_processes(in_one_process)


@pytest.mark.parametrize("name", [*ALONE, *LIBRARY, *(f"methods of {name}" for name in METHODS)])
def test_every_process_has_the_same_codes(states, name: str) -> None:
    first, second = (state[name] for state in states)
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
        assert value.isfinite().all(), key


# A codebook of several depths draws from the features of each process at all depths: others, where they lie in another order.
@pytest.mark.parametrize("name", [name for name in ALONE if name != "shared rq"])
def test_they_are_what_one_process_learns(states, name: str) -> None:
    wanted = after(built(ALONE)[name], whole(), 0)
    torch.testing.assert_close(states[0][name], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_k_means_and_revival_are_those_of_one_process(states, name: str) -> None:
    made = built(METHODS)[name]
    generator = Generator().manual_seed(0)
    rows = [batch.flatten(0, -2) for batch in whole()]
    made.fit(torch.cat([torch.cat([batch.flatten(0, -2) for batch in shares(rank)[:3]]) for rank in range(2)]), generator=generator)
    used = torch.zeros(24, dtype=torch.long)
    used[:21] = 3
    assert made.replace_unused(rows[3], used, generator) == states[0][f"methods of {name}"]["revived"] == 3
    found = {key: states[0][f"methods of {name}"][key] for key in made.state_dict()}
    torch.testing.assert_close(found, dict(made.state_dict()), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ALONE)
def test_no_feature_at_all_changes_no_code(name: str) -> None:
    made = built(ALONE)[name]
    after(made, whole()[:1], 0)
    before = {key: value.clone() for key, value in made.state_dict().items() if "codes" in key}
    made(torch.zeros(0, 3, 3, 8))
    for key, value in before.items():
        torch.testing.assert_close(made.state_dict()[key], value, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_features_that_are_none(name: str) -> None:
    made = built(METHODS)[name]
    for call in (lambda: made.fit(torch.zeros(0, 8)), lambda: made.replace_unused(torch.zeros(0, 8), torch.zeros(24).long())):
        with pytest.raises(ValueError, match="features holds no vector; accepted: at least one"):
            call()


def test_a_nan_in_one_process_is_refused_in_all(states) -> None:
    for state in states:
        assert state["refused together"].keys() == {*ALONE, *LIBRARY}
        for said in state["refused together"].values():
            assert said == "the features to quantise hold NaN or infinity; nothing was learned from them"


def test_features_that_do_not_fit_in_one_process_are_refused_in_all(states) -> None:
    others, own = (state["misshapen"] for state in states)
    assert len(others) == len(own) == len(ALONE) + len(LIBRARY) + 1 + 2 * len(METHODS)
    assert set(own) == {"features are 7 wide; accepted: 8", "features are 4x3 places; accepted: multiples of merge, 2x2"}
    assert set(others) == {"the features of process 1 do not fit; nothing was learned"}


def test_options_by_which_codes_drift(states) -> None:
    for state in states:
        assert state["refused"] == [
            f"options hold {name}=False; accepted in several processes: codes that stay the same"
            for name in ("sync_codebook", "sync_kmeans")
        ]
