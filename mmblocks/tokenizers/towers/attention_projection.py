"""Attention that changes the width of tokens: its heads are averaged on the way down, and joined on the way up.

Shapes: B images, N tokens of one, C and D the widths before and after, H heads.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool1d, gelu, linear, scaled_dot_product_attention

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import check_arguments, only
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.tokenizers.towers.unitok_training import UNITOK_TRAINING

_RULES = (
    ("norm1.*", "attention_norm.*"),
    ("attn.qkv.weight", "attention.qkv.weight"),
    ("attn.q_bias", "attention.query_bias"),
    ("attn.zero_k_bias", "attention.key_bias"),
    ("attn.v_bias", "attention.value_bias"),
    ("attn.proj.*", "attention.out.*"),
    ("norm3.*", "shortcut_norm.*"),
    ("proj.*", "shortcut.*"),
    ("norm2.*", "mlp_norm.*"),
    ("mlp.norm.*", "mlp.norm.*"),
    ("mlp.w0.*", "mlp.gate.*"),
    ("mlp.w1.*", "mlp.up.*"),
    ("mlp.w2.*", "mlp.down.*"),
)


def attention_projection_rules(theirs: str, ours: str) -> tuple[Rule, ...]:
    """The rules of an ``AttentionProjection`` at ``theirs`` in a published file and ``ours`` in a Block; both end in a dot."""
    return tuple(Rule(theirs + key, ours + name) for key, name in _RULES)


_ENCODERS = {"vitamin_base": 768, "vitamin_large": 1024}
"""Widths of the image models that UniTok's options name."""

_HARMLESS = (
    *UNITOK_TRAINING,
    *("img_size", "patch_size", "num_query", "embed_dim"),
    *("text_width", "text_heads", "text_layers", "text_vocab_size", "text_context_length"),
    *("vocab_size", "vocab_size_total", "vocab_norm", "num_codebooks", "vq_beta", "le", "e_temp"),
    *("beta", "use_entropy_loss", "entropy_temp"),
)
"""Of the other parts: the image model, the text encoder, and the codebooks, whose class has some of these under other names."""


def _config(config: Mapping[str, Any], *, down: bool) -> dict[str, Any]:
    """UniTok's options, which it keeps in its file of weights; what is not said is as published.

    The width before comes from the image model's name, or is ``encoder_dim``.
    """
    only(config, "quant_proj", "attn")
    only(config, "model", *_ENCODERS)
    wide = config.get("encoder_dim")
    if wide is None:
        wide = _ENCODERS[config.get("model", "vitamin_large")]
    narrow = config.get("vocab_width", 64)
    in_dim, out_dim = (wide, narrow) if down else (narrow, wide)
    return {"in_dim": in_dim, "out_dim": out_dim, "num_heads": wide // narrow}


def _published_config(arguments: Arguments, *, down: bool) -> dict[str, Any]:
    narrow, wide = sorted((arguments["in_dim"], arguments["out_dim"]))
    in_dim, out_dim = (wide, narrow) if down else (narrow, wide)
    check_arguments(arguments, in_dim=in_dim, out_dim=out_dim, num_heads=wide // narrow, causal=False)
    return {"encoder_dim": wide, "vocab_width": narrow, "quant_proj": "attn"}


class ResizingAttention(nn.Module):
    """Attention in the larger of the two widths; keys have no bias, since it changes nothing.

    Args:
        in_dim, out_dim: widths before and after.
        num_heads: heads that the larger width is divided into.
        causal: whether a token sees only itself and those before it, row by row.
    """

    key_bias: Tensor

    def __init__(self, in_dim: int, out_dim: int, *, num_heads: int, causal: bool) -> None:
        super().__init__()
        wide = max(in_dim, out_dim)
        self.narrows = in_dim > out_dim
        self.out_dim = out_dim
        self.num_heads = num_heads
        self.causal = causal
        self.qkv = nn.Linear(in_dim, 3 * wide, bias=False)
        self.query_bias = nn.Parameter(torch.zeros(wide))
        self.value_bias = nn.Parameter(torch.zeros(wide))
        self.register_buffer("key_bias", torch.zeros(wide))  # zeros, which published files hold too
        self.out = nn.Linear(out_dim, out_dim)

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N D"]:
        """Every token from all tokens."""
        bias = torch.cat([self.query_bias, self.key_bias, self.value_bias])
        query, key, value = rearrange(linear(x, self.qkv.weight, bias), "b n (s h d) -> s b h n d", s=3, h=self.num_heads)
        mixed = scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        if not self.narrows:
            return self.out(rearrange(mixed, "b h n d -> b n (h d)"))
        narrow = mixed.mean(dim=1)
        # A head may be wider than what comes out.
        return self.out(narrow if narrow.shape[-1] == self.out_dim else adaptive_avg_pool1d(narrow, self.out_dim))


class GatedGELU(nn.Module):
    """``down(gelu(gate(x)) * up(x))`` after a norm of its own; GELU by its tanh formula.

    Args:
        dim: width of input and output.
        hidden_dim: width between.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.gate = nn.Linear(dim, hidden_dim)
        self.up = nn.Linear(dim, hidden_dim)
        self.down = nn.Linear(hidden_dim, dim)

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """Works on the last axis."""
        x = self.norm(x)
        return self.down(gelu(self.gate(x), approximate="tanh") * self.up(x))


class AttentionProjection(Block):
    """A transformer layer whose output has another width than its input.

    Args:
        in_dim, out_dim: widths before and after; one is a multiple of the other.
        num_heads: heads that the larger width is divided into.
        causal: whether a token sees only itself and those before it, row by row.

    Raises:
        ValueError: widths or heads that do not divide.

    Source: UniTok (arXiv 2502.20321; FoundationVision/UniTok); causal in DualToken (arXiv 2503.14324; songweii/DualToken).
    """

    layouts: ClassVar[tuple[Layout, ...]] = tuple(
        Layout(
            name,
            attention_projection_rules(f"{prefix}.", ""),
            ignored=("*",),
            config=partial(_config, down=down),
            published_config=partial(_published_config, down=down),
            harmless=_HARMLESS,
        )
        for name, prefix, down in (("unitok-in", "quant_proj", True), ("unitok-out", "post_quant_proj", False))
    )

    def __init__(self, *, in_dim: int, out_dim: int, num_heads: int, causal: bool = False) -> None:
        super().__init__()
        narrow, wide = sorted((in_dim, out_dim))
        if wide % narrow or wide % num_heads:
            raise ValueError(
                f"in_dim is {in_dim}, out_dim {out_dim}, num_heads {num_heads}; accepted: a larger width that is a multiple of the"
                " smaller one and of num_heads"
            )
        self.attention_norm = nn.LayerNorm(in_dim)
        self.attention = ResizingAttention(in_dim, out_dim, num_heads=num_heads, causal=causal)
        self.shortcut_norm = nn.LayerNorm(in_dim)
        self.shortcut = nn.Linear(in_dim, out_dim)
        self.mlp_norm = nn.LayerNorm(out_dim)
        self.mlp = GatedGELU(out_dim, 2 * out_dim)

    def forward(self, features: Float[Tensor, "B *grid C"]) -> Float[Tensor, "B *grid D"]:
        """All tokens of an image, row by row, see each other."""
        x = features.flatten(1, -2)
        x = self.shortcut(self.shortcut_norm(x)) + self.attention(self.attention_norm(x))
        x = x + self.mlp(self.mlp_norm(x))
        return x.view(*features.shape[:-1], x.shape[-1])
