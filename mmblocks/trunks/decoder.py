"""The decoder trunk of the Llama family: Llama, Qwen2, Qwen3, Emu3, Emu3.5 and most models built on them.

Shapes: B batch, L new tokens, D width, H query heads, K key/value heads.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.utils.checkpoint import checkpoint

from mmblocks.block import Block
from mmblocks.checkpoints.layouts import Layout, Rule
from mmblocks.layers.attention import Prepared, attend, prepare
from mmblocks.layers.feed_forward import SwiGLU
from mmblocks.masks import Dense, Mask, MaskRule, lower, visible
from mmblocks.positions import (
    PositionScheme,
    RotaryTable,
    check_rotary_scaling,
    rotary_table,
    rotate_half_split,
    scale_rotary,
    sequential,
)
from mmblocks.tokens import TokenTable
from mmblocks.trunks.kv_cache import KVCache


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions.

    Args:
        dim: width of input and output.
        num_heads, num_kv_heads, head_dim: query heads, key/value heads, width of each.
        bias: whether q, k and v have biases (Qwen2).
        norm_eps: epsilon of RMS norms on every head's q and k (Qwen3, Emu3.5), or None for none.
    """

    def __init__(self, *, dim: int, num_heads: int, num_kv_heads: int, head_dim: int, bias: bool, norm_eps: float | None) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.query = nn.Linear(dim, num_heads * head_dim, bias=bias)
        self.key = nn.Linear(dim, num_kv_heads * head_dim, bias=bias)
        self.value = nn.Linear(dim, num_kv_heads * head_dim, bias=bias)
        self.output = nn.Linear(num_heads * head_dim, dim, bias=False)
        normed = norm_eps is not None
        self.query_norm = nn.RMSNorm(head_dim, eps=norm_eps) if normed else nn.Identity()
        self.key_norm = nn.RMSNorm(head_dim, eps=norm_eps) if normed else nn.Identity()

    def forward(
        self, x: Float[Tensor, "B L D"], rotary: RotaryTable, mask: Prepared, cache: KVCache | None, layer: int
    ) -> Float[Tensor, "B L D"]:
        """Attends to the tokens themselves and, with a cache, to those before."""
        query, key, value = (
            rearrange(project(x), "b l (h d) -> b h l d", d=self.head_dim) for project in (self.query, self.key, self.value)
        )
        query = rotate_half_split(self.query_norm(query), rotary)
        key = rotate_half_split(self.key_norm(key), rotary)
        if cache is not None:
            key, value = cache.update(layer, key, value)
        attended = attend(query, key, value, mask)
        return self.output(rearrange(attended, "b h l d -> b l (h d)"))


class DecoderLayer(nn.Module):
    """Pre-norm attention and feed-forward, each added to what comes in."""

    def __init__(self, *, attention: Attention, dim: int, mlp_dim: int, norm_eps: float, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(dim, eps=norm_eps)
        self.attention = attention
        self.mlp_norm = nn.RMSNorm(dim, eps=norm_eps)
        self.mlp = SwiGLU(dim, mlp_dim)
        self.dropout = dropout

    def forward(
        self, x: Float[Tensor, "B L D"], rotary: RotaryTable, mask: Prepared, cache: KVCache | None, layer: int
    ) -> Float[Tensor, "B L D"]:
        """One layer."""
        attended = self.attention(self.attention_norm(x), rotary, mask, cache, layer)
        x = x + dropout(attended, self.dropout, self.training)
        return x + dropout(self.mlp(self.mlp_norm(x)), self.dropout, self.training)


def llama_config(config: Mapping[str, Any], *, qk_norm: bool = False) -> dict[str, Any]:
    """A transformers config of the Llama family as ``Decoder`` arguments."""
    scaling = config.get("rope_scaling")
    if scaling is not None:
        scaling = {"type": scaling.get("type", scaling.get("rope_type")), "factor": scaling["factor"]}
        if scaling["type"] == "dynamic":
            scaling["max_position"] = config["max_position_embeddings"]
    num_heads = config["num_attention_heads"]
    return {
        "dim": config["hidden_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": num_heads,
        "num_kv_heads": config.get("num_key_value_heads") or num_heads,
        "head_dim": config.get("head_dim") or config["hidden_size"] // num_heads,
        "mlp_dim": config["intermediate_size"],
        "norm_eps": config["rms_norm_eps"],
        "rope_theta": config.get("rope_theta") or config.get("rope_parameters", {}).get("rope_theta", 10000.0),
        "rope_scaling": scaling,
        "qk_norm": qk_norm,
    }


LLAMA_RULES = (
    Rule("model.layers.{}.input_layernorm.weight", "layers.{}.attention_norm.weight"),
    Rule("model.layers.{}.self_attn.q_proj.*", "layers.{}.attention.query.*"),
    Rule("model.layers.{}.self_attn.k_proj.*", "layers.{}.attention.key.*"),
    Rule("model.layers.{}.self_attn.v_proj.*", "layers.{}.attention.value.*"),
    Rule("model.layers.{}.self_attn.o_proj.weight", "layers.{}.attention.output.weight"),
    Rule("model.layers.{}.self_attn.q_norm.weight", "layers.{}.attention.query_norm.weight"),
    Rule("model.layers.{}.self_attn.k_norm.weight", "layers.{}.attention.key_norm.weight"),
    Rule("model.layers.{}.post_attention_layernorm.weight", "layers.{}.mlp_norm.weight"),
    Rule("model.layers.{}.mlp.gate_proj.weight", "layers.{}.mlp.gate.weight"),
    Rule("model.layers.{}.mlp.up_proj.weight", "layers.{}.mlp.up.weight"),
    Rule("model.layers.{}.mlp.down_proj.weight", "layers.{}.mlp.down.weight"),
    Rule("model.norm.weight", "norm.weight"),
)
"""Keys of the Llama family -> ``Decoder``."""

_PLAIN_RULES = tuple(rule for rule in LLAMA_RULES if "_norm.weight" not in rule.theirs.partition("self_attn.")[2])
_NOT_THE_TRUNK = ("model.embed_tokens.weight", "lm_head.weight", "model.layers.{}.self_attn.rotary_emb.inv_freq")


class Decoder(Block):
    """A stack of causal transformer layers with rotary positions, grouped queries and SwiGLU.

    The mask follows the table's visibility rule.

    Args:
        dim: width.
        num_layers: layers.
        num_heads: query heads.
        num_kv_heads: key/value heads; ``num_heads`` if None. Must divide it.
        head_dim: width of a head; ``dim / num_heads`` if None. Even.
        mlp_dim: inner width of the feed-forward layers.
        norm_eps: epsilon of the RMS norms.
        rope_theta: base of the rotary frequencies.
        rope_scaling: how rows beyond the trained length are read; see ``positions.scale_rotary``.
        qk_norm: RMS norm on every head's q and k before the rotation (Qwen3, Emu3.5).
        qkv_bias: biases on q, k and v (Qwen2).
        dropout: on the embeddings and on both branches of every layer, while training (Emu3 trains with 0.1).
        positions: a scheme of one's own, from the token table to (B, L); ``positions.sequential`` if None, which counts
            tokens inside each document, images included.

    Raises:
        ValueError: for sizes that do not go together.

    Source: Llama (arXiv 2302.13971); Emu3 (baaivision/Emu3) and Emu3.5 (baaivision/Emu3.5).
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout("llama", _PLAIN_RULES, ignored=_NOT_THE_TRUNK, config=llama_config),
        Layout("llama-qk-norm", LLAMA_RULES, ignored=_NOT_THE_TRUNK, config=partial(llama_config, qk_norm=True)),
    )

    def __init__(
        self,
        *,
        dim: int,
        num_layers: int,
        num_heads: int,
        mlp_dim: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        norm_eps: float = 1e-5,
        rope_theta: float = 10000.0,
        rope_scaling: dict[str, Any] | None = None,
        qk_norm: bool = False,
        qkv_bias: bool = False,
        dropout: float = 0.0,
        positions: PositionScheme | None = None,
    ) -> None:
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if head_dim is None and dim % num_heads:
            raise ValueError(f"dim is {dim} and num_heads {num_heads}: give head_dim, or a dim that num_heads divides")
        if num_heads % num_kv_heads:
            raise ValueError(f"num_kv_heads is {num_kv_heads}; it must divide num_heads, {num_heads}")
        head_dim = head_dim or dim // num_heads
        if head_dim % 2:
            raise ValueError(f"head_dim is {head_dim}; rotary embedding needs an even one")
        check_rotary_scaling(rope_scaling)
        self.dim, self.head_dim, self.num_kv_heads = dim, head_dim, num_kv_heads
        self.rope_theta, self.rope_scaling, self.dropout = rope_theta, rope_scaling, dropout
        self.positions = positions
        self.checkpoint_activations = False
        self.layers = nn.ModuleList(
            DecoderLayer(
                attention=Attention(
                    dim=dim,
                    num_heads=num_heads,
                    num_kv_heads=num_kv_heads,
                    head_dim=head_dim,
                    bias=qkv_bias,
                    norm_eps=norm_eps if qk_norm else None,
                ),
                dim=dim,
                mlp_dim=mlp_dim,
                norm_eps=norm_eps,
                dropout=dropout,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.RMSNorm(dim, eps=norm_eps)

    def forward(
        self,
        embeds: Float[Tensor, "B L D"],
        table: TokenTable,
        cache: KVCache | None = None,
        *,
        mask: Mask | MaskRule | None = None,
        taps: dict[int, Tensor] | None = None,
    ) -> Float[Tensor, "B L D"]:
        """Hidden states behind the final norm.

        Args:
            embeds: the tokens.
            table: who they are.
            cache: what was read before; the tokens are added to it.
            mask: a form found beforehand, a user's own rule, or None for the table's rule.
            taps: states to record, by number: the value of each key present is set to the state behind so many layers
                (0: the embeddings; ``num_layers``: behind the final norm, as transformers counts).

        Raises:
            ValueError: shapes that do not fit each other, or a full cache.
        """
        if embeds.shape[:2] != table.shape or embeds.shape[2] != self.dim:
            found = f"embeds {tuple(embeds.shape)} and a table {table.shape}"
            raise ValueError(f"{found} do not fit; accepted: (B, L, {self.dim}) and (B, L)")
        keys = table if cache is None else cache.append(table)
        length = table.shape[1]
        prepared = prepare(find_mask(mask, table, keys), length, keys.shape[1], embeds.device)
        rotary = self._rotary(keys, length)

        x = dropout(embeds, self.dropout, self.training)
        _tap(taps, 0, x)
        for number, layer in enumerate(self.layers):
            if self.checkpoint_activations and self.training and cache is None:
                x = checkpoint(layer, x, rotary, prepared, None, number, use_reentrant=False)
            else:
                x = layer(x, rotary, prepared, cache, number)
            if number + 1 < len(self.layers):
                _tap(taps, number + 1, x)
        x = self.norm(x)
        _tap(taps, len(self.layers), x)
        return x

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """An empty cache for ``batch`` rows of at most ``capacity`` tokens, in this trunk's dtype and on its device."""
        weight = self.norm.weight
        return KVCache(
            num_layers=len(self.layers),
            num_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            batch=batch,
            capacity=capacity,
            dtype=weight.dtype,
            device=weight.device,
        )

    def _rotary(self, keys: TokenTable, length: int) -> RotaryTable:
        """Angles of the last ``length`` tokens."""
        scheme = self.positions or sequential
        positions, theta = scale_rotary(scheme(keys), self.head_dim, self.rope_theta, self.rope_scaling)
        return rotary_table(positions[:, -length:], self.head_dim, theta)


def find_mask(mask: Mask | MaskRule | None, queries: TokenTable, keys: TokenTable) -> Mask:
    """A mask in lowered form: as given, by a user's rule, or by the table's rule.

    Lowering reads values. Where that would wait for a GPU or break a compiled graph, every pair is computed instead:
    right, but slower than a mask that was lowered beforehand, as ``BatchBuilder`` does.
    """
    if callable(mask):
        return Dense(mask(queries, keys))
    if mask is not None:
        return mask
    if queries.document.device.type != "cpu" or torch.compiler.is_compiling():
        return Dense(visible(queries, keys))
    return lower(queries, keys)


def _tap(taps: dict[int, Tensor] | None, number: int, state: Tensor) -> None:
    if taps is not None and number in taps:
        taps[number] = state
