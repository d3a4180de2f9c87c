"""Mixtures of experts: a learned router sends each token to a few of several feed-forward layers.

Shapes: B batch, L tokens, N tokens (on one or more axes), D width, E experts, K experts of a token.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmblocks.layers.activations import activation_of
from mmblocks.ops.routed_linear import group_rows
from mmblocks.trunks.context import ForwardContext
from mmblocks.trunks.parts.feed_forward import GatedFeedForward, GatedMLP
from mmblocks.trunks.parts.linears import group_by_group
from mmblocks.trunks.parts.part import Part, Site, TrunkPart


class MixtureOfExperts(Part):
    """Gated feed-forward layers of which each token goes through those that the router likes best for it.

    A token's result is the sum of its experts' results, weighted by the router's probabilities.

    Args:
        hidden_dim: width inside each expert.
        num_experts: E.
        experts_per_token: K.
        activation: of the experts' gates; a name of ``layers.activations``.
        normalize: whether a token's K probabilities are brought to a sum of one (Mixtral).
        shared_dim: width inside a feed-forward layer that all tokens go through besides, times a learned gate between 0 and 1
            (Qwen2-MoE); None for none.

    Source: Mixtral (arXiv 2401.04088), Qwen2 (arXiv 2407.10671), Qwen3 (arXiv 2505.09388).

    Examples:
        >>> import torch
        >>> from mmblocks import Decoder, TokenTable
        >>> from mmblocks.trunks import Attention, Layer, MixtureOfExperts, TrunkHooks
        >>> mixture = MixtureOfExperts(hidden_dim=16, num_experts=4, experts_per_token=2)
        >>> trunk = Decoder(dim=32, num_layers=1, layers=Layer(mixer=Attention(num_heads=4), feed_forward=mixture))
        >>> routers = []
        >>> hidden = trunk(torch.randn(1, 5, 32), TokenTable.text(1, 5), hooks=TrunkHooks(routers={0: routers.append}))
        >>> tuple(routers[0].shape)
        (1, 5, 4)
    """

    hidden_dim: int
    num_experts: int
    experts_per_token: int = 2
    activation: str = "silu"
    normalize: bool = True
    shared_dim: int | None = None

    def check(self) -> None:
        """Refuses more experts a token than there are."""
        activation_of(self.activation)
        if not 1 <= self.experts_per_token <= self.num_experts:
            raise ValueError(f"experts_per_token is {self.experts_per_token}; accepted: 1 to num_experts, {self.num_experts}")

    def build(self, site: Site) -> nn.Module:
        """The module."""
        return ExpertMixture(self, site)


class ExpertMixture(TrunkPart):
    """What ``MixtureOfExperts`` describes."""

    static_step = False  # the number of rows of each expert is read on the host

    def __init__(self, parts: MixtureOfExperts, site: Site) -> None:
        super().__init__()
        dim, hidden_dim = site.dim, parts.hidden_dim
        self.experts_per_token, self.normalize = parts.experts_per_token, parts.normalize
        self.activation = activation_of(parts.activation)
        self.router = nn.Linear(dim, parts.num_experts, bias=False)
        self.gate = nn.ModuleList(nn.Linear(dim, hidden_dim, bias=False) for _ in range(parts.num_experts))
        self.up = nn.ModuleList(nn.Linear(dim, hidden_dim, bias=False) for _ in range(parts.num_experts))
        self.down = nn.ModuleList(nn.Linear(hidden_dim, dim, bias=False) for _ in range(parts.num_experts))
        self.shared: nn.Module | None = None
        if parts.shared_dim is not None:
            self.shared = GatedFeedForward(GatedMLP(hidden_dim=parts.shared_dim, activation=parts.activation), dim)
            self.shared_gate = nn.Linear(dim, 1, bias=False)

    def forward(self, x: Float[Tensor, "*N D"], context: ForwardContext, layer: int) -> Float[Tensor, "*N D"]:
        """Token by token; notes the router's probabilities in the context."""
        rows = x.flatten(0, -2)
        probabilities = self.router(rows).softmax(dim=-1, dtype=torch.float32)
        context.routers[layer] = context.in_order(probabilities.view(*x.shape[:-1], probabilities.shape[-1]))
        weights, experts = probabilities.topk(self.experts_per_token, dim=-1)
        if self.normalize:
            weights = weights / weights.sum(dim=-1, keepdim=True)

        groups = group_rows(experts.flatten(), len(self.gate))
        token = groups.order // self.experts_per_token  # each token stands in K rows
        chosen = rows[token]
        gate, up, down = (list(maps) for maps in (self.gate, self.up, self.down))
        inner = self.activation(group_by_group(chosen, groups, gate)) * group_by_group(chosen, groups, up)
        made = group_by_group(inner, groups, down) * weights.to(x.dtype).flatten()[groups.order, None]
        mixed = torch.zeros_like(rows, dtype=made.dtype).index_add(0, token, made).view_as(x)
        return mixed if self.shared is None else mixed + self.shared_gate(x).sigmoid() * self.shared(x, context, layer)


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

    Examples:
        >>> import torch
        >>> from mmblocks.trunks import load_balance
        >>> load_balance(torch.tensor([[[0.7, 0.1, 0.1, 0.1]]]).repeat(1, 8, 1), experts_per_token=1)  # all to one expert
        tensor(2.8000)
    """
    num_experts = probabilities.shape[-1]
    counts = torch.ones_like(probabilities[..., :1]) if real is None else real[..., None].to(probabilities.dtype)
    chosen = torch.zeros_like(probabilities).scatter(-1, probabilities.topk(experts_per_token, dim=-1).indices, 1.0)
    total = counts.sum().clamp(min=1)
    shares = ((chosen * counts).flatten(0, -2).sum(0) / total).detach()
    return num_experts * (shares * ((probabilities * counts).flatten(0, -2).sum(0) / total)).sum()
