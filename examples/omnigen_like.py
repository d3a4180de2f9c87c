"""An OmniGen-like model on real digits: a flow inside the trunk turns noise into an image, told by text and shown an image.

It is shown a digit and told "thicker", "thinner" or "fainter". One decoder reads both, and in each step the time and all of the
image that is made: there is no other network. ``emu2_like.py`` does the same by regression.

    python examples/omnigen_like.py [--out demo]
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

import mmblocks as mm

from digits import Digits, Reader, load_digits
from emu2_like import WORDS, edit
from fit import DEVICE, fit
from latents import CHANNELS, SIZE, latents_of, pixels_of, psnr, train_autoencoder, vary
from pictures import report, show, show_curves

TEXT = mm.ByteTokenizer(specials=("<bos>", "<image end>"))


def build_model(dim: int = 128) -> mm.models.OmniGen:
    sizes = {"channels": CHANNELS, "patch_size": 1, "table_size": SIZE[0], "base_size": SIZE[0]}
    return mm.models.OmniGen(vocab_size=TEXT.vocab_size, dim=dim, num_layers=4, num_heads=4, mlp_dim=344, **sizes)


def told(latents: Tensor, word: str) -> list[Tensor]:
    """An image, and what to do with it."""
    return [torch.tensor([TEXT["<bos>"]]), latents, torch.tensor([TEXT["<image end>"], *word.encode()])]


class Flow:
    """The model and the latents it flows in: channels first, divided by their standard deviation."""

    def __init__(self, vae: mm.tokenizers.VisualTokenizer, spread: float) -> None:
        self.vae, self.spread = vae, spread
        self.model = build_model().to(DEVICE)

    def latents(self, pixels: Tensor) -> list[Tensor]:
        """(N, 3, 28, 28) -> N times (4, 7, 7)."""
        return list((latents_of(self.vae, pixels) / self.spread).permute(0, 3, 1, 2).to(DEVICE))

    def prompts(self, pixels: Tensor, words: list[str]) -> list[list[Tensor]]:
        """What the model is told and shown."""
        return [[part.to(DEVICE) for part in told(image, word)] for image, word in zip(self.latents(pixels), words, strict=True)]

    def train(self, train: Digits, generator: torch.Generator, num_steps: int) -> list[float]:
        """The velocity from noise to the image asked for, at a random time."""

        def next_loss(step: int) -> Tensor:
            pixels = vary(train.pixels[torch.randint(len(train.labels), (12,), generator=generator)], generator)
            words = [WORDS[row % 3] for row in range(12)]
            edited = torch.cat([edit(image[None], word) for image, word in zip(pixels, words, strict=True)])
            return self.model.loss(self.prompts(pixels, words), self.latents(edited)).mean()

        return fit(self.model, next_loss, num_steps, lr=2e-3, what="model")

    def change(self, pixels: Tensor, word: str, num_steps: int) -> Tensor:
        """Each image as the word says, from noise."""
        prompts = self.prompts(pixels, [word] * len(pixels))
        generator = torch.Generator(DEVICE).manual_seed(0)
        made = self.model.sample(prompts, sizes=[SIZE] * len(prompts), num_steps=num_steps, generator=generator)
        return pixels_of(self.vae, torch.stack(made).permute(0, 2, 3, 1) * self.spread)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    train, held_out = load_digits()
    vae, vae_losses = train_autoencoder(train, generator)
    flow = Flow(vae, float(latents_of(vae, train.pixels[::4]).std()))
    losses = flow.train(train, generator, num_steps=200)
    flow.model.save_pretrained(folder / "omnigen_like")

    pixels, labels = held_out.pixels[::10], held_out.labels[::10]
    reader = Reader(train)
    figures: dict[str, object] = {}
    rows = [list(pixels[::7])]
    for word in WORDS:
        wanted, made = edit(pixels, word), flow.change(pixels, word, num_steps=10)
        rows += [list(made[::7])]
        figures[f"{word}: PSNR of {len(made)} held-out digits, dB"] = psnr(made, wanted)
        figures[f"{word}: PSNR where nothing is done"] = psnr(pixels, wanted)
        figures[f"{word}: still read as the same digit"] = reader.score(made, labels)
        figures[f"{word}: the true image, read so"] = reader.score(wanted, labels)
    show(rows, folder / "omnigen_like.png", row_names=["held out", *WORDS])
    show_curves({"autoencoder": vae_losses, "model: squared error of velocities": losses}, folder / "omnigen_like_losses.png")
    report("OmniGen-like: a flow in the trunk", figures, folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for pictures and summary.json")
    main(parser.parse_args().out)
