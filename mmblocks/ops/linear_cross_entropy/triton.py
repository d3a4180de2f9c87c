"""The loss of a linear map's logits as a Triton kernel, for evaluation: logits live in registers alone.

A program multiplies a block of rows with a share of the vocabulary, block by block, and keeps the running maximum and sum of
exponentials of each row; the shares are put together at the end. No atomics: two runs give the same bits.

Shapes: N rows, D width, V vocabulary.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_N = 64
BLOCK_V = 64
BLOCK_D = 32


@torch.library.custom_op("mmblocks::linear_cross_entropy", mutates_args=())
def linear_cross_entropy_triton(hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """(N,) loss of each row and (N,) log of its normaliser, both in float32."""
    num_rows, dim = hidden.shape
    vocab = len(weight)
    hidden, weight = hidden.contiguous(), weight.contiguous()
    blocks = triton.cdiv(num_rows, BLOCK_N)
    share = triton.cdiv(triton.cdiv(vocab, _num_shares(hidden, blocks, vocab)), BLOCK_V) * BLOCK_V
    shares = triton.cdiv(vocab, share)
    largest, sums, wanted = (torch.empty(shares, num_rows, dtype=torch.float32, device=hidden.device) for _ in range(3))
    _shares[(blocks, shares)](
        hidden, weight, hidden if bias is None else bias, target, largest, sums, wanted, num_rows, vocab, share,
        D=dim, HAS_BIAS=bias is not None, BLOCK_N=BLOCK_N, BLOCK_V=BLOCK_V, BLOCK_D=BLOCK_D,
        INTERPRETED=hidden.device.type == "cpu", enable_fp_fusion=True,
    )  # fmt: skip
    top = largest.amax(dim=0)
    # What all logits of a row share is taken off before the logarithm is added: it would drown small losses in rounding.
    log_sum = (sums * (largest - top).exp()).sum(dim=0).log()
    return log_sum + (top - wanted.sum(dim=0)), log_sum + top


@linear_cross_entropy_triton.register_fake
def _(hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    return hidden.new_empty(len(hidden), dtype=torch.float32), hidden.new_empty(len(hidden), dtype=torch.float32)


def _num_shares(hidden: Tensor, blocks: int, vocab: int) -> int:
    if hidden.device.type != "cuda":
        return min(2, triton.cdiv(vocab, BLOCK_V))
    processors = torch.cuda.get_device_properties(hidden.device).multi_processor_count
    return max(1, min(4 * processors // blocks, triton.cdiv(vocab, 8 * BLOCK_V)))


@triton.jit
def _shares(
    hidden, weight, bias, target, largest, sums, wanted, num_rows, vocab, share,
    D: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Of one share of the vocabulary: each row's largest logit, sum of exponentials above it, and right logit or 0."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    there = rows < num_rows
    first = tl.program_id(1) * share
    right = tl.load(target + rows, mask=there, other=-1)
    top = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    mine = tl.zeros((BLOCK_N,), tl.float32)
    columns = tl.arange(0, BLOCK_D)
    for start in range(first, min(first + share, vocab), BLOCK_V):
        ids = start + tl.arange(0, BLOCK_V)
        inside = ids < vocab
        logits = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
        for d in range(0, D, BLOCK_D):
            within = d + columns < D
            one = tl.load(hidden + rows[:, None] * D + d + columns, mask=there[:, None] & within, other=0.0)
            at = ids.to(tl.int64)[None, :] * D + (d + columns)[:, None]
            other = tl.load(weight + at, mask=inside[None, :] & within[:, None], other=0.0)
            if INTERPRETED:  # the interpreter cannot multiply bfloat16
                one = one.to(tl.float32)
                other = other.to(tl.float32)
            logits = tl.dot(one, other, logits, input_precision="ieee")
        if HAS_BIAS:
            logits += tl.load(bias + ids, mask=inside, other=0.0).to(tl.float32)[None, :]
        logits = tl.where(inside[None, :], logits, float("-inf"))
        higher = tl.maximum(top, tl.max(logits, axis=1))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(logits - higher[:, None]), axis=1)
        top = higher
        mine += tl.sum(tl.where(ids[None, :] == right[:, None], logits, 0.0), axis=1)
    at = tl.program_id(1).to(tl.int64) * num_rows + rows
    tl.store(largest + at, top, mask=there)
    tl.store(sums + at, total, mask=there)
    tl.store(wanted + at, mine, mask=there)
