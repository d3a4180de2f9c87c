"""Every tensor of the real published checkpoints has its place in a Block, and the way back; built on the meta device."""

import gzip
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from mmblocks import Block, Decoder, Emu3, EVE2PatchEmbedding, LMHead, TextEmbedding


class Coverage(NamedTuple):
    """A Block and the layout that reads a manifest's tensors, all of them or one part's."""

    block: type[Block]
    layout: str


COVERED = {
    "emu3_lm_8b": [
        Coverage(Emu3, "emu3"), Coverage(Decoder, "llama"), Coverage(TextEmbedding, "llama"), Coverage(LMHead, "llama"),
    ],
    "emu35_lm_34b": [Coverage(Emu3, "emu3.5"), Coverage(Decoder, "llama-qk-norm")],
    "eve_7b_hd_v2": [Coverage(EVE2PatchEmbedding, "eve2")],
}  # fmt: skip

CASES = [(name, *coverage) for name, coverages in COVERED.items() for coverage in coverages]


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
    key = next(key for key in shapes if layout.to_ours(key))
    broken[key] = (*shapes[key][:-1], shapes[key][-1] + 1)
    assert layout.check(broken, block).misshapen
    del broken[key]
    assert layout.check(broken, block).missing
