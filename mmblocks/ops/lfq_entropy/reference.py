"""Entropies of soft choices among all 2^b sign vectors, in plain PyTorch, without ever writing N x 2^b numbers.

The soft choice is a product of one choice for each bit. So its entropy is the sum of theirs, and its weights are the outer
product of the weights of two halves of the bits: their mean over N features is one matrix product of (A, N) by (N, Z), with
A Z = 2^b and A about as large as Z.

Shapes: N features, b bits, A and Z codes of the first and the second half of the bits.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.utils.checkpoint import checkpoint

Floor = Literal["add", "clamp"]
"""How ``eps`` keeps logarithms finite. add: log(p + eps), in the codebook's entropy. clamp: log(max(p, eps)), in both."""

TILE_BYTES = 2**24
"""Memory for the weights of one half of the bits, of as many features as are worked on at once."""

MAX_BITS = 30
"""Of more bits the mean choice alone, 2^b numbers, is too large."""


def lfq_entropy(
    x: Tensor, *, temperature: float = 0.01, scale: float = 1.0, floor: Floor = "add", eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Entropies, in nats, of the softmax of 2 <x, c> / temperature over all codes c with entries -scale or scale.

    Args:
        x: (N, b), of any floating dtype; worked on in float32, under autocast too.
        temperature: of the softmax.
        scale: size of a code's entries.
        floor: "add" as in Open-MAGVIT2, "clamp" as in vector-quantize-pytorch. With 2^18 codes and 1e-5 they differ by far.
        eps: the floor.

    Returns:
        The mean entropy of one choice (to be made small) and the entropy of the mean choice (to be made large).

    Raises:
        ValueError: an unknown floor, or more than ``MAX_BITS`` bits.
    """
    bits = x.shape[-1]
    if floor not in get_args(Floor):
        raise ValueError(f"floor is {floor!r}; accepted: {', '.join(get_args(Floor))}")
    if bits > MAX_BITS:
        raise ValueError(f"x has {bits} bits; accepted: at most {MAX_BITS}, since the mean choice has 2^{bits} weights")
    with torch.autocast(x.device.type, enabled=False):
        logits = x.float() * (4 * scale / temperature)  # of a plus against a minus, bit by bit
        log_eps = math.log(eps) if floor == "clamp" else None
        rows = max(1, TILE_BYTES // (4 * 2 ** ((bits + 1) // 2)))
        entropy, weights = _sums(logits.split(rows), log_eps)
        mean = weights / len(x)
        logs = (mean + eps).log() if floor == "add" else mean.clamp(min=eps).log()
        return entropy / len(x), -(mean * logs).sum()


def _sums(pieces: tuple[Tensor, ...], log_eps: float | None) -> tuple[Tensor, Tensor]:
    """``_piece_sums`` of all; of several pieces each is computed again for its gradient, rather than kept."""
    if len(pieces) == 1:
        return _piece_sums(pieces[0], log_eps)
    entropy, weights = pieces[0].new_zeros(()), pieces[0].new_zeros(())
    for piece in pieces:
        one, mine = checkpoint(_piece_sums, piece, log_eps, use_reentrant=False, preserve_rng_state=False)
        entropy, weights = entropy + one, weights + mine
    return entropy, weights


def _piece_sums(logits: Tensor, log_eps: float | None) -> tuple[Tensor, Tensor]:
    """Sums over features: of the choices' entropies, and of their weights (A, Z)."""
    plus, minus = logsigmoid(logits), logsigmoid(-logits)
    entropy = -(plus.exp() * plus + minus.exp() * minus).sum()
    half = logits.shape[1] // 2
    first = _log_weights(plus[:, :half], minus[:, :half])
    second = _log_weights(plus[:, half:], minus[:, half:])
    if log_eps is not None:
        entropy = entropy + _clamped_away(first, second, log_eps)
    return entropy, first.exp().T @ second.exp()


def _log_weights(plus: Tensor, minus: Tensor) -> Tensor:
    """(N, 2^h), the log weights of all codes of h bits; sums of negative numbers alone, so that nothing cancels."""
    bits = plus.shape[1]
    codes = torch.arange(2**bits, device=plus.device)[:, None] >> torch.arange(bits, device=plus.device) & 1
    signs = codes.to(plus.dtype).T
    return plus @ signs + minus @ (1 - signs)


def _clamped_away(first: Tensor, second: Tensor, log_eps: float) -> Tensor:
    """The sum of p (log p - log eps) over all weights p below eps: what clamping takes from the entropies.

    For each code of the first half, the codes of the second that make a weight below eps are the lightest ones: so with these
    sorted, and their sums up to each, one search finds all.
    """
    second = second.sort(dim=1).values
    weights = second.exp()
    zero = weights.new_zeros(len(weights), 1)
    mass = torch.cat([zero, weights.cumsum(1)], dim=1)
    log_mass = torch.cat([zero, (weights * second).cumsum(1)], dim=1)
    excess = first - log_eps
    count = torch.searchsorted(second.detach(), -excess.detach())
    return (first.exp() * (excess * mass.gather(1, count) + log_mass.gather(1, count))).sum()
