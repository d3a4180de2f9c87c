"""Plain vision transformer blocks: timm's, in the two forms that published tokenizers have.

Shapes: B images, L tokens, D width.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def vit_blocks(dim: int, num_layers: int, num_heads: int, *, eps: float = 1e-6, swiglu: bool = False) -> nn.ModuleList:
    """Pre-norm blocks of attention, with biases, and a feed-forward layer.

    Args:
        dim: width.
        num_layers: how many.
        num_heads: heads of attention; their width is ``dim / num_heads``.
        eps: of the layer norms.
        swiglu: DINOv2's fused SwiGLU, of about 8/3 the width, instead of GELU and four times the width.

    Raises:
        ValueError: a width that the heads do not divide.
    """
    from timm.layers.mlp import GluMlp, Mlp  # here, since importing timm takes seconds
    from timm.models.vision_transformer import Block

    if dim % num_heads:
        raise ValueError(f"dim is {dim}, num_heads {num_heads}; accepted: heads that divide the width")

    glu: Callable[..., nn.Module] = GluMlp

    def fused_swiglu(hidden_features: int, **options: object) -> nn.Module:
        return glu(hidden_features=2 * swiglu_width(hidden_features), gate_last=False, **options)

    options: dict[str, Any] = {
        "norm_layer": partial(nn.LayerNorm, eps=eps),
        "mlp_layer": fused_swiglu if swiglu else Mlp,
        "act_layer": nn.SiLU if swiglu else nn.GELU,
    }
    blocks = nn.ModuleList(Block(dim, num_heads, qkv_bias=True, **options) for _ in range(num_layers))
    return blocks.apply(init_truncated)


def swiglu_width(hidden_dim: int) -> int:
    """Two thirds, rounded up to a multiple of eight: as many parameters as without a gate. As in DINOv2 (arXiv 2304.07193)."""
    return -(-(hidden_dim * 2 // 3) // 8) * 8


def causal_bias(x: Tensor) -> Tensor:
    """(L, L), to be added to the attention scores of x (B, L, D): minus infinity where a key comes after its query.

    timm's oldest supported version takes no ``is_causal``.
    """
    length = x.shape[1]
    return torch.full((length, length), -torch.inf, dtype=x.dtype, device=x.device).triu(1)


def init_truncated(module: nn.Module) -> None:
    """The usual start of vision transformers, for ``apply``: truncated normal weights of deviation 0.02, biases of zero."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
