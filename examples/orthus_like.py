"""An Orthus-like model on real digits: images are continuous latents, which a diffusion head writes one after the other.

1. A small variational autoencoder learns to write a digit as 7 x 7 latents.
2. One decoder with two heads learns both directions: "a handwritten seven" -> the latents of a seven; and, interleaved, the
   latents of a seven -> "seven, then eight" -> the latents of an eight.
3. An independent classifier says what the drawn digits show.

    python examples/orthus_like.py [--out demo]
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

import mmblocks as mm
from mmblocks.segments import Text

from digits import NAMES, Digits, Reader, diversity, load_digits
from fit import DEVICE, fit
from latents import CHANNELS, PLACES, SIZE, latents_of, pixels_of, psnr, train_autoencoder, vary
from pictures import report, show, show_curves

TEXT = mm.ByteTokenizer(specials=("<bos>", "<read>", "<image>", "<image end>"))
IMAGE = mm.VectorBlock(begin=TEXT["<image>"], end=TEXT["<image end>"], size=SIZE, head="latents", input="latents")
NOTHING = [mm.text([TEXT["<bos>"]])]


def build_model(spread: float, dim: int = 128) -> mm.MultimodalModel:
    """``spread`` is the latents' standard deviation; the diffusion head learns them divided by it."""
    return mm.MultimodalModel(
        inputs={
            "text": mm.TextEmbedding(vocab_size=TEXT.vocab_size, dim=dim, init_std=0.5),
            "latents": mm.MLPProjector(in_dim=CHANNELS, dim=dim, num_layers=2),
        },
        trunk=mm.Decoder(dim=dim, num_layers=4, num_heads=4, mlp_dim=344, qk_norm=True, **PLACES),
        outputs={
            "text": mm.LMHead(dim=dim, vocab_size=TEXT.vocab_size),
            "latents": mm.OrthusDiffusionHead(
                dim=dim, token_dim=CHANNELS, width=128, num_blocks=3, repeats=4, num_steps=25, scale=1 / spread
            ),
        },
    )


def drawn(latents: Tensor) -> list:
    """An image that the model learns to begin and to draw."""
    begun = mm.text([IMAGE.begin], target="text")
    return [begun, mm.vectors(latents, input="latents", target="latents"), mm.text([IMAGE.end])]


def told(digit: int) -> list:
    """What the model is told to draw."""
    return [*NOTHING, mm.text(f"a handwritten {NAMES[digit]}")]


def shown(latents: Tensor) -> list:
    """An image that the model is to read."""
    return [*NOTHING, *drawn(latents), mm.text([TEXT["<read>"]])]


def caption(digit: int) -> str:
    """What the model writes about an image before it draws the next digit."""
    return f"{NAMES[digit]}, then {NAMES[(digit + 1) % 10]}"


def train_model(
    vae: mm.VisualTokenizer, train: Digits, generator: torch.Generator, num_steps: int
) -> tuple[mm.MultimodalModel, list[float]]:
    """Some documents show an image, read it and draw the next digit; the others tell what to draw.

    An image that is shown is learned too: drawn from nothing, it is what guidance compares with.
    """
    model = build_model(spread=float(latents_of(vae, train.pixels[::4]).std())).to(DEVICE)
    builder = model.batch_builder(TEXT)
    of_digit = [(train.labels == digit).nonzero()[:, 0] for digit in range(10)]

    def next_loss(step: int) -> Tensor:
        labels = torch.randint(10, (21,), generator=generator)
        labels[16:] = (labels[:5] + 1) % 10
        chosen = [int(of_digit[digit][torch.randint(400, (), generator=generator)]) for digit in labels.tolist()]
        images = latents_of(vae, vary(train.pixels[chosen], generator))
        read = [mm.text(caption(digit), target="text") for digit in labels[:5].tolist()]
        samples = [[*shown(images[row]), read[row], *drawn(images[16 + row])] for row in range(5)]
        samples += [[*told(int(labels[row])), *drawn(images[row])] for row in range(5, 16)]
        losses = model(builder(samples, pack=150).to(DEVICE)).losses
        return losses["latents"] + 0.2 * losses["text"]

    return model, fit(model, next_loss, num_steps, lr=2.5e-3, what="model")


def go_on(
    model: mm.MultimodalModel, vae: mm.VisualTokenizer, prompts: list[list], generator: torch.Generator
) -> tuple[list[str], Tensor]:
    """What the model writes and draws behind each prompt, in one generation; black where it draws nothing."""
    written, latents = [""] * len(prompts), torch.zeros(len(prompts), *SIZE, CHANNELS)
    for row, segment in model.generate(
        prompts,
        mm.VectorGrammar(IMAGE, vocab_size=TEXT.vocab_size),
        max_tokens=75,
        sampling=mm.GREEDY,
        guidance=mm.ClassifierFree(scale=3.0, images_only=True),
        unconditional=[NOTHING] * len(prompts),
        tokenizer=TEXT,
        generator=generator,
    ):
        if isinstance(segment, Text):
            written[row] = segment.content
        else:
            latents[row] = segment.values.cpu()
    return written, pixels_of(vae, latents)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    train, held_out = load_digits()
    vae, vae_losses = train_autoencoder(train, generator)
    model, losses = train_model(vae, train, generator, num_steps=1200)
    model.save_pretrained(folder / "orthus_like")

    chance = torch.Generator(DEVICE).manual_seed(0)
    asked = torch.arange(10).repeat_interleave(25)
    _, drawings = go_on(model, vae, [told(digit) for digit in asked.tolist()], chance)
    pixels, labels = held_out.pixels[::5], held_out.labels[::5]
    written, following = go_on(model, vae, [shown(image) for image in latents_of(vae, pixels)], chance)

    show([list(drawings[asked == digit][:16]) for digit in range(10)], folder / "orthus_like_drawn.png", row_names=list(NAMES))
    titles = [written[::13], [""] * len(written[::13])]
    show([list(pixels[::13]), list(following[::13])], folder / "orthus_like_interleaved.png", titles=titles)
    show_curves({"autoencoder": vae_losses, "model: both heads": losses}, folder / "orthus_like_losses.png")
    right = [said == caption(digit) for said, digit in zip(written, labels.tolist(), strict=True)]
    reader = Reader(train)
    figures = {
        "held-out reconstruction PSNR, dB": psnr(pixels_of(vae, latents_of(vae, held_out.pixels)), held_out.pixels),
        "classifier on real held-out digits": reader.score(held_out.pixels, held_out.labels),
        f"{len(asked)} drawn digits read as the digit asked for": reader.score(drawings, asked),
        f"{len(right)} held-out digits named right by the model": sum(right) / len(right),
        f"{len(right)} next digits, drawn behind that text, read as such": reader.score(following, (labels + 1) % 10),
        **{f"{name}, drawn": value for name, value in diversity(drawings, asked).items()},
    }
    report("Orthus-like: text and continuous images", figures, folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for pictures and summary.json")
    main(parser.parse_args().out)
