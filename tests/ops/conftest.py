"""What every op is tested with: memory that nobody wrote holds NaN, and operations that differ from run to run raise."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def poisoned_and_deterministic() -> Iterator[None]:
    """Deterministic mode fills what is allocated with NaN, or the largest integer. A GPU's products would need more for it."""
    if torch.cuda.is_available():
        yield
        return
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
