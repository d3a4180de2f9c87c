"""Which tensors hold NaN or infinity after loading: a broken file would give numbers that look like any other.

Summing up costs a few hundredths of what the checksums do, but it reads everything, and mapped files are not read before they are
used. So all tensors are looked at where loading has read them anyway (it compared checksums, cast, or moved them to a device), and
those of codebooks always: one NaN there would corrupt every id.

Minus infinity in a buffer counts as meant, as in an attention mask; in a parameter or a codebook it does not.
"""

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mmblocks.checkpoints import tensors
from mmblocks.checkpoints.files import mapped
from mmblocks.configurable import Configurable

SHOWN = 5
"""Names in a warning."""

HOLD = "hold NaN or infinity"
"""How the warning ends."""


def warn_of_not_finite(block: Configurable, given: set[int], was_read: bool) -> None:
    """Warns of tensors with NaN or infinity.

    Args:
        block: filled; what is still without values is passed over.
        given: ids of tensors that were handed in.
        was_read: whether loading has looked at all values on the CPU already.
    """
    names = not_finite(block, given, was_read)
    if names:
        shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
        warnings.warn(f"{type(block).__name__}: {shown} {HOLD}", stacklevel=4)


def not_finite(block: Configurable, given: set[int], was_read: bool) -> list[str]:
    """The names of tensors with NaN or infinity; arguments as for ``warn_of_not_finite``."""
    codebooks = {id(slot.tensor) for part in block.modules() if _has_codes(part) for slot in tensors.slots(part).values()}
    found = dict(_candidates(block, given, was_read, codebooks))
    # One answer for all, so that a device is waited for once.
    doubtful = [name for name, total in found.items() if total.device.type == "cpu" and not total.isfinite()]
    others = {name: total for name, total in found.items() if total.device.type != "cpu"}
    if others:
        finite = torch.stack([total.cpu() for total in others.values()]).isfinite().tolist()
        doubtful += [name for name, is_finite in zip(others, finite, strict=True) if not is_finite]
    # A sum may be too large where all that is added up is finite.
    slots = tensors.slots(block)
    return [name for name in doubtful if not _is_sound(slots[name].tensor, id(slots[name].tensor) in codebooks)]


def _is_sound(tensor: Tensor, is_codebook: bool) -> bool:
    """Whether all values are finite or, in a buffer of no codebook, minus infinity."""
    masks = not is_codebook and not isinstance(tensor, nn.Parameter)
    for piece in mapped.pieces(tensor.detach()):
        fine = piece.isfinite()
        if not bool((fine | (piece == -torch.inf) if masks else fine).all()):
            return False
    return True


def _candidates(block: Configurable, given: set[int], was_read: bool, codebooks: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Names of the tensors to look at, and the sum of each. ``codebooks`` are the ids of tensors that are looked at always."""
    seen = set(given)
    for name, slot in tensors.slots(block).items():
        tensor = slot.tensor.detach()
        if id(slot.tensor) in seen or tensor.is_meta or not tensor.is_floating_point() or tensor.element_size() < 2:
            continue
        seen.add(id(slot.tensor))
        if was_read or id(slot.tensor) in codebooks or tensor.device.type != "cpu":
            # Sums of float16 leave its range, those of bfloat16 do not and are several times as fast in it.
            dtype = tensor.dtype if tensor.dtype == torch.bfloat16 else torch.float32
            yield name, torch.stack([piece.sum(dtype=dtype) for piece in mapped.pieces(tensor)]).float().sum()


def _has_codes(part: nn.Module) -> bool:
    """Whether it is a bottleneck, or anything else that looks codes up, and not a whole tokenizer."""
    kind = type(part)
    # Of the class: an object's own codebook_sizes may be computed.
    return hasattr(kind, "lookup") and hasattr(kind, "codebook_sizes") and not hasattr(kind, "decode")
