"""NEO's trunk: Qwen3 layers whose queries and keys carry the row and the column beside the step.

Shapes: B batch, L tokens, D width, H query heads, K key/value heads, E width of a head.
"""

from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.layers.attention.attend import attend
from mmblocks.sequence.positions import PositionScheme, axes_rotary_table, rotate_axes, time_height_width
from mmblocks.trunks.caches.kv_cache import Memory
from mmblocks.trunks.context import ForwardContext
from mmblocks.trunks.decoder import Decoder
from mmblocks.trunks.layer import Layer
from mmblocks.trunks.neo.layout import NEO_LAYOUTS
from mmblocks.trunks.parts.attention import head_width
from mmblocks.trunks.parts.feed_forward import GatedMLP
from mmblocks.trunks.parts.norms import Norm
from mmblocks.trunks.parts.part import Part, Site, TrunkPart


class GridProjection(nn.Module):
    """Queries or keys in three parts: E channels for the step, E/2 for the row, E/2 for the column, each with a norm of its own.

    Args:
        dim: D.
        num_heads, head_dim: heads and E.
        bias: whether both projections have biases.
        norm_eps: epsilon of the norms.
    """

    def __init__(self, *, dim: int, num_heads: int, head_dim: int, bias: bool, norm_eps: float) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.step = nn.Linear(dim, num_heads * head_dim, bias=bias)
        self.place = nn.Linear(dim, num_heads * head_dim, bias=bias)
        self.step_norm = nn.RMSNorm(head_dim, eps=norm_eps)
        self.row_norm = nn.RMSNorm(head_dim // 2, eps=norm_eps)
        self.column_norm = nn.RMSNorm(head_dim // 2, eps=norm_eps)

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B H L E2"]:
        """Twice E wide, and not yet rotated."""
        step, place = (rearrange(project(x), "b l (h d) -> b h l d", d=self.head_dim) for project in (self.step, self.place))
        row, column = place.chunk(2, dim=-1)
        return torch.cat([self.step_norm(step), self.row_norm(row), self.column_norm(column)], dim=-1)


class NEOAttention(Part):
    """Grouped-query attention whose scores are those of the step plus those of the place; values are half as wide.

    Args:
        num_heads, num_kv_heads, head_dim: H, K and E, a multiple of four.
        bias: whether all projections have biases.
        norm_eps: epsilon of the norms of queries and keys.
        theta, theta_place: bases of the rotary frequencies of the step, and of row and column.

    Examples:
        >>> from mmblocks import Decoder
        >>> from mmblocks.trunks import GatedMLP, Layer, NEOAttention
        >>> mixer = NEOAttention(num_heads=4, num_kv_heads=2, head_dim=8)
        >>> trunk = Decoder(dim=32, num_layers=1, layers=Layer(mixer=mixer, feed_forward=GatedMLP(hidden_dim=48)))
        >>> trunk.new_cache(1, 5).keys[0].shape[-1]  # keys carry step, row and column
        16
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    bias: bool = False
    norm_eps: float = 1e-6
    theta: float = 1e6
    theta_place: float = 10000.0

    def check(self) -> None:
        """Refuses heads that cannot be grouped or turned."""
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads is {self.num_kv_heads}; it must divide num_heads, {self.num_heads}")
        if self.head_dim % 4:
            raise ValueError(f"head_dim is {self.head_dim}; accepted: multiples of 4, since its halves are rotated in pairs")

    def build(self, site: Site) -> nn.Module:
        """The module."""
        return NEOSelfAttention(self, site.dim)


class NEOSelfAttention(TrunkPart):
    """What ``NEOAttention`` describes."""

    reads_rows = False

    def __init__(self, parts: NEOAttention, dim: int) -> None:
        super().__init__()
        num_heads, num_kv_heads, head_dim = parts.num_heads, parts.num_kv_heads, parts.head_dim
        bias, norm_eps = parts.bias, parts.norm_eps
        self.head_dim = head_dim
        self.axes = (head_dim, head_dim // 2, head_dim // 2)
        self.bases = (parts.theta, parts.theta_place, parts.theta_place)
        self.angles = f"NEO {self.axes} {self.bases}"
        self.memory = Memory(num_kv_heads, 2 * head_dim, head_dim)
        self.query = GridProjection(dim=dim, num_heads=num_heads, head_dim=head_dim, bias=bias, norm_eps=norm_eps)
        self.key = GridProjection(dim=dim, num_heads=num_kv_heads, head_dim=head_dim, bias=bias, norm_eps=norm_eps)
        self.value = nn.Linear(dim, num_kv_heads * head_dim, bias=bias)
        self.output = nn.Linear(num_heads * head_dim, dim, bias=bias)

    def prepare(self, context: ForwardContext) -> None:
        """Mask and angles: those of the step, then those of row and column."""
        context.share_mask()
        positions = context.position(time_height_width)[:, -context.lengths[0] :]
        context.share_angles(self.angles, lambda: axes_rotary_table(positions, self.axes, self.bases))

    def forward(self, x: Float[Tensor, "B L D"], context: ForwardContext, layer: int) -> Float[Tensor, "B L D"]:
        """Attends to the tokens themselves and, with a cache, to those before."""
        angles = context.angles[self.angles]
        query = rotate_axes(self.query(x), angles, self.axes)
        key = rotate_axes(self.key(x), angles, self.axes)
        value = rearrange(self.value(x), "b l (h d) -> b h l d", d=self.head_dim)
        if context.cache is not None:
            key, value = context.cache.update(layer, key, value)
        # The scale is that of a plain Qwen3 head, although queries and keys are twice as wide.
        attended = attend(query, key, value, context.attention_mask(layer), scale=self.head_dim**-0.5)
        return self.output(rearrange(attended, "b h l d -> b l (h d)"))


class NEOTrunk(Decoder):
    """A causal decoder with positions on three axes: the step in the text, where an image takes one, and row and column inside it.

    The first ``num_prebuffer_layers`` are those put before a pretrained language model ("pre-buffer"); they compute like the
    others. ``trunks.neo.init.neo_from_qwen3`` makes such a trunk of a plain Qwen3.

    Args:
        dim: D.
        num_layers: layers, the pre-buffer included.
        num_heads: H.
        mlp_dim: inner width of the feed-forward layers.
        num_kv_heads: K; H if None.
        head_dim: E of the values and of the queries' part for the step; a multiple of four. ``dim / num_heads`` if None.
        norm_eps: epsilon of all norms.
        rope_theta: base of the rotary frequencies of the step.
        rope_theta_place: that of row and column.
        bias: biases on all projections of the attention.
        num_prebuffer_layers: how many of the layers are the pre-buffer.
        positions: a scheme of one's own, from the token table to (B, L, 3); ``sequence.positions.time_height_width`` if None.

    Raises:
        ValueError: for sizes that do not go together.

    Source: NEO (arXiv 2510.14979; EvolvingLMMs-Lab/NEO).

    Examples:
        >>> import torch
        >>> from mmblocks import TokenTable
        >>> from mmblocks.trunks import NEOTrunk
        >>> trunk = NEOTrunk(dim=32, num_layers=2, num_heads=4, num_kv_heads=2, mlp_dim=48, num_prebuffer_layers=1)
        >>> tuple(trunk(torch.randn(1, 5, 32), TokenTable.text(1, 5)).shape)
        (1, 5, 32)
    """

    layouts: ClassVar[tuple[Layout, ...]] = NEO_LAYOUTS

    def __init__(
        self,
        *,
        dim: int,
        num_layers: int,
        num_heads: int,
        mlp_dim: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        norm_eps: float = 1e-6,
        rope_theta: float = 1e6,
        rope_theta_place: float = 10000.0,
        bias: bool = False,
        num_prebuffer_layers: int = 0,
        positions: PositionScheme | None = None,
    ) -> None:
        if not 0 <= num_prebuffer_layers <= num_layers:
            raise ValueError(f"num_prebuffer_layers is {num_prebuffer_layers}; accepted: 0 to num_layers, {num_layers}")
        mixer = NEOAttention(
            num_heads=num_heads,
            num_kv_heads=num_heads if num_kv_heads is None else num_kv_heads,
            head_dim=head_width(dim, num_heads, head_dim),
            bias=bias,
            norm_eps=norm_eps,
            theta=rope_theta,
            theta_place=rope_theta_place,
        )
        layer = Layer(mixer=mixer, feed_forward=GatedMLP(hidden_dim=mlp_dim), norm=Norm(eps=norm_eps))
        super().__init__(dim=dim, num_layers=num_layers, layers=layer, positions=positions)
        self.head_dim, self.num_prebuffer_layers = mixer.head_dim, num_prebuffer_layers
