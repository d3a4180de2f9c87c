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


class ColourNamer(nn.Module):
    """Patches and a noun in, the name of a colour out."""

    def __init__(self) -> None:
        super().__init__()
        self.noun = mm.TextEmbedding(vocab_size=NUM_COLOURS, dim=DIM, init_std=1.0)
        self.patch = nn.Linear(3, DIM)
        self.trunk = mm.Decoder(dim=DIM, num_layers=NUM_LAYERS, num_heads=8, mlp_dim=128)
        self.name = nn.Linear(DIM, NUM_COLOURS)

    def forward(self, nouns: Tensor, patches: Tensor | None, hooks: mm.TrunkHooks | None = None) -> Tensor:
        """Logits of the colours, from the last token."""
        words = self.noun(nouns)[:, None]
        embeds = words if patches is None else torch.cat([self.patch(patches), words], dim=1)
        return self.name(self.trunk(embeds, mm.TokenTable.text(*embeds.shape[:2]), hooks=hooks)[:, -1])


def make_things(count: int, share_usual: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Nouns, the colours they come in (noun n is usually of colour n), and four noisy patches of each."""
    palette = torch.rand(NUM_COLOURS, 3, generator=torch.Generator().manual_seed(0))
    nouns, colours = torch.randint(NUM_COLOURS, (2, count), generator=generator)
    colours = torch.where(torch.rand(count, generator=generator) < share_usual, nouns, colours)
    return nouns, colours, palette[colours][:, None] + 0.15 * torch.randn(count, 4, 3, generator=generator)


def train(model: ColourNamer, num_steps: int, generator: torch.Generator) -> None:
    """Every fourth batch has no images: there the usual colour is right."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(num_steps):
        nouns, colours, patches = make_things(128, 0.95, generator)
        blind = step % 4 == 0
        loss = cross_entropy(model(nouns, None if blind else patches), nouns if blind else colours)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def last_token(model: ColourNamer, nouns: Tensor, patches: Tensor | None) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """What the last token's hidden states (B, D) behind each layer are, and what the heads (B, H, V) of each layer found."""
    states, heads = {}, {}
    hidden = {n: partial(lambda n, x: states.update({n: x[:, -1]}), n) for n in range(1, NUM_LAYERS + 1)}
    found = {n: partial(lambda n, x: heads.update({n: x[:, :, -1]}), n) for n in range(NUM_LAYERS)}
    model(nouns, patches, mm.TrunkHooks(hidden=hidden, heads=found))
    return states, heads


def vista(seeing: dict[int, Tensor], blind: dict[int, Tensor], strength: float = 0.5) -> mm.TrunkHooks:
    """Steering of every layer, from states with and without the image. The method's early-layer logits are left out."""

    def steer(direction: Tensor, x: Tensor) -> Tensor:
        pushed = normalize(x, dim=-1) + strength * normalize(direction, dim=-1)[:, None]
        return normalize(pushed, dim=-1) * x.norm(dim=-1, keepdim=True)

    return mm.TrunkHooks(hidden={n: partial(steer, seeing[n] - blind[n]) for n in seeing})


def vhr(seeing: dict[int, Tensor], blind: dict[int, Tensor], factor: float = 2.0) -> mm.TrunkHooks:
    """Reinforcement of heads in the later half of the layers, from what heads found with and without the image."""

    def reinforce(divergence: Tensor, found: Tensor) -> Tensor:
        aware = divergence >= divergence.median(dim=1, keepdim=True).values
        return found * torch.where(aware, factor, 1.0)[:, :, None, None]

    later = list(seeing)[len(seeing) // 2 :]
    return mm.TrunkHooks(heads={n: partial(reinforce, (seeing[n] - blind[n]).norm(dim=-1)) for n in later})


@torch.no_grad()
def compare(model: ColourNamer, generator: torch.Generator) -> dict[str, tuple[float, float]]:
    """Shares of things of unusual colour whose colour is named, and whose usual colour is named instead."""
    nouns, colours, patches = make_things(2000, 0.0, generator)
    nouns, colours, patches = (column[nouns != colours] for column in (nouns, colours, patches))
    (states, heads), (states_blind, heads_blind) = (last_token(model, nouns, seen) for seen in (patches, None))
    ways = {"as it is": None, "VISTA": vista(states, states_blind), "VHR": vhr(heads, heads_blind)}
    said = {way: model(nouns, patches, hooks).argmax(dim=-1) for way, hooks in ways.items()}
    return {way: tuple((name == truth).float().mean().item() for truth in (colours, nouns)) for way, name in said.items()}


if __name__ == "__main__":
    torch.manual_seed(0)
    model, generator = ColourNamer(), torch.Generator().manual_seed(0)
    train(model, 100, generator)
    for way, (right, prior) in compare(model.eval(), generator).items():
        print(f"{way:9} names the colour it sees {right:6.1%}, the usual one {prior:6.1%}")
