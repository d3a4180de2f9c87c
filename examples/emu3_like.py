"""An Emu3-like model on real digits: one trunk reads text and writes images as tokens of one vocabulary.

1. A VQ tokenizer learns to write a digit as 7 x 7 codes.
2. A decoder learns "a handwritten seven" -> the codes of a seven, next token by next token.
3. Prompts become images; an independent classifier says what they show.

    python examples/emu3_like.py [--out demo]
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

import mmblocks as mm

from digits import NAMES, Digits, Reader, augment, diversity, load_digits
from fit import DEVICE, fit
from pictures import report, show, show_curves

TEXT = mm.ByteTokenizer(specials=("<bos>", "<image>", "<grid>", "<row end>", "<grid end>", "<image end>"))
NUM_CODES = 128
FORMAT = mm.GridFormat(
    begin=TEXT["<image>"],
    image=TEXT["<grid>"],
    row_end=TEXT["<row end>"],
    last_row_end=True,
    closing=(TEXT["<grid end>"], TEXT["<image end>"]),
    digits=tuple(b"0123456789"),
    times=ord("*"),
    codes=mm.vocabulary.CodeIds(sizes=(NUM_CODES,), first=TEXT.vocab_size),
)
SAMPLING, GUIDANCE = mm.Sampling(temperature=0.8), 2.0


def vary(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """A very light augmentation: what the model learns to draw should still look as people write."""
    return augment(pixels, generator, degrees=3, stretch=0.03, shift=0.5)


def train_tokenizer(train: Digits, generator: torch.Generator, num_steps: int) -> tuple[mm.tokenizers.ConvVQ, list[float]]:
    """Reconstruction alone at first; then the codebook is laid where the features are, and the losses of VQ join."""
    vq = mm.tokenizers.ConvVQ(channels=(32, 64), num_codes=NUM_CODES, code_dim=16).to(DEVICE)

    some = train.pixels[::10].to(DEVICE)

    def next_loss(step: int) -> Tensor:
        pixels = vary(train.pixels[torch.randint(len(train.labels), (32,), generator=generator)], generator).to(DEVICE)
        if step < 40:
            return mse_loss(vq.decode(mm.Latents(z=vq.features(pixels))), pixels)
        if step == 40:
            vq.fit_codebook(some)
        elif step % 50 == 0 and step < 0.8 * num_steps:
            vq.revive_codes(some)
        latents = vq.encode(pixels)
        return mse_loss(vq.decode(latents), pixels) + latents.loss["codebook"] + 0.25 * latents.loss["commitment"]

    return vq, fit(vq, next_loss, num_steps, lr=2e-3, weight_decay=0.0, what="tokenizer")


def build_model(dim: int = 128) -> mm.MultimodalModel:
    vocab_size = TEXT.vocab_size + NUM_CODES
    return mm.MultimodalModel(
        inputs={"text": mm.TextEmbedding(vocab_size=vocab_size, dim=dim)},
        trunk=mm.Decoder(dim=dim, num_layers=4, num_heads=4, mlp_dim=344, qk_norm=True),
        outputs={"text": mm.LMHead(dim=dim, vocab_size=vocab_size)},
    )


def prompt(digit: int) -> list:
    """What the model is told: a digit's name, or nothing at all (-1)."""
    return [mm.text([TEXT["<bos>"]]), mm.text("" if digit < 0 else f"a handwritten {NAMES[digit]}")]


def train_model(
    vq: mm.tokenizers.ConvVQ, train: Digits, generator: torch.Generator, num_steps: int
) -> tuple[mm.MultimodalModel, list[float]]:
    """Next-token prediction of the codes; one prompt in ten is dropped, for guidance."""
    model = build_model().to(DEVICE)
    builder = model.batch_builder(TEXT)

    def next_loss(step: int) -> Tensor:
        chosen = torch.randint(len(train.labels), (16,), generator=generator)
        with torch.no_grad():
            grids = vq.encode(vary(train.pixels[chosen], generator).to(DEVICE)).ids
        dropped = torch.rand(16, generator=generator) < 0.1
        told = train.labels[chosen].masked_fill(dropped, -1).tolist()
        samples = [[*prompt(digit), mm.codes(grid, FORMAT, target="text")] for digit, grid in zip(told, grids.cpu(), strict=True)]
        return model(builder(samples).to(DEVICE)).losses["text"]

    return model, fit(model, next_loss, num_steps, lr=2.5e-3, what="model")


@torch.no_grad()
def draw(model: mm.MultimodalModel, vq: mm.tokenizers.ConvVQ, digits: Tensor, generator: torch.Generator) -> Tensor:
    """One image per digit asked for."""
    begin = mm.text([FORMAT.begin])
    generated = model.generate(
        [[*prompt(digit), begin] for digit in digits.tolist()],
        mm.GridGrammar(FORMAT, size=(7, 7)),
        mm.Generation(sampling=SAMPLING, guidance=GUIDANCE, generator=generator),
        unconditional=[[*prompt(-1), begin]] * len(digits),
        tokenizer=TEXT,
    )
    grids = {row: segment.grid for row, segment in generated}
    return vq.decode(torch.stack([grids[row] for row in range(len(digits))]).to(DEVICE)).cpu()


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    train, held_out = load_digits()
    reader = Reader(train)

    vq, vq_losses = train_tokenizer(train, generator, num_steps=700)
    with torch.no_grad():
        ids = vq.encode(held_out.pixels.to(DEVICE)).ids
        rebuilt = vq.decode(ids).cpu()
    model, losses = train_model(vq, train, generator, num_steps=900)
    vq.save_pretrained(folder / "emu3_like_tokenizer")
    model.save_pretrained(folder / "emu3_like")
    asked = torch.arange(10).repeat_interleave(50)
    chance = torch.Generator(DEVICE).manual_seed(0)
    drawn = torch.cat([draw(model, vq, part, chance) for part in asked.split(250)])

    show([list(held_out.pixels[::50]), list(rebuilt[::50])], folder / "reconstructions.png", row_names=["held out", "rebuilt"])
    show([list(drawn[asked == digit][:16]) for digit in range(10)], folder / "generated.png", row_names=list(NAMES))
    show_curves({"tokenizer: squared error": vq_losses, "model: cross entropy of codes": losses}, folder / "emu3_like_losses.png")
    figures = {
        "held-out reconstruction PSNR, dB": round(-10 * float(mse_loss(rebuilt, held_out.pixels).log10()), 2),
        f"codes of {NUM_CODES} used on held-out digits": len(ids.unique()),
        "classifier on real held-out digits": reader.score(held_out.pixels, held_out.labels),
        f"{len(drawn)} generated digits read as the digit asked for": reader.score(drawn, asked),
        **{f"{name}, generated": value for name, value in diversity(drawn, asked).items()},
        **{f"{name}, real": value for name, value in diversity(held_out.pixels, held_out.labels).items()},
    }
    report("Emu3-like: text to image", figures, folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for pictures and summary.json")
    main(parser.parse_args().out)
