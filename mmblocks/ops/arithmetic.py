"""What a device computes with."""

import torch
from torch import Tensor


def lacks_arithmetic(x: Tensor) -> bool:
    """Whether ``x`` is of half precision on a CPU without such products: PyTorch emulates them, many times slower than float32."""
    return x.device.type == "cpu" and x.dtype in _EMULATED


def _emulated() -> frozenset[torch.dtype]:
    if not torch.backends.mkldnn.is_available():
        return frozenset((torch.bfloat16, torch.float16))
    native = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported(),
    }
    return frozenset(dtype for dtype, supported in native.items() if not supported)


_EMULATED = _emulated()
