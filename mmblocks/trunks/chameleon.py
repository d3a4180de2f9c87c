"""Chameleon's trunk: a Llama whose queries and keys go through a layer norm, with a scale and a shift for every head.

Shapes: B batch, L tokens, D width, H heads, E width of a head.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import dropout, layer_norm

from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import only
from mmblocks.layers.attention.attend import Prepared
from mmblocks.sequence.positions import PositionScheme, RotaryTable
from mmblocks.trunks.caches.kv_cache import KVCache
from mmblocks.trunks.decoder import Attention, Decoder, DecoderLayer
from mmblocks.trunks.decoder_layouts import INVERSE_FREQUENCIES, LLAMA_RULES, NOT_THE_TRUNK
from mmblocks.trunks.llama_config import LLAMA_HARMLESS, llama_config
from mmblocks.trunks.llama_published import published_llama

HEAD_NORM_EPS = 1e-5


class HeadLayerNorm(nn.Module):
    """Layer norm of every head by itself, each with its own scale and shift.

    Args:
        num_heads, head_dim: H and E.
    """

    def __init__(self, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_heads, head_dim))
        self.bias = nn.Parameter(torch.zeros(num_heads, head_dim))

    def forward(self, x: Float[Tensor, "B H L E"]) -> Float[Tensor, "B H L E"]:
        """Heads before tokens."""
        return layer_norm(x, x.shape[-1:], eps=HEAD_NORM_EPS) * self.weight[:, None] + self.bias[:, None]


class PostNormLayer(DecoderLayer):
    """Attention and feed-forward, each normed after itself and then added: the layer of Chameleon 34B ("swin norm")."""

    def forward(
        self, x: Float[Tensor, "B L D"], rotary: RotaryTable, mask: Prepared, cache: KVCache | None, layer: int
    ) -> Float[Tensor, "B L D"]:
        """One layer."""
        attended = self.attention_norm(self.attention(x, rotary, mask, cache, layer))
        x = x + dropout(attended, self.dropout, self.training)
        return x + dropout(self.mlp_norm(self.mlp(x)), self.dropout, self.training)


def chameleon_config(config: Mapping[str, Any], *, models: tuple[str, ...] = ("chameleon", "chameleon_xllmx")) -> dict[str, Any]:
    """Chameleon's transformers config as ``ChameleonTrunk`` arguments, or that of a model of another name that was built on it."""
    arguments = llama_config(config, models=models)
    only(config, "qk_layernorm", True)
    del arguments["qk_norm"]
    return {**arguments, "post_norm": config.get("swin_norm", False)}


def published_chameleon(arguments: Mapping[str, Any], *, architecture: str = "ChameleonForConditionalGeneration") -> dict[str, Any]:
    """The way back; of a whole model too."""
    config = published_llama(arguments, model_type="chameleon", architecture=architecture)
    return {**config, "swin_norm": arguments["post_norm"]}


CHAMELEON_HARMLESS = (
    *LLAMA_HARMLESS,
    # the tokenizer of images and its ids; how files were cut in training, which their norms of heads tell; of training
    *("vq_config.*", "vocabulary_map.*", "image_token_id", "boi_token_id", "eoi_token_id"),
    *("model_parallel_size", "z_loss_weight"),
)
"""Entries of Chameleon's config that say nothing about its trunk."""

CHAMELEON_RULES = (
    *(rule for rule in LLAMA_RULES if "q_norm" not in rule.theirs and "k_norm" not in rule.theirs),
    Rule("model.layers.{}.self_attn.q_norm.*", "layers.{}.attention.query_norm.*"),
    Rule("model.layers.{}.self_attn.k_norm.*", "layers.{}.attention.key_norm.*"),
)
"""Keys of Chameleon -> ``ChameleonTrunk``."""


class ChameleonTrunk(Decoder):
    """The trunk of Chameleon, and of what was built on it: Anole, Lumina-mGPT, Orthus.

    Args:
        dim, num_layers, num_heads, mlp_dim, num_kv_heads, head_dim, norm_eps, rope_theta, rope_scaling, dropout, positions: as
            for ``Decoder``.
        post_norm: whether the norms of a layer stand after attention and feed-forward (34B) and not before (7B).

    Source: Chameleon (arXiv 2405.09818; facebookresearch/chameleon).
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "chameleon",
            CHAMELEON_RULES,
            ignored=(*NOT_THE_TRUNK, "model.vqmodel.*"),
            config=chameleon_config,
            published_config=published_chameleon,
            derived=(INVERSE_FREQUENCIES,),
            harmless=(*CHAMELEON_HARMLESS, "mask_image_logits"),
        ),
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
        post_norm: bool = False,
        dropout: float = 0.0,
        positions: PositionScheme | None = None,
    ) -> None:
        # No layers of Decoder's own: this class's stand in their place below.
        super().__init__(
            dim=dim,
            num_layers=0,
            num_heads=num_heads,
            mlp_dim=mlp_dim,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            norm_eps=norm_eps,
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            dropout=dropout,
            positions=positions,
        )
        layer = PostNormLayer if post_norm else DecoderLayer
        self.layers = nn.ModuleList(
            layer(attention=self._attention(num_heads), dim=dim, mlp_dim=mlp_dim, norm_eps=norm_eps, dropout=dropout)
            for _ in range(num_layers)
        )

    def _attention(self, num_heads: int) -> Attention:
        attention = Attention(
            dim=self.dim, num_heads=num_heads, num_kv_heads=self.num_kv_heads, head_dim=self.head_dim, bias=False, norm_eps=None
        )
        attention.query_norm = HeadLayerNorm(num_heads, self.head_dim)
        attention.key_norm = HeadLayerNorm(self.num_kv_heads, self.head_dim)
        return attention
