"""An Orthus-like model on real digits: images are continuous latents, which a diffusion head writes one after the other.

1. A small variational autoencoder learns to write a digit as 7 x 7 latents.
2. One decoder with two heads learns both directions: "seven" -> the latents of a seven; and, interleaved, the latents of a seven ->
   "seven, then eight" -> the latents of an eight. What it reads while it learns is noisy, as what it draws will be.
3. An independent classifier says what the drawn digits show.

    python examples/orthus_like.py [--out demo]
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import mmblocks as mm
from mmblocks.sequence.segments import Text

from digits import NAMES, Digits, Reader, augment, diversity, load_digits
from fit import DEVICE, fit
from latents import CHANNELS, PLACES, SIZE, latents_of, pixels_of, psnr, train_autoencoder, vary
from pictures import report, show, show_curves

TEXT = mm.ByteTokenizer(specials=("<bos>", "<read>", "<image>", "<image end>"))
IMAGE = mm.generation.VectorBlock(begin=TEXT["<image>"], end=TEXT["<image end>"], size=SIZE, head="latents", input="latents")
NOTHING = [mm.text([TEXT["<bos>"]])]
GRAMMAR = mm.generation.VectorGrammar(IMAGE, vocab_size=TEXT.vocab_size)
GUIDANCE = mm.generation.ClassifierFree(scale=3.0, images_only=True)


def build_model(spread: float, dim: int = 128) -> mm.MultimodalModel:
    """``spread`` is the latents' standard deviation; the diffusion head learns them divided by it."""
    head = {"width": 128, "num_blocks": 3, "repeats": 4, "num_steps": 25, "scale": 1 / spread}
    return mm.MultimodalModel(
        inputs={
            "text": mm.TextEmbedding(vocab_size=TEXT.vocab_size, dim=dim, init_std=0.5),
            "latents": mm.connectors.MLPProjector(in_dim=CHANNELS, dim=dim, num_layers=2),
        },
        trunk=mm.Decoder(dim=dim, num_layers=4, num_heads=4, mlp_dim=344, qk_norm=True, **PLACES),
        outputs={
            "text": mm.LMHead(dim=dim, vocab_size=TEXT.vocab_size),
            "latents": mm.heads.OrthusDiffusionHead(dim=dim, token_dim=CHANNELS, **head),
        },
    )


def drawn(latents: Tensor) -> list:
    """An image that the model learns to begin and to draw."""
    begun = mm.text([IMAGE.begin], target="text")
    return [begun, mm.vectors(latents, input="latents", target="latents"), mm.text([IMAGE.end])]


def told(digit: int) -> list:
    """What the model is told to draw. After an image it reads the same word: what it learns of one it knows of the other."""
    return [*NOTHING, mm.text(NAMES[digit])]


def shown(latents: Tensor) -> list:
    """An image that the model is to read."""
    image = [mm.text([IMAGE.begin]), mm.vectors(latents, input="latents"), mm.text([IMAGE.end])]
    return [*NOTHING, *image, mm.text([TEXT["<read>"]])]


def caption(digit: int) -> str:
    """What the model writes about an image before it draws the next digit."""
    return f"{NAMES[digit]}, then {NAMES[(digit + 1) % 10]}"


def train_model(vae: mm.tokenizers.VisualTokenizer, train: Digits, generator: torch.Generator, num_steps: int) -> tuple:
    """Each step reads 14 images, draws the next digit after 8 of them, 6 as told, and 2 from nothing, for guidance."""
    spread = float(latents_of(vae, train.pixels[::4]).std())
    model = build_model(spread).to(DEVICE)
    of_digit = [(train.labels == digit).nonzero()[:, 0] for digit in range(10)]

    def images(digits: Tensor, change: Callable[[Tensor, torch.Generator], Tensor]) -> Tensor:
        chosen = [int(of_digit[digit][torch.randint(400, (), generator=generator)]) for digit in digits.tolist()]
        return latents_of(vae, change(train.pixels[chosen], generator))

    def next_loss(step: int) -> Tensor:
        digits = torch.randint(10, (22,), generator=generator)
        read = images(digits[:14], partial(augment, degrees=8, stretch=0.1, shift=1.5))
        learned = images(torch.cat([(digits[:8] + 1) % 10, digits[14:]]), vary)
        names = [mm.text(caption(digit), target="text") for digit in digits[:14].tolist()]
        samples = [[*shown(image), name] for image, name in zip(read, names, strict=True)]
        samples += [*(told(digit) for digit in digits[14:20].tolist()), NOTHING, NOTHING]
        for row, image in zip([*range(8), *range(14, 22)], learned, strict=True):
            samples[row] = [*samples[row], *drawn(image)]
        batch = model.batch_builder(TEXT)(samples, pack=130)
        clean = batch.inputs["latents"]
        noise = 0.25 * spread * torch.randn(clean.values.shape, generator=generator)
        batch.inputs["latents"] = clean._replace(values=clean.values + noise)
        losses = model(batch.to(DEVICE)).losses
        return losses["latents"] + 0.5 * losses["text"]

    return model, fit(model, next_loss, num_steps, lr=2.5e-3, what="model")


def go_on(
    model: mm.MultimodalModel, vae: mm.tokenizers.VisualTokenizer, prompts: list[list], generator: torch.Generator
) -> tuple[list[str], Tensor]:
    """What the model writes and draws after each prompt, in one generation; black where it draws nothing."""
    written, latents = [""] * len(prompts), torch.zeros(len(prompts), *SIZE, CHANNELS)
    options = mm.Generation(max_tokens=75, sampling=mm.GREEDY, guidance=GUIDANCE, generator=generator)
    for row, segment in model.generate(prompts, GRAMMAR, options, unconditional=[NOTHING] * len(prompts), tokenizer=TEXT):
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
    model, losses = train_model(vae, train, generator, num_steps=800)
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
        f"{len(right)} next digits, drawn after that text, read as such": reader.score(following, (labels + 1) % 10),
        **{f"{name}, drawn": value for name, value in diversity(drawings, asked).items()},
    }
    report("Orthus-like: text and continuous images", figures, folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for pictures and summary.json")
    main(parser.parse_args().out)
