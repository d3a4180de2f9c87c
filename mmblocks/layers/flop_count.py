"""Floating-point operations, as torch's counter has them, with attention on the CPU counted like attention on a GPU.

Shapes: B batch, H query heads, L queries, T keys, C and V widths of a head's keys and values.
"""

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode


def count_flops(function: Callable[[], object]) -> int:
    """Runs a function and counts the floating-point operations of its matrix products, convolutions and attention.

    Attention counts in full, whatever its mask: 2 B H L T (C + V). An addition and a multiplication are two operations.
    """
    with FlopCounterMode(display=False, custom_mapping=_ON_CPU) as counter:
        function()
    return counter.get_total_flops()


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
    batch, heads, length, width = query
    return 2 * batch * heads * length * key[-2] * (width + value[-1])


# Releases of torch differ in whether they know a formula for this one.
_ON_CPU = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
