"""A model that believes its prior more than its eyes, and two published ways to make it look, without training.

It is told what a thing is, sees patches of it, and names their colour. While it learns, 95 of 100 things have the colour that
such things usually have. Then it sees things of other colours, as it is and with

- VISTA (arXiv 2502.03628): hidden states are pushed along what the image changed in them, and keep their lengths;
- VHR (arXiv 2412.13949): in the later layers the half of the heads that the image changed most counts twice.

    python examples/steering.py
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

import mmblocks as mm

NUM_COLOURS, DIM, NUM_LAYERS = 8, 64, 4
PALETTE = torch.rand(NUM_COLOURS, 3, generator=torch.Generator().manual_seed(0))


class ColourNamer(nn.Module):
    """Patches and a noun in, the name of a colour out."""

    def __init__(self) -> None:
        super().__init__()
        self.noun = mm.TextEmbedding(vocab_size=NUM_COLOURS, dim=DIM, init_std=1.0)
        self.patch = nn.Linear(3, DIM)
        self.trunk = mm.Decoder(dim=DIM, num_layers=NUM_LAYERS, num_heads=8, mlp_dim=128)
        self.name = nn.Linear(DIM, NUM_COLOURS)

    def forward(self, nouns: Tensor, patches: Tensor | None, hooks: mm.trunks.TrunkHooks | None = None) -> Tensor:
        """Logits of the colours, from the last token."""
        words = self.noun(nouns)[:, None]
        embeds = words if patches is None else torch.cat([self.patch(patches), words], dim=1)
        return self.name(self.trunk(embeds, mm.TokenTable.text(*embeds.shape[:2]), hooks=hooks)[:, -1])


def make_things(count: int, share_usual: float) -> tuple[Tensor, Tensor, Tensor]:
    """Nouns, the colours they come in (noun n is usually of colour n), and four noisy patches of each."""
    nouns, others = torch.randint(NUM_COLOURS, (2, count))
    colours = torch.where(torch.rand(count) < share_usual, nouns, others)
    return nouns, colours, PALETTE[colours][:, None] + 0.15 * torch.randn(count, 4, 3)


def train(model: ColourNamer, num_steps: int) -> None:
    """With images, and without, where the usual colour is right."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(num_steps):
        nouns, colours, patches = make_things(128, 0.95)
        (cross_entropy(model(nouns, patches), colours) + cross_entropy(model(nouns, None), nouns)).backward()
        optimizer.step()
        optimizer.zero_grad()


def look(model: ColourNamer, nouns: Tensor, patches: Tensor | None) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """The hidden states (B, L, D) after each layer, and what the heads (B, H, L, V) of each layer found."""
    states, heads = {}, {}
    hidden = {n: partial(states.__setitem__, n) for n in range(1, NUM_LAYERS + 1)}
    model(nouns, patches, mm.trunks.TrunkHooks(hidden=hidden, heads={n: partial(heads.__setitem__, n) for n in range(NUM_LAYERS)}))
    return states, heads


def vista(seeing: dict[int, Tensor], blind: dict[int, Tensor], strength: float = 0.5) -> mm.trunks.TrunkHooks:
    """Steering of every layer, from states with and without the image. The method's early-layer logits are left out."""

    def steer(direction: Tensor, x: Tensor) -> Tensor:
        return normalize(normalize(x, dim=-1) + strength * direction, dim=-1) * x.norm(dim=-1, keepdim=True)

    return mm.trunks.TrunkHooks(hidden={n: partial(steer, normalize(seeing[n][:, -1:] - blind[n][:, -1:], dim=-1)) for n in seeing})


def vhr(seeing: dict[int, Tensor], blind: dict[int, Tensor], factor: float = 2.0) -> mm.trunks.TrunkHooks:
    """Reinforcement of heads in the later half of the layers, from what they found with and without the image."""

    def reinforce(divergence: Tensor, found: Tensor) -> Tensor:
        return found * torch.where(divergence > divergence.median(dim=1, keepdim=True).values, factor, 1.0)[..., None, None]

    changes = {n: (seeing[n][:, :, -1] - blind[n][:, :, -1]).norm(dim=-1) for n in seeing if n >= len(seeing) // 2}
    return mm.trunks.TrunkHooks(heads={n: partial(reinforce, change) for n, change in changes.items()})


@torch.no_grad()
def compare(model: ColourNamer) -> dict[str, tuple[float, float]]:
    """Shares of things of unusual colour whose colour is named, and whose usual colour is named instead."""
    nouns, colours, patches = make_things(2000, 0.0)
    nouns, colours, patches = (column[nouns != colours] for column in (nouns, colours, patches))
    (states, heads), (states_blind, heads_blind) = (look(model, nouns, seen) for seen in (patches, None))
    ways = {"as it is": None, "VISTA": vista(states, states_blind), "VHR": vhr(heads, heads_blind)}
    said = {way: model(nouns, patches, hooks).argmax(dim=-1) for way, hooks in ways.items()}
    return {way: tuple((name == truth).float().mean().item() for truth in (colours, nouns)) for way, name in said.items()}


if __name__ == "__main__":
    torch.manual_seed(0)
    train(model := ColourNamer(), 100)
    for way, (right, prior) in compare(model.eval()).items():
        print(f"{way:9} names the colour it sees {right:6.1%}, the usual one {prior:6.1%}")
