"""The nearest code of each vector as a Triton kernel: scores live in registers alone.

A program compares a block of vectors with a share of the codes, block by block, and keeps the best score and its id for every
lane; what the shares found is compared at the end. Sums are made in float32. Of equals the lowest id wins.

Shapes: N vectors, K codes, D width.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

NARROW = 16
"""Vectors of fewer numbers than this are multiplied number by number: a matrix unit works on 16 at least."""

BLOCK_N = 64
BLOCK_K = 64


@torch.library.custom_op("mmblocks::nearest_code", mutates_args=())
def nearest_code_triton(x: Tensor, codebook: Tensor, half_norm: Tensor, precision: str) -> Tensor:
    """(N,) ids.

    Args:
        x: (N, D).
        codebook: (K, D).
        half_norm: (K,) float32: what is added to minus the dot product to make a score, the smaller the nearer.
        precision: of the products of wide vectors: "ieee", "tf32x3", or "bf16".
    """
    num_vectors, dim = x.shape
    num_codes = len(codebook)
    blocks = triton.cdiv(num_vectors, BLOCK_N)
    shares = _num_shares(x, blocks, num_codes)
    share = triton.cdiv(triton.cdiv(num_codes, shares), BLOCK_K) * BLOCK_K
    shares = triton.cdiv(num_codes, share)
    scores = torch.empty(shares, num_vectors, dtype=torch.float32, device=x.device)
    ids = torch.empty(shares, num_vectors, dtype=torch.int64, device=x.device)
    # Neighbours in a block of narrow codes are neighbours in memory: (D, K).
    x, codebook = x.contiguous(), (codebook.T if dim < NARROW else codebook).contiguous()
    kernel = _narrow if dim < NARROW else _wide
    options: dict[str, Any] = {"BLOCK_N": BLOCK_N, "BLOCK_K": BLOCK_K, "enable_fp_fusion": True}
    if dim >= NARROW:
        options |= {"PRECISION": precision, "BLOCK_D": min(64, triton.next_power_of_2(dim))}
    kernel[(blocks, shares)](x, codebook, half_norm, scores, ids, num_vectors, num_codes, share, D=dim, **options)
    if shares == 1:
        return ids[0]
    best = scores.amin(dim=0)
    return torch.where(scores == best, ids, num_codes).amin(dim=0)


@nearest_code_triton.register_fake
def _(x: Tensor, codebook: Tensor, half_norm: Tensor, precision: str) -> Tensor:
    return x.new_empty(len(x), dtype=torch.int64)


def _num_shares(x: Tensor, blocks: int, num_codes: int) -> int:
    """So many that few vectors keep the whole device busy."""
    if x.device.type != "cuda":
        return min(2, triton.cdiv(num_codes, BLOCK_K))
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count
    return max(1, min(4 * processors // blocks, triton.cdiv(num_codes, 8 * BLOCK_K)))


@triton.jit
def _narrow(
    x, codes, half_norm, scores, ids, num_vectors, num_codes, share, D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    """x: (N, D), codes: (D, K)."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(1) * share
    lanes = tl.arange(0, BLOCK_K)
    best = tl.full((BLOCK_N, BLOCK_K), float("inf"), tl.float32)
    found = tl.zeros((BLOCK_N, BLOCK_K), tl.int32)
    for start in range(first, min(first + share, num_codes), BLOCK_K):
        places = start + lanes
        inside = places < num_codes
        score = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        score += tl.load(half_norm + places, mask=inside, other=float("inf"))[None, :]
        column = codes + places  # moved on step by step: a product of D and K may go beyond 2^31
        for d in tl.static_range(D):
            one = tl.load(x + rows * D + d, mask=rows < num_vectors, other=0.0).to(tl.float32)
            other = tl.load(column, mask=inside, other=0.0).to(tl.float32)
            score -= one[:, None] * other[None, :]
            column += num_codes
        nearer = score < best  # strictly: of equals in a lane the first stays
        best = tl.where(nearer, score, best)
        found = tl.where(nearer, places[None, :], found)
    _write(best, found, scores, ids, rows, num_vectors, num_codes)


@triton.jit
def _wide(
    x, codes, half_norm, scores, ids, num_vectors, num_codes, share,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """x: (N, D), codes: (K, D)."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(1) * share
    lanes = tl.arange(0, BLOCK_K)
    columns = tl.arange(0, BLOCK_D)
    best = tl.full((BLOCK_N, BLOCK_K), float("inf"), tl.float32)
    found = tl.zeros((BLOCK_N, BLOCK_K), tl.int32)
    for start in range(first, min(first + share, num_codes), BLOCK_K):
        places = start + lanes
        inside = places < num_codes
        products = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        for d in range(0, D, BLOCK_D):
            there = d + columns < D
            one = tl.load(x + rows[:, None] * D + d + columns, mask=(rows < num_vectors)[:, None] & there, other=0.0)
            at = places.to(tl.int64)[None, :] * D + (d + columns)[:, None]
            other = tl.load(codes + at, mask=inside[None, :] & there[:, None], other=0.0)
            if PRECISION == "bf16":
                products = tl.dot(one.to(tl.bfloat16), other.to(tl.bfloat16), products)
            else:
                products = tl.dot(one.to(tl.float32), other.to(tl.float32), products, input_precision=PRECISION)
        score = tl.load(half_norm + places, mask=inside, other=float("inf"))[None, :] - products
        nearer = score < best
        best = tl.where(nearer, score, best)
        found = tl.where(nearer, places[None, :], found)
    _write(best, found, scores, ids, rows, num_vectors, num_codes)


@triton.jit
def _write(best, found, scores, ids, rows, num_vectors, num_codes):
    """The best of all lanes; of equals the lowest id."""
    score = tl.min(best, axis=1)
    lowest = tl.min(tl.where(best == score[:, None], found, num_codes), axis=1)
    at = tl.program_id(1).to(tl.int64) * num_vectors + rows
    tl.store(scores + at, score, mask=rows < num_vectors)
    tl.store(ids + at, lowest.to(tl.int64), mask=rows < num_vectors)
