"""Parts of layers as a user writes them: a recurrence, and a feed-forward part."""

import torch
from torch import nn

from mmblocks.sequence import document_begins
from mmblocks.trunks import Memory, Part


class Average(Part):
    """A gated moving average over the tokens of a document so far."""

    rate: float = 0.5

    def build(self, site):
        return AverageModule(site.dim, self.rate)


class AverageModule(nn.Module):
    static_step = True

    def __init__(self, dim: int, rate: float) -> None:
        super().__init__()
        self.gate, self.value, self.output = (nn.Linear(dim, dim) for _ in range(3))
        self.rate = nn.Parameter(torch.full((dim,), rate))
        self.memory = Memory(state=(dim,))

    def forward(self, x, context, layer):
        begins = document_begins(context.keys)[:, -x.shape[1] :, None]
        padding, values = context.table.is_padding[..., None], self.value(x).float()
        average = torch.zeros_like(values[:, 0]) if context.cache is None else context.cache.states[layer]
        averages = []
        for token in range(x.shape[1]):
            before = average.masked_fill(begins[:, token], 0)
            average = torch.where(padding[:, token], average, before + self.rate * (values[:, token] - before))
            averages.append(average)
        if context.cache is not None:
            context.cache.keep_state(layer, average)
        return self.output(self.gate(x).sigmoid() * torch.stack(averages, dim=1).to(x.dtype))


class Squares(Part):
    """A feed-forward part: ``down(relu(up(x)) ** 2)``. It does not say whether its step can be recorded."""

    hidden_dim: int

    def build(self, site):
        return SquaresModule(site.dim, self.hidden_dim)


class SquaresModule(nn.Module):
    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(dim, hidden_dim), nn.Linear(hidden_dim, dim)

    def forward(self, x, context, layer):
        return self.down(self.up(x).relu().square())
