"""Every tensor of the real published checkpoints has its place in a Block, and the way back; built on the meta device.

An adapter says which manifests its component covers: ``MANIFESTS = {"name": [(Class, "layout"), ...]}``, for a checkpoint as a
whole or for single parts of it.
"""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mmblocks import Block
from tests.parity.adapters import ADAPTERS, adapter_of

MODULES = [adapter_of(component) for component in sorted(ADAPTERS)]
CASES = [
    (name, cls, layout)
    for module in MODULES
    for name, coverages in getattr(module, "MANIFESTS", {}).items()
    for cls, layout in coverages
]


@pytest.fixture(scope="module")
def manifests(request: pytest.FixtureRequest) -> Path:
    golden = request.config.option.golden
    if golden is None:
        pytest.skip("no golden data: give --golden DIR or set MMBLOCKS_GOLDEN")
    return Path(golden) / "manifests"


@pytest.mark.parametrize(("name", "cls", "layout_name"), CASES, ids=[f"{n}-{c.__name__}" for n, c, _ in CASES])
def test_manifest_is_covered_both_ways(manifests: Path, name: str, cls: type[Block], layout_name: str) -> None:
    manifest: dict[str, Any] = json.loads(gzip.decompress((manifests / f"{name}.json.gz").read_bytes()))
    shapes = {key: tuple(shape) for key, (shape, _) in manifest["state"].items()}
    (layout,) = (layout for layout in cls.layouts if layout.name == layout_name)
    with torch.device("meta"):
        block = cls(**layout.arguments(manifest["config"]))

    assert not layout.check(shapes, block), str(layout.check(shapes, block))
    assert not layout.check_back(shapes, block), str(layout.check_back(shapes, block))

    broken = dict(shapes)
    key = next(key for key in shapes if shapes[key] and layout.to_ours(key))  # a scalar has no size to be wrong
    broken[key] = (*shapes[key][:-1], shapes[key][-1] + 1)
    assert layout.check(broken, block).misshapen
    del broken[key]
    assert layout.check(broken, block).missing
