"""A decoder whose feed-forward layers are mixtures of experts: a learned router sends each token to a few of them.

Shapes: B batch, L new tokens, N = B * L tokens, D width, E experts, K experts of a token.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import dropout, silu

from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import only
from mmblocks.layers.attention.attend import Prepared
from mmblocks.ops.routed_linear import group_rows, routed_linear
from mmblocks.sequence.masks import Mask, MaskRule
from mmblocks.sequence.positions import PositionScheme, RotaryTable
from mmblocks.sequence.tokens import TokenTable
from mmblocks.trunks.caches.kv_cache import KVCache
from mmblocks.trunks.decoder import Attention, Decoder
from mmblocks.trunks.decoder_layouts import LLAMA_RULES
from mmblocks.trunks.hooks import TrunkHooks
from mmblocks.trunks.llama_config import LLAMA_HARMLESS, llama_config
from mmblocks.trunks.routed.routed_decoder import unfilled


class MixtureOfExperts(nn.Module):
    """Feed-forward layers of which each token goes through those that the router likes best for it.

    A token's result is the sum of its experts' results, weighted by the router's probabilities, which are brought to a sum of one.

    Args:
        dim: D.
        hidden_dim: width inside each expert.
        num_experts: E.
        experts_per_token: K.
    """

    def __init__(self, dim: int, hidden_dim: int, *, num_experts: int, experts_per_token: int) -> None:
        super().__init__()
        self.experts_per_token = experts_per_token
        self.router = nn.Linear(dim, num_experts, bias=False)
        self.gate = nn.ModuleList(nn.Linear(dim, hidden_dim, bias=False) for _ in range(num_experts))
        self.up = nn.ModuleList(nn.Linear(dim, hidden_dim, bias=False) for _ in range(num_experts))
        self.down = nn.ModuleList(nn.Linear(hidden_dim, dim, bias=False) for _ in range(num_experts))

    def forward(self, x: Float[Tensor, "*N D"]) -> tuple[Float[Tensor, "*N D"], Float[Tensor, "*N E"]]:
        """The tokens' results, and the router's probabilities, in float32, for ``load_balance``."""
        rows = x.flatten(0, -2)
        probabilities = self.router(rows).softmax(dim=-1, dtype=torch.float32)
        weights, experts = probabilities.topk(self.experts_per_token, dim=-1)
        weights = (weights / weights.sum(dim=-1, keepdim=True)).to(x.dtype)

        groups = group_rows(experts.flatten(), len(self.gate))
        token = groups.order // self.experts_per_token  # each token stands in K rows
        chosen = rows[token]
        gate, up, down = ([one.get_parameter("weight") for one in maps] for maps in (self.gate, self.up, self.down))
        inner = silu(routed_linear(chosen, groups, gate)) * routed_linear(chosen, groups, up)
        made = routed_linear(inner, groups, down) * weights.flatten()[groups.order, None]
        mixed = torch.zeros_like(rows, dtype=made.dtype).index_add(0, token, made)
        return mixed.view_as(x), probabilities.view(*x.shape[:-1], probabilities.shape[-1])


def load_balance(
    probabilities: Float[Tensor, "B L E"], experts_per_token: int, real: Bool[Tensor, "B L"] | None = None
) -> Float[Tensor, ""]:
    """How unevenly experts are used, as a loss: K where all are used alike, more where not.

    E times the sum over experts of the share of tokens that go to it times the mean probability that it is given. One layer's;
    training adds the mean over layers with a small weight, such as 0.01. Source: Switch Transformer (arXiv 2101.03961), with K
    experts a token as in Mixtral.

    Args:
        probabilities: the router's.
        experts_per_token: K.
        real: False for padding, which is left out.
    """
    num_experts = probabilities.shape[-1]
    counts = torch.ones_like(probabilities[..., :1]) if real is None else real[..., None].to(probabilities.dtype)
    chosen = torch.zeros_like(probabilities).scatter(-1, probabilities.topk(experts_per_token, dim=-1).indices, 1.0)
    total = counts.sum().clamp(min=1)
    shares = ((chosen * counts).flatten(0, -2).sum(0) / total).detach()
    return num_experts * (shares * ((probabilities * counts).flatten(0, -2).sum(0) / total)).sum()


class MoELayer(nn.Module):
    """Pre-norm attention and a mixture of experts, each added to what comes in."""

    def __init__(self, *, attention: Attention, mlp: MixtureOfExperts, dim: int, norm_eps: float, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(dim, eps=norm_eps)
        self.attention = attention
        self.mlp_norm = nn.RMSNorm(dim, eps=norm_eps)
        self.mlp = mlp
        self.dropout = dropout

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        rotary: RotaryTable,
        mask: Prepared,
        routers: dict[int, Tensor],
        cache: KVCache | None,
        layer: int,
    ) -> Float[Tensor, "B L D"]:
        """One layer; notes the router's probabilities under its number."""
        attended = self.attention(self.attention_norm(x), rotary, mask, cache, layer)
        x = x + dropout(attended, self.dropout, self.training)
        mixed, routers[layer] = self.mlp(self.mlp_norm(x))
        return x + dropout(mixed, self.dropout, self.training)


def _mixtral_config(config: Mapping[str, Any]) -> dict[str, Any]:
    arguments = llama_config(config, models=("mixtral",))
    del arguments["qk_norm"]
    only(config, "norm_topk_prob", True)
    return {**arguments, "num_experts": config["num_local_experts"], "experts_per_token": config["num_experts_per_tok"]}


class MoEDecoder(Decoder):
    """A decoder whose feed-forward layers are mixtures of experts.

    Args:
        dim, num_layers, num_heads, mlp_dim, num_kv_heads, head_dim, norm_eps, rope_theta, rope_scaling, dropout, positions: as for
            ``Decoder``; ``mlp_dim`` is that of each expert.
        num_experts: E.
        experts_per_token: K.

    Raises:
        ValueError: for sizes that do not go together.

    Source: Mixtral (arXiv 2401.04088); as in Uni-MoE (arXiv 2405.11273), whose experts begin as copies of a dense model's layers.

    Examples:
        >>> import torch
        >>> from mmblocks import Decoder, TokenTable
        >>> from mmblocks.trunks import MoEDecoder
        >>> dense = Decoder(dim=32, num_layers=1, num_heads=4, mlp_dim=64)
        >>> trunk = MoEDecoder.from_decoder(dense, num_experts=4, experts_per_token=2)  # each expert a copy of the dense layer
        >>> table, embeds = TokenTable.text(1, 5), torch.randn(1, 5, 32)
        >>> torch.allclose(trunk(embeds, table), dense(embeds, table), atol=1e-5)
        True
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "mixtral",
            (
                *(rule for rule in LLAMA_RULES if not any(name in rule.theirs for name in (".mlp.", ".q_norm.", ".k_norm."))),
                Rule("model.layers.{}.block_sparse_moe.gate.weight", "layers.{}.mlp.router.weight"),
                Rule("model.layers.{}.block_sparse_moe.experts.{}.w1.weight", "layers.{}.mlp.gate.{}.weight"),
                Rule("model.layers.{}.block_sparse_moe.experts.{}.w3.weight", "layers.{}.mlp.up.{}.weight"),
                Rule("model.layers.{}.block_sparse_moe.experts.{}.w2.weight", "layers.{}.mlp.down.{}.weight"),
            ),
            ignored=("model.embed_tokens.weight", "lm_head.weight"),
            config=_mixtral_config,
            harmless=LLAMA_HARMLESS,
            otherwise="TransformersTrunk loads most other decoders of transformers",
        ),
    )

    def __init__(
        self,
        *,
        dim: int,
        num_layers: int,
        num_heads: int,
        mlp_dim: int,
        num_experts: int,
        experts_per_token: int = 2,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        norm_eps: float = 1e-5,
        rope_theta: float = 10000.0,
        rope_scaling: dict[str, Any] | None = None,
        qkv_bias: bool = False,
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
        if not 1 <= experts_per_token <= num_experts:
            raise ValueError(f"experts_per_token is {experts_per_token}; accepted: 1 to num_experts, {num_experts}")
        self.experts_per_token = experts_per_token
        self.layers = nn.ModuleList(
            MoELayer(
                attention=Attention(
                    dim=dim,
                    num_heads=num_heads,
                    num_kv_heads=self.num_kv_heads,
                    head_dim=self.head_dim,
                    bias=qkv_bias,
                    norm_eps=None,
                ),
                mlp=MixtureOfExperts(dim, mlp_dim, num_experts=num_experts, experts_per_token=experts_per_token),
                dim=dim,
                norm_eps=norm_eps,
                dropout=dropout,
            )
            for _ in range(num_layers)
        )

    @classmethod
    def from_decoder(cls, decoder: Decoder, *, num_experts: int, experts_per_token: int = 2) -> Self:
        """A trunk that computes what ``decoder`` does, up to rounding: each expert begins as a copy of its feed-forward layer.

        Raises:
            TypeError: another class of trunk, whose layers may compute something else.
            ValueError: a decoder with options that this class does not have, such as norms of heads.
        """
        trunk = unfilled(cls, decoder, num_experts=num_experts, experts_per_token=experts_per_token)
        weights, like = decoder.state_dict(), decoder.norm.weight
        copied = {}
        for name, tensor in trunk.state_dict().items():
            if name.endswith("router.weight"):
                copied[name] = torch.empty(tensor.shape, dtype=like.dtype, device=like.device).normal_(std=0.02)
            else:
                copied[name] = weights[_without_number(name)].clone()
        trunk.load_state_dict(copied, assign=True)
        return trunk.train(decoder.training)

    def forward(
        self,
        embeds: Float[Tensor, "B L D"],
        table: TokenTable,
        cache: KVCache | None = None,
        *,
        mask: Mask | MaskRule | None = None,
        taps: dict[int, Tensor] | None = None,
        hooks: TrunkHooks | None = None,
        routers: dict[int, Tensor] | None = None,
    ) -> Float[Tensor, "B L D"]:
        """As ``Decoder``; ``routers`` is filled with each layer's router probabilities (B, L, E), by the layer's number."""
        return self._run(embeds, table, cache, mask, taps, hooks, {} if routers is None else routers)


def _without_number(name: str) -> str:
    """What a plain decoder calls a weight: ``mlp.up.3.weight`` is its ``mlp.up.weight``."""
    *path, last, tensor = name.split(".")
    return ".".join([*path, tensor]) if last.isdigit() else name
