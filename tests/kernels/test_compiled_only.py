"""The Triton kernels compiled, but not run, for the GPUs that people have: no GPU is needed for that."""

import re

import pytest

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from mmblocks.ops.group_norm_silu import triton as group_norm  # noqa: E402
from mmblocks.ops.linear_cross_entropy import triton as cross_entropy  # noqa: E402
from mmblocks.ops.nearest_code import triton as nearest  # noqa: E402

pytestmark = pytest.mark.unchecked

TARGETS = {"sm_80": ("cuda", 80, 32), "sm_90": ("cuda", 90, 32), "sm_100": ("cuda", 100, 32), "gfx942": ("hip", "gfx942", 64)}

SEARCH = {
    **dict.fromkeys(("x", "codes", "half_norm", "scores"), "*fp32"),
    "ids": "*i64",
    **dict.fromkeys(("num_vectors", "num_codes", "share"), "i32"),
}
LOSS = {
    **dict.fromkeys(("hidden", "weight", "bias"), "*bf16"),
    "target": "*i64",
    **dict.fromkeys(("largest", "sums", "wanted"), "*fp32"),
    **dict.fromkeys(("num_rows", "vocab", "share"), "i32"),
}
BLOCKS = {"BLOCK_N": nearest.BLOCK_N, "BLOCK_K": nearest.BLOCK_K}
LOSS_BLOCKS = {"BLOCK_N": cross_entropy.BLOCK_N, "BLOCK_V": cross_entropy.BLOCK_V, "BLOCK_D": cross_entropy.BLOCK_D}
MAP = {"x": "*bf16", "num_places": "i32"}

KERNELS = {
    "nearest code of Emu3": (nearest._narrow, SEARCH, {"D": 4, **BLOCKS}),
    "nearest code of Emu3.5": (nearest._wide, SEARCH, {"D": 256, "BLOCK_D": 64, "PRECISION": "tf32x3", **BLOCKS}),
    "nearest code, bf16": (nearest._wide, SEARCH, {"D": 256, "BLOCK_D": 64, "PRECISION": "bf16", **BLOCKS}),
    "loss of Emu3": (cross_entropy._shares, LOSS, {"D": 4096, "HAS_BIAS": True, "INTERPRETED": False, **LOSS_BLOCKS}),
    "sums of a map": (
        group_norm._sums,
        {**MAP, "sums": "*fp32", "squares": "*fp32"},
        {"C": 512, "SHARE": group_norm.PLACES_OF_A_SHARE, "BLOCK_P": group_norm.BLOCK_P, "BLOCK_C": 512},
    ),
    "norm of a map": (
        group_norm._apply,
        {**MAP, "scale": "*fp32", "shift": "*fp32", "out": "*bf16"},
        {"C": 512, "BLOCK_P": group_norm.BLOCK_P, "BLOCK_C": 512},
    ),
}

ON_MATRIX_UNITS = {"nearest code of Emu3.5", "nearest code, bf16", "loss of Emu3"}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compile(name: str, target: str) -> None:
    kernel, types, constants = KERNELS[name]
    if target == "gfx942" and constants.get("PRECISION") == "tf32x3":
        constants = {**constants, "PRECISION": "ieee"}  # which is all that AMD's matrix units offer for float32
    signature = {argument: types.get(argument, "constexpr") for argument in kernel.arg_names}
    aligned = {(number,): [["tt.divisibility", 16]] for number, kind in enumerate(signature.values()) if kind.startswith("*")}
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(key),): value for key, value in constants.items()}, aligned)
    built = triton.compile(source, target=GPUTarget(*TARGETS[target]), options={"enable_fp_fusion": True})
    assert built.metadata.shared <= (64 if target == "gfx942" else 160 if target == "sm_80" else 227) * 1024
    assert re.search(r"tt\.addptr [^\n]*xi64>", built.asm["ttir"])  # rows lie further away than 2^31 numbers
    if "ptx" in built.asm:
        code = built.asm["ptx"]
        assert "st.local" not in code  # nothing spills to memory
        units = {"sm_80": "mma.sync", "sm_90": "wgmma", "sm_100": "tcgen05"}[target]
        assert (units in code) == (name in ON_MATRIX_UNITS)
