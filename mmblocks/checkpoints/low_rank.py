"""Low-rank adapters (LoRA) on the linear layers of a finished model: attached, saved apart, merged into the weights.

report = attach_lora(trunk, ("layers.{}.attention.query", "layers.{}.attention.value"), rank=16)
freeze(trunk, train=lora_names(trunk))
...
merge_lora(trunk)      # the trunk is as it was built, with other weights
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import dropout

from mmblocks.checkpoints import patterns
from mmblocks.checkpoints.surgery import Report


class LowRankLinear(nn.Module):
    """A linear layer plus ``alpha / rank * up(down(x))``; ``up`` starts at zero, so that nothing changes at first.

    Args:
        base: the layer.
        rank: width between ``down`` and ``up``.
        alpha: scale, times the rank.
        dropout: on what ``down`` reads, while training.

    Source: LoRA (arXiv 2106.09685).
    """

    def __init__(self, base: nn.Linear, *, rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, rank, bias=False).to(base.weight)
        self.up = nn.Linear(rank, base.out_features, bias=False).to(base.weight)
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        nn.init.zeros_(self.up.weight)
        self.scale = alpha / rank
        self.dropout = dropout

    def forward(self, x: Float[Tensor, "*N C"]) -> Float[Tensor, "*N D"]:
        """Works on the last axis."""
        return self.base(x) + self.scale * self.up(self.down(dropout(x, self.dropout, self.training)))

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The layer with the adapter added to its weight, in float32 before it is rounded."""
        change = self.scale * (self.up.weight.float() @ self.down.weight.float())
        self.base.weight.copy_(self.base.weight.float() + change)
        return self.base


def attach_lora(module: nn.Module, layers: Sequence[str], *, rank: int, alpha: float | None = None, dropout: float = 0.0) -> Report:
    """Puts adapters on linear layers, in place. The outputs stay what they are until the adapters have learned.

    Args:
        module: a model or a part.
        layers: names of linear layers, or patterns as in ``layouts``.
        rank: of the adapters.
        alpha: their scale, times the rank; the rank if None.
        dropout: before the adapters, while training.

    Raises:
        ValueError: a rank below 1, or a pattern that fits no linear layer, or only layers that have an adapter.
    """
    if rank < 1:
        raise ValueError(f"rank is {rank}; accepted: 1 or more")
    adapted = [name for name, part in module.named_modules() if isinstance(part, LowRankLinear)]
    plain = {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and not any(name.startswith(f"{outer}.") for outer in adapted)
    }
    for pattern in layers:
        if not any(patterns.match(pattern, name) is not None for name in plain):
            raise ValueError(f"layers has {pattern!r}; no linear layer of {type(module).__name__} is called so")
    origins = {}
    chosen = {name: part for name, part in plain.items() if any(patterns.match(pattern, name) is not None for pattern in layers)}
    before = dict(module.state_dict(keep_vars=True))
    for name, base in chosen.items():
        module.set_submodule(name, LowRankLinear(base, rank=rank, alpha=rank if alpha is None else alpha, dropout=dropout))
        origins.update({f"{name}.base.{key}": f"{name}.{key}" for key in base.state_dict()})
    after = dict(module.state_dict(keep_vars=True))
    copied = {name: origins.get(name, name) for name in after if origins.get(name, name) in before}
    return Report(copied, {}, {}, tuple(name for name in after if name not in copied), (), (after, before))


def lora_names(module: nn.Module) -> list[str]:
    """Names of the adapters' parameters: to train them alone, or to save them apart."""
    adapters = [name for name, part in module.named_modules() if isinstance(part, LowRankLinear)]
    return [f"{name}.{part}.weight" for name in adapters for part in ("down", "up")]


def merge_lora(module: nn.Module) -> list[str]:
    """Adds every adapter to its layer's weight and takes it away, in place; returns the names of those layers."""
    adapters = {name: part for name, part in module.named_modules() if isinstance(part, LowRankLinear)}
    for name, part in adapters.items():
        module.set_submodule(name, part.merged())
    return list(adapters)
