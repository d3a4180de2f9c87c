"""SigLIP's vision transformer, which text-aligned tokenizers begin with.

Shapes: B images, H and W pixels, h and w patches, N = h w patches, D width.
"""

import re
from dataclasses import dataclass
from typing import TypedDict, Unpack

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from mmblocks.checkpoints.layouts.layout import Rule, Split
from mmblocks.layers.activations import activation_of

_LAYER = (
    ("layer_norm1.*", "attention_norm.*"),
    ("self_attn.q_proj.*", "attention.query.*"),
    ("self_attn.k_proj.*", "attention.key.*"),
    ("self_attn.v_proj.*", "attention.value.*"),
    ("self_attn.out_proj.*", "attention.out.*"),
    ("layer_norm2.*", "mlp_norm.*"),
    ("mlp.fc1.*", "mlp.up.*"),
    ("mlp.fc2.*", "mlp.down.*"),
)

_TIMM_LAYER = (
    ("norm1.*", "attention_norm.*"),
    ("attn.proj.*", "attention.out.*"),
    ("norm2.*", "mlp_norm.*"),
    ("mlp.fc1.*", "mlp.up.*"),
    ("mlp.fc2.*", "mlp.down.*"),
)


def siglip_rules(theirs: str, ours: str) -> tuple[Rule, ...]:
    """transformers' names of a vision model at ``theirs``, and those of a ``SiglipVision`` at ``ours``; both end in a dot."""
    return (
        Rule(f"{theirs}embeddings.patch_embedding.*", f"{ours}patch.*"),
        Rule(f"{theirs}embeddings.position_embedding.weight", f"{ours}positions"),
        *(Rule(f"{theirs}encoder.layers.{{}}.{key}", f"{ours}layers.{{}}.{name}") for key, name in _LAYER),
        Rule(f"{theirs}post_layernorm.*", f"{ours}norm.*"),
        Rule(f"{theirs}head.probe", f"{ours}pool.query"),
        Rule(f"{theirs}head.attention.*", f"{ours}pool.attention.*"),
        Rule(f"{theirs}head.layernorm.*", f"{ours}pool.norm.*"),
        Rule(f"{theirs}head.mlp.fc1.*", f"{ours}pool.mlp.up.*"),
        Rule(f"{theirs}head.mlp.fc2.*", f"{ours}pool.mlp.down.*"),
    )


def siglip_timm_rules(theirs: str, ours: str) -> tuple[Rule | Split, ...]:
    """timm's names of a vision model at ``theirs``, and those of a ``SiglipPatches`` at ``ours``; both end in a dot."""
    qkv = tuple(f"{ours}layers.{{}}.attention.{name}.*" for name in ("query", "key", "value"))
    return (
        Rule(f"{theirs}patch_embed.proj.*", f"{ours}patch.*"),
        Rule(f"{theirs}pos_embed", f"{ours}positions", "squeeze_first"),
        Split(f"{theirs}blocks.{{}}.attn.qkv.*", qkv),
        *(Rule(f"{theirs}blocks.{{}}.{key}", f"{ours}layers.{{}}.{name}") for key, name in _TIMM_LAYER),
        Rule(f"{theirs}norm.*", f"{ours}norm.*"),
    )


_SIZES = {
    "base": {"dim": 768, "num_layers": 12, "num_heads": 12, "mlp_dim": 3072},
    "large": {"dim": 1024, "num_layers": 24, "num_heads": 16, "mlp_dim": 4096},
    "so400m": {"dim": 1152, "num_layers": 27, "num_heads": 16, "mlp_dim": 4304},
}


def siglip_sizes(name: str) -> dict[str, int]:
    """Arguments of ``SiglipVision`` for a published model of fixed resolution, such as "google/siglip2-so400m-patch14-384".

    Raises:
        ValueError: another kind of name.
    """
    found = re.search(r"siglip2?-(base|large|so400m)-patch(\d+)-(\d+)$", name)
    if not found:
        raise ValueError(f"the vision model is {name!r}; accepted: siglip[2]-({'|'.join(_SIZES)})-patch..-...")
    size, patch_size, image_size = found.groups()
    return {"image_size": int(image_size), "patch_size": int(patch_size), **_SIZES[size]}


class SiglipArguments(TypedDict, total=False):
    """The arguments of ``SiglipSizes``, for the signatures of classes that pass them on."""

    image_size: int
    patch_size: int
    dim: int
    num_layers: int
    num_heads: int
    mlp_dim: int


@dataclass(frozen=True, kw_only=True)
class SiglipSizes:
    """Sizes of a ``SiglipVision``: the arguments that the tokenizers with one share. The defaults are so400m's for 384 pixels.

    Attributes:
        image_size: sides, in pixels, of the images.
        patch_size: sides, in pixels, of a patch; pixels that fill none are dropped.
        dim: width.
        num_layers: layers.
        num_heads: heads of each.
        mlp_dim: width inside the feed-forward parts.
    """

    image_size: int = 384
    patch_size: int = 14
    dim: int = 1152
    num_layers: int = 27
    num_heads: int = 16
    mlp_dim: int = 4304


class SiglipAttention(nn.Module):
    """Attention between all patches."""

    def __init__(self, dim: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Keeps the shape."""
        query, key, value = (
            rearrange(project(x), "b n (h d) -> b h n d", h=self.num_heads) for project in (self.query, self.key, self.value)
        )
        return self.out(rearrange(scaled_dot_product_attention(query, key, value), "b h n d -> b n (h d)"))


class SiglipMLP(nn.Module):
    """Two linear layers with an activation between: SigLIP's is a GELU by its tanh formula."""

    def __init__(self, dim: int, hidden_dim: int, activation: str = "gelu_tanh") -> None:
        super().__init__()
        self.activation = activation_of(activation)
        self.up = nn.Linear(dim, hidden_dim)
        self.down = nn.Linear(hidden_dim, dim)

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """Works on the last axis."""
        return self.down(self.activation(self.up(x)))


class SiglipLayer(nn.Module):
    """Norm, attention, norm, feed-forward; each pair added to what comes in."""

    def __init__(self, dim: int, *, num_heads: int, mlp_dim: int, activation: str = "gelu_tanh") -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim, eps=1e-6)
        self.attention = SiglipAttention(dim, num_heads=num_heads)
        self.mlp_norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = SiglipMLP(dim, mlp_dim, activation)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Keeps the shape."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class SiglipPooling(nn.Module):
    """One vector for an image: a learned query looks at all patches."""

    def __init__(self, dim: int, *, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(1, 1, dim).normal_())
        self.attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = SiglipMLP(dim, mlp_dim)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B D"]:
        """Patches to one vector."""
        pooled = self.attention(self.query.expand(len(x), -1, -1), x, x, need_weights=False)[0]
        return (pooled + self.mlp(self.norm(pooled)))[:, 0]


class SiglipPatches(nn.Module):
    """Patches with learned positions, layers and a norm.

    What reads the states of a layer in between calls the parts itself: ``embed``, then some of ``layers``.

    Args:
        activation: inside the feed-forward parts; see ``ACTIVATIONS``.
        sizes: the arguments of ``SiglipSizes``.
    """

    def __init__(self, *, activation: str = "gelu_tanh", **sizes: Unpack[SiglipArguments]) -> None:
        super().__init__()
        own = SiglipSizes(**sizes)
        self.patch = nn.Conv2d(3, own.dim, own.patch_size, own.patch_size)
        self.positions = nn.Parameter(torch.empty((own.image_size // own.patch_size) ** 2, own.dim).normal_(std=0.02))
        layer = {"num_heads": own.num_heads, "mlp_dim": own.mlp_dim}
        self.layers = nn.ModuleList(SiglipLayer(own.dim, activation=activation, **layer) for _ in range(own.num_layers))
        self.norm = nn.LayerNorm(own.dim, eps=1e-6)

    def embed(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
        """Pixels, normalised, to patches with their positions, row by row."""
        return self.patch(pixels).flatten(2).transpose(1, 2) + self.positions

    def patches(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
        """The patches after all layers and the norm."""
        x = self.embed(pixels)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class SiglipVision(SiglipPatches):
    """As ``SiglipPatches``, and a pooled vector.

    Args:
        sizes: the arguments of ``SiglipSizes``.

    Source: SigLIP (arXiv 2303.15343), SigLIP 2 (arXiv 2502.14786) at fixed resolution.
    """

    def __init__(self, **sizes: Unpack[SiglipArguments]) -> None:
        super().__init__(**sizes)
        own = SiglipSizes(**sizes)
        self.pool = SiglipPooling(own.dim, num_heads=own.num_heads, mlp_dim=own.mlp_dim)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B D"]]:
        """The patches after the norm, and the pooled vector."""
        x = self.patches(pixels)
        return x, self.pool(x)
