"""Kernels are interpreted in a process of their own, since that must be decided before they are defined (``make kernels``)."""

import os
from collections.abc import Iterator

import pytest
import torch

collect_ignore = ["test_compiled_only.py" if os.environ.get("TRITON_INTERPRET") == "1" else "test_interpreted.py"]


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """What kernels write to is full of NaN before."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
