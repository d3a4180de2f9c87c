"""Feed-forward layers of transformer trunks."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu


class SwiGLU(nn.Module):
    """``down(silu(gate(x)) * up(x))``, without biases. Source: GLU variants (arXiv 2002.05202), as in Llama.

    Args:
        dim: width of input and output.
        hidden_dim: width between.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden_dim, bias=False)
        self.up = nn.Linear(dim, hidden_dim, bias=False)
        self.down = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """Works on the last axis."""
        return self.down(silu(self.gate(x)) * self.up(x))
