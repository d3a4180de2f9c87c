"""An Emu2-like model on real digits: it regresses the embeddings of an image, one after the other, and a decoder shows them.

It is shown a digit and told "thicker", "thinner" or "fainter", and draws the same digit so. Regression gives one answer, the mean
of what may come: it fits where the answer is determined, as here, and blurs where it is not (``orthus_like.py`` draws instead).

    python examples/emu2_like.py [--out demo]
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d

import mmblocks as mm

from digits import Digits, Reader, load_digits
from fit import DEVICE, fit
from latents import CHANNELS, PLACES, SIZE, latents_of, pixels_of, psnr, train_autoencoder, vary
from pictures import report, show, show_curves

TEXT = mm.ByteTokenizer(specials=("<bos>", "<image>", "<image end>"))
IMAGE = mm.generation.VectorBlock(begin=TEXT["<image>"], end=None, size=SIZE, head="embeddings", input="embeddings")
WORDS = ("thicker", "thinner", "fainter")


def edit(pixels: Tensor, word: str) -> Tensor:
    """What the words mean: thicker lines, thinner lines, or half the brightness."""
    if word == "thicker":
        return max_pool2d(pixels, 3, stride=1, padding=1)
    if word == "thinner":
        return (pixels - 1 + avg_pool2d(pixels, 3, stride=1, padding=1)).clamp(min=0) ** 0.5
    return pixels * 0.5


def build_model(dim: int = 128) -> mm.MultimodalModel:
    return mm.MultimodalModel(
        inputs={
            "text": mm.TextEmbedding(vocab_size=TEXT.vocab_size, dim=dim, init_std=0.5),
            "embeddings": mm.connectors.MLPProjector(in_dim=CHANNELS, dim=dim, num_layers=2),
        },
        trunk=mm.Decoder(dim=dim, num_layers=4, num_heads=4, mlp_dim=344, qk_norm=True, **PLACES),
        outputs={"embeddings": mm.heads.RegressionHead(dim=dim, target_dim=CHANNELS, bias=True)},
    )


def told(embeddings: Tensor, word: str) -> list:
    """An image, and what to do with it."""
    shown = mm.vectors(embeddings, input="embeddings")
    return [mm.text([TEXT["<bos>"], IMAGE.begin]), shown, mm.text([TEXT["<image end>"]]), mm.text(word), mm.text([IMAGE.begin])]


def train_model(
    vae: mm.tokenizers.VisualTokenizer, train: Digits, generator: torch.Generator, num_steps: int
) -> tuple[mm.MultimodalModel, list[float]]:
    """Teacher-forced: each embedding is predicted from the true ones before it."""
    model = build_model().to(DEVICE)
    builder = model.batch_builder(TEXT)

    def next_loss(step: int) -> Tensor:
        pixels = vary(train.pixels[torch.randint(len(train.labels), (12,), generator=generator)], generator)
        words = [WORDS[row % 3] for row in range(12)]
        edited = torch.stack([edit(image[None], word)[0] for image, word in zip(pixels, words, strict=True)])
        before, after = latents_of(vae, torch.cat([pixels, edited])).chunk(2)
        learned = [mm.vectors(image, input="embeddings", target="embeddings") for image in after]
        samples = [[*told(image, word), target] for image, word, target in zip(before, words, learned, strict=True)]
        return model(builder(samples).to(DEVICE)).losses["embeddings"]

    return model, fit(model, next_loss, num_steps, lr=2e-3, what="model")


def change(model: mm.MultimodalModel, vae: mm.tokenizers.VisualTokenizer, pixels: Tensor, word: str) -> Tensor:
    """Each image as the word says; nothing is random."""
    prompts = [told(image, word) for image in latents_of(vae, pixels)]
    grammar = mm.generation.VectorGrammar(IMAGE, vocab_size=TEXT.vocab_size)
    generated = dict(model.generate(prompts, grammar, tokenizer=TEXT))
    return pixels_of(vae, torch.stack([generated[row].values for row in range(len(prompts))]))


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    train, held_out = load_digits()
    vae, vae_losses = train_autoencoder(train, generator)
    model, losses = train_model(vae, train, generator, num_steps=200)
    model.save_pretrained(folder / "emu2_like")

    pixels, labels = held_out.pixels[::10], held_out.labels[::10]
    reader = Reader(train)
    figures: dict[str, object] = {}
    rows = [list(pixels[::7])]
    for word in WORDS:
        wanted, made = edit(pixels, word), change(model, vae, pixels, word)
        rows += [list(made[::7])]
        figures[f"{word}: PSNR of {len(made)} held-out digits, dB"] = psnr(made, wanted)
        figures[f"{word}: PSNR of the decoder alone, from true embeddings"] = psnr(pixels_of(vae, latents_of(vae, wanted)), wanted)
        figures[f"{word}: PSNR where nothing is done"] = psnr(pixels, wanted)
        figures[f"{word}: still read as the same digit"] = reader.score(made, labels)
        figures[f"{word}: the true image, read so"] = reader.score(wanted, labels)
    show(rows, folder / "emu2_like.png", row_names=["held out", *WORDS])
    show_curves({"autoencoder": vae_losses, "model: squared error of embeddings": losses}, folder / "emu2_like_losses.png")
    report("Emu2-like: regressed embeddings", figures, folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for pictures and summary.json")
    main(parser.parse_args().out)
