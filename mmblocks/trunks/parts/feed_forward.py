"""The feed-forward parts of layers.

Shapes: N tokens (on one or more axes), D width.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import dropout

from mmblocks.layers.activations import activation_of
from mmblocks.trunks.context import ForwardContext
from mmblocks.trunks.parts.linears import Linear
from mmblocks.trunks.parts.part import Part, Site, TrunkPart


class GatedMLP(Part):
    """``down(activation(gate(x)) * up(x))``: SwiGLU, or GeGLU and others.

    Args:
        hidden_dim: width inside.
        activation: of the gate; a name of ``layers.activations``.
        bias: biases on all three maps.
        linear: the maps.

    Source: GLU variants (arXiv 2002.05202), as in Llama.

    Examples:
        >>> from mmblocks.trunks import GatedMLP, Site
        >>> geglu = GatedMLP(hidden_dim=48, activation="gelu_tanh").build(Site(dim=32))
        >>> sum(parameter.numel() for parameter in geglu.parameters()) == 3 * 32 * 48
        True
    """

    hidden_dim: int
    activation: str = "silu"
    bias: bool = False
    linear: Linear = Linear()

    def check(self) -> None:
        """Refuses activations that have no name here."""
        activation_of(self.activation)

    def build(self, site: Site) -> nn.Module:
        """The module."""
        return GatedFeedForward(self, site.dim)


class MLP(Part):
    """``down(activation(up(x)))``.

    Args:
        hidden_dim: width inside.
        activation: between the maps; a name of ``layers.activations``.
        bias: biases on both maps.
        dropout: on what is between the maps and on what they give, while training (ViT).
        linear: the maps.

    Examples:
        >>> from mmblocks.trunks import MLP, Site
        >>> mlp = MLP(hidden_dim=48, bias=False).build(Site(dim=32))
        >>> sum(parameter.numel() for parameter in mlp.parameters()) == 2 * 32 * 48
        True
    """

    hidden_dim: int
    activation: str = "gelu_tanh"
    bias: bool = True
    dropout: float = 0.0
    linear: Linear = Linear()

    def check(self) -> None:
        """Refuses activations that have no name here, and dropout out of range."""
        activation_of(self.activation)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; accepted: 0 or more, below 1")

    def build(self, site: Site) -> nn.Module:
        """The module."""
        return FeedForward(self, site.dim)


class GatedFeedForward(TrunkPart):
    """What ``GatedMLP`` describes."""

    def __init__(self, parts: GatedMLP, dim: int) -> None:
        super().__init__()
        self.gate = parts.linear.build("gate", dim, parts.hidden_dim, parts.bias)
        self.up = parts.linear.build("up", dim, parts.hidden_dim, parts.bias)
        self.down = parts.linear.build("down", parts.hidden_dim, dim, parts.bias)
        self.activation = activation_of(parts.activation)

    def forward(self, x: Float[Tensor, "*N D"], context: ForwardContext, layer: int) -> Float[Tensor, "*N D"]:
        """Token by token."""
        inner = self.activation(context.apply(self.gate, x)) * context.apply(self.up, x)
        return context.apply(self.down, inner)


class FeedForward(TrunkPart):
    """What ``MLP`` describes."""

    def __init__(self, parts: MLP, dim: int) -> None:
        super().__init__()
        self.up = parts.linear.build("up", dim, parts.hidden_dim, parts.bias)
        self.down = parts.linear.build("down", parts.hidden_dim, dim, parts.bias)
        self.activation, self.dropout = activation_of(parts.activation), parts.dropout

    def forward(self, x: Float[Tensor, "*N D"], context: ForwardContext, layer: int) -> Float[Tensor, "*N D"]:
        """Token by token."""
        inner = self.activation(context.apply(self.up, x))
        if not (self.training and self.dropout):
            return context.apply(self.down, inner)
        return dropout(context.apply(self.down, dropout(inner, self.dropout)), self.dropout)
