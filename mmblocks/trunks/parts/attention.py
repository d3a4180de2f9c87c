"""Self-attention as a layer's token mixer.

Shapes: B batch, L new tokens, N tokens (on one or more axes), D width, H query heads, K key/value heads, E width of a head.
"""

from collections.abc import Mapping
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import dropout

from mmblocks.layers.attention.attend import attend
from mmblocks.sequence.positions import RotaryTable
from mmblocks.trunks.caches.kv_cache import Memory
from mmblocks.trunks.context import ForwardContext
from mmblocks.trunks.parts.linears import Linear
from mmblocks.trunks.parts.norms import Norm
from mmblocks.trunks.parts.part import Part, Site, TrunkPart
from mmblocks.trunks.parts.rotary import Rotary

NormedOver = Literal["head", "each_head", "all_heads"]
_NORMED_OVER = get_args(NormedOver)


class Attention(Part):
    """Grouped-query self-attention.

    Args:
        num_heads: H.
        num_kv_heads: K; H if None. Must divide it.
        head_dim: E; ``dim / num_heads`` if None.
        qkv_bias, output_bias: biases on q, k and v (Qwen2), and on the output.
        key_bias: whether k has one, where that is not ``qkv_bias`` (VAR); None for as that says.
        qk_norm: a norm on q and k before the rotation (Qwen3, Emu3.5), or None.
        qk_norm_over: what that norm spans: "head", each head with one set of weights; "each_head", each head with weights of its
            own (Chameleon, Cohere), the same for all experts; "all_heads", all heads as one vector (OLMo 2).
        rotary: how queries and keys are turned; None for not at all.
        window: tokens that attention reaches back, the token itself included; None for all (Mistral). Images stay whole.
        scale: of the scores; ``E ** -0.5`` if None.
        softcap: scores become ``softcap * tanh(scores / softcap)`` (Gemma 2); None for none.
        dropout: on attention weights and on the output, while training (ViT).
        linear: the four projections.

    Source: Transformer (arXiv 1706.03762), GQA (arXiv 2305.13245).

    Examples:
        >>> import torch
        >>> from mmblocks import Decoder, TokenTable
        >>> from mmblocks.trunks import Attention, GatedMLP, Layer
        >>> local = Layer(mixer=Attention(num_heads=4, num_kv_heads=2, window=2), feed_forward=GatedMLP(hidden_dim=48))
        >>> trunk, table = Decoder(dim=32, num_layers=1, layers=local), TokenTable.text(1, 5)
        >>> embeds = torch.randn(1, 5, 32)
        >>> changed = trunk(embeds.index_fill(1, torch.tensor([0]), 0.0), table) != trunk(embeds, table)
        >>> changed.any(-1).tolist()  # the first token is read by itself and by the next
        [[True, True, False, False, False]]
    """

    num_heads: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    key_bias: bool | None = None
    qk_norm: Norm | None = None
    qk_norm_over: NormedOver = "head"
    rotary: Rotary | None = Rotary()
    window: int | None = None
    scale: float | None = None
    softcap: float | None = None
    dropout: float = 0.0
    linear: Linear = Linear()

    def check(self) -> None:
        """Refuses heads that cannot be grouped, spans of norms that there are not, and windows and caps that are not positive."""
        if self.num_heads < 1:
            raise ValueError(f"num_heads is {self.num_heads}; accepted: 1 or more")
        if self.kv_heads < 1 or self.num_heads % self.kv_heads:
            raise ValueError(f"num_kv_heads is {self.num_kv_heads}; it must divide num_heads, {self.num_heads}")
        if self.head_dim is not None and self.head_dim < 1:
            raise ValueError(f"head_dim is {self.head_dim}; accepted: 1 or more, or None")
        if self.qk_norm_over not in _NORMED_OVER:
            raise ValueError(f"qk_norm_over is {self.qk_norm_over!r}; accepted: {', '.join(map(repr, _NORMED_OVER))}")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window is {self.window}; accepted: 1 or more, or None")
        if self.softcap is not None and self.softcap <= 0:
            raise ValueError(f"softcap is {self.softcap}; accepted: above 0, or None")
        if not 0 <= self.dropout < 1 or (self.dropout and self.softcap is not None):
            raise ValueError(f"dropout is {self.dropout}, softcap {self.softcap}; accepted: 0 or more, below 1, without a softcap")
        norm = self.qk_norm
        if self.qk_norm_over == "each_head" and norm is not None and (norm.experts or norm.one_plus or not norm.weight):
            raise ValueError(f"qk_norm has {norm}; accepted with 'each_head': weight=True, without one_plus and experts")

    @property
    def kv_heads(self) -> int:
        """K."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    def width(self, dim: int) -> int:
        """E in a trunk of this width.

        Raises:
            ValueError: heads that the width has no place for, or that the angles do not fit.
        """
        width = head_width(dim, self.num_heads, self.head_dim)
        if self.rotary is not None:
            self.rotary.check_head(width)
        return width

    def build(self, site: Site) -> nn.Module:
        """The module."""
        return SelfAttention(self, site.dim)


def head_width(dim: int, num_heads: int, head_dim: int | None) -> int:
    """The width of a head; the trunk's share of it where nothing is said.

    Raises:
        ValueError: heads that do not divide the trunk's width.
    """
    if head_dim is None and dim % num_heads:
        raise ValueError(f"dim is {dim} and num_heads {num_heads}: give head_dim, or a dim that num_heads divides")
    return head_dim or dim // num_heads


class SelfAttention(TrunkPart):
    """What ``Attention`` describes.

    Args:
        parts: the description.
        dim: D.

    Attributes:
        angles: what its angles are called in the context.
    """

    def __init__(self, parts: Attention, dim: int) -> None:
        super().__init__()
        self.head_dim = parts.width(dim)
        self.scale, self.softcap, self.window, self.rotary = parts.scale, parts.softcap, parts.window, parts.rotary
        self.dropout = parts.dropout
        inner, inner_kv = parts.num_heads * self.head_dim, parts.kv_heads * self.head_dim
        self.query = parts.linear.build("query", dim, inner, parts.qkv_bias)
        self.key = parts.linear.build("key", dim, inner_kv, parts.qkv_bias if parts.key_bias is None else parts.key_bias)
        self.value = parts.linear.build("value", dim, inner_kv, parts.qkv_bias)
        self.output = parts.linear.build("output", inner, dim, parts.output_bias)
        self.norms_all_heads = parts.qk_norm_over == "all_heads"
        self.query_norm = self._norm(parts, parts.num_heads)
        self.key_norm = self._norm(parts, parts.kv_heads)
        self.memory = Memory(parts.kv_heads, self.head_dim)
        self.static_step = parts.rotary is None or parts.rotary.static_step
        self.angles = f"{type(parts.rotary).__module__} {parts.rotary} {self.head_dim}"

    def _norm(self, parts: Attention, heads: int) -> nn.Module | None:
        if parts.qk_norm is None:
            return None
        if parts.qk_norm_over == "all_heads":
            return parts.qk_norm.build(heads * self.head_dim)
        return parts.qk_norm.build(self.head_dim, heads if parts.qk_norm_over == "each_head" else None)

    def prepare(self, context: ForwardContext) -> None:
        """Angles and mask, which layers share."""
        context.share_mask(self.window, capped=self.softcap is not None, dropped=self.training and self.dropout > 0)
        if self.rotary is not None:
            rotary = self.rotary
            context.share_angles(self.angles, lambda: rotary.angles(context, self.head_dim))

    def forward(self, x: Float[Tensor, "*N D"], context: ForwardContext, layer: int) -> Float[Tensor, "*N D"]:
        """Attends to the tokens themselves and, with a cache, to those before."""
        query = self.turned(self.query, self.query_norm, x, context, context.angles)
        key = self.turned(self.key, self.key_norm, x, context, context.angles)
        value = self._heads(self.value, None, x, context)
        if context.cache is not None:
            key, value = context.cache.update(layer, key, value)
        rate = self.dropout if self.training else 0.0
        mask = context.attention_mask(layer, self.window, capped=self.softcap is not None, dropped=rate > 0)
        found = attend(query, key, value, mask, self.scale, self.softcap, rate)
        made = context.apply(self.output, context.as_rows(found.transpose(1, 2).flatten(2)))
        return dropout(made, rate) if rate else made

    def turned(
        self,
        project: nn.Module,
        norm: nn.Module | None,
        x: Float[Tensor, "*N D"],
        context: ForwardContext,
        angles: Mapping[str, RotaryTable],
    ) -> Float[Tensor, "B _ L E"]:
        """Queries or keys of tokens that have these angles."""
        heads = self._heads(project, norm, x, context)
        return heads if self.rotary is None else self.rotary.rotate(heads, angles[self.angles])

    def _heads(self, project: nn.Module, norm: nn.Module | None, x: Tensor, context: ForwardContext) -> Tensor:
        """Projected, normed, and in reading order, heads apart."""
        heads = context.apply(project, x)
        if norm is not None and self.norms_all_heads:
            heads = context.apply(norm, heads)
        heads = heads.unflatten(-1, (-1, self.head_dim))
        if norm is not None and not self.norms_all_heads:
            heads = context.apply(norm, heads)
        return context.in_order(heads).transpose(1, 2)
