"""The decoder trunk of the Llama family: Llama, Qwen2, Qwen3, Emu3, Emu3.5 and most models built on them.

Shapes: B batch, L new tokens, D width, H query heads, K key/value heads.
"""

from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.utils.checkpoint import checkpoint

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.layers.attention.attend import Prepared, attend, prepare
from mmblocks.layers.attention.feed_forward import SwiGLU
from mmblocks.layers.attention.rotary_scaling import check_rotary_scaling, scaled_rotary_table
from mmblocks.sequence.masks import Dense, Mask, MaskRule, densify, find_mask
from mmblocks.sequence.positions import (
    PositionScheme,
    RotaryTable,
    mrope,
    rotate_half_split,
    sections_rotary_table,
    sequential,
)
from mmblocks.sequence.tokens import TokenTable
from mmblocks.trunks.caches.kv_cache import KVCache
from mmblocks.trunks.decoder_layouts import DECODER_LAYOUTS
from mmblocks.trunks.hooks import TrunkHooks

_NO_HOOKS = TrunkHooks()

_ROPE_DTYPES = {None: None, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
        self.query_norm: nn.Module = nn.RMSNorm(head_dim, eps=norm_eps) if normed else nn.Identity()
        self.key_norm: nn.Module = nn.RMSNorm(head_dim, eps=norm_eps) if normed else nn.Identity()

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

    def __init__(self, *, attention: nn.Module, dim: int, mlp_dim: int, norm_eps: float, dropout: float) -> None:
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
        rope_scaling: how rows beyond the trained length are read; see ``layers.attention.rotary_scaling``.
        rope_sections: for positions on several axes: how many pairs of a head's channels each has; see
            ``sequence.positions.sections_rotary_table`` and ``sequence.positions.mrope`` (Qwen2-VL).
        rope_dtype: "bfloat16" or "float16" where a model was made in it, and its sines and cosines keep that rounding in whatever
            dtype it runs later (Emu, with the transformers of its day); None leaves them exact.
        qk_norm: RMS norm on every head's q and k before the rotation (Qwen3, Emu3.5).
        qkv_bias: biases on q, k and v (Qwen2).
        dropout: on the embeddings and on both branches of every layer, while training (Emu3 trains with 0.1).
        positions: a scheme of one's own, from the token table to (B, L), or to (B, L, axes) with ``rope_sections``;
            ``sequence.positions.sequential`` if None, which counts tokens inside each document, images included, and
            ``sequence.positions.mrope`` with ``rope_sections``.

    Raises:
        ValueError: for sizes that do not go together.

    Source: Llama (arXiv 2302.13971); Emu3 (baaivision/Emu3) and Emu3.5 (baaivision/Emu3.5).

    Examples:
        >>> import torch
        >>> from mmblocks import Decoder, TokenTable
        >>> trunk = Decoder(dim=32, num_layers=2, num_heads=4, num_kv_heads=2, mlp_dim=64)
        >>> hidden = trunk(torch.randn(2, 5, 32), TokenTable.text(2, 5))
        >>> tuple(hidden.shape)
        (2, 5, 32)
    """

    layouts: ClassVar[tuple[Layout, ...]] = DECODER_LAYOUTS

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
        rope_sections: tuple[int, ...] | None = None,
        rope_dtype: str | None = None,
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
        if rope_sections is not None and (2 * sum(rope_sections) != head_dim or rope_scaling is not None):
            raise ValueError(f"rope_sections are {rope_sections}; accepted: {head_dim // 2} in all, without rope_scaling")
        if rope_dtype not in _ROPE_DTYPES:
            raise ValueError(f"rope_dtype is {rope_dtype!r}; accepted: None, 'bfloat16', 'float16'")
        self.rope_dtype = _ROPE_DTYPES[rope_dtype]
        self.dim, self.head_dim, self.num_kv_heads = dim, head_dim, num_kv_heads
        self.rope_theta, self.rope_scaling, self.dropout = rope_theta, rope_scaling, dropout
        self.rope_sections = rope_sections
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
        hooks: TrunkHooks | None = None,
    ) -> Float[Tensor, "B L D"]:
        """Hidden states after the final norm.

        Args:
            embeds: the tokens.
            table: the tokens' metadata.
            cache: what was read before; the tokens are added to it.
            mask: a form found beforehand, a user's own rule, or None for the table's rule.
            taps: states to record, by number: the value of each key present is set to the state after so many layers
                (0: the embeddings; ``num_layers``: after the final norm, as transformers counts).
            hooks: functions that read or change states, attention weights and heads on the way.

        Raises:
            ValueError: shapes that do not fit each other, a full cache, or hooks of layers that are not there.
        """
        return self._run(embeds, table, cache, mask, taps, hooks)

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

    def _run(
        self,
        embeds: Tensor,
        table: TokenTable,
        cache: KVCache | None,
        mask: Mask | MaskRule | None,
        taps: dict[int, Tensor] | None,
        hooks: TrunkHooks | None,
        *context: Any,
        **angles: Any,
    ) -> Tensor:
        """The forward pass; each layer is given the ``context`` too, and ``_rotary`` the ``angles``."""
        if embeds.shape[:2] != table.shape or embeds.shape[2] != self.dim:
            found = f"embeds {tuple(embeds.shape)} and a table {table.shape}"
            raise ValueError(f"{found} do not fit; accepted: (B, L, {self.dim}) and (B, L)")
        if hooks is not None:
            hooks.check(len(self.layers))
        keys = table if cache is None else cache.append(table)
        length = table.shape[1]
        lowered = find_mask(mask, table, keys)
        if hooks is not None and hooks.attention:
            lowered = Dense(densify(lowered, length, keys.shape[1], embeds.device))
        prepared = prepare(lowered, length, keys.shape[1], embeds.device)
        rotary = self.angles(keys, length, **angles)

        x = dropout(embeds, self.dropout, self.training)
        x = self.norm(self._through_layers(x, table, (rotary, prepared, *context), cache, taps, hooks))
        _tap(taps, len(self.layers), x)
        return x

    def _through_layers(
        self,
        x: Tensor,
        table: TokenTable,
        context: tuple[Any, ...],
        cache: KVCache | None,
        taps: dict[int, Tensor] | None,
        hooks: TrunkHooks | None,
    ) -> Tensor:
        """All layers, one after the other; each is given the ``context`` of the forward pass after its input."""
        rotary, mask, *more = context
        hooks = hooks or _NO_HOOKS
        for number, layer in enumerate(self.layers):
            x = hooks.state(number, x)
            _tap(taps, number, x)
            seen = hooks.observed(number, mask)
            # Recomputing a layer would call its hooks again.
            if self.checkpoint_activations and self.training and cache is None and seen is mask:
                x = checkpoint(layer, x, rotary, mask, *more, None, number, use_reentrant=False)
            else:
                x = layer(x, rotary, seen, *more, cache, number)
        return hooks.state(len(self.layers), x)

    def angles(self, keys: TokenTable, length: int, **options: Any) -> RotaryTable:
        """The rotary angles of the last ``length`` tokens, with the rounding that the model was made with."""
        rotary = self._rotary(keys, length, **options)
        if self.rope_dtype is None:
            return rotary
        return RotaryTable(*(part.to(self.rope_dtype).float() for part in rotary))

    def _rotary(self, keys: TokenTable, length: int, **angles: Any) -> RotaryTable:
        """Angles of the last ``length`` tokens."""
        if self.rope_sections is not None:
            positions = (self.positions or mrope)(keys)[:, -length:]
            return sections_rotary_table(positions, self.head_dim, self.rope_theta, self.rope_sections)
        scheme = self.positions or sequential
        return scaled_rotary_table(scheme(keys), self.head_dim, self.rope_theta, self.rope_scaling, last=length)


def _tap(taps: dict[int, Tensor] | None, number: int, state: Tensor) -> None:
    if taps is not None and number in taps:
        taps[number] = state
