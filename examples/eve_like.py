"""An EVE-like model on real digits: no image encoder, pixels go straight into the trunk that also reads and writes text.

It looks at canvases of 1x1 to 3x3 cells, each a handwritten digit or a gap, and writes down what it sees, such as
"1 - 7 / 3 9 -". With --full it goes on to answer questions about canvases, beside a model that sees no image and one
that reads no question.

    python examples/eve_like.py [--out demo] [--full]
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

import mmblocks as mm

from canvases import SIZES, Canvas, make_canvases
from digits import Digits, load_digits
from fit import DEVICE, fit
from pictures import report, show, show_curves

TEXT = mm.ByteTokenizer(specials=("<write>", "<end>"))


def build_model(dim: int = 128) -> mm.MultimodalModel:
    return mm.MultimodalModel(
        inputs={
            "text": mm.TextEmbedding(vocab_size=TEXT.vocab_size, dim=dim, init_std=0.5),
            "vision": mm.embedders.EVE2PatchEmbedding(dim=dim, hidden_dim=256, patch_size=7, merge_size=2),
        },
        trunk=mm.Decoder(dim=dim, num_layers=4, num_heads=4, mlp_dim=336, qk_norm=True),
        outputs={"text": mm.LMHead(dim=dim, vocab_size=TEXT.vocab_size)},
    )


def learned(answer: str) -> list:
    """An answer that the model learns to write, and to end."""
    return [mm.text([TEXT["<write>"]]), mm.text([*answer.encode(), TEXT["<end>"]], target="text")]


def train_to_read(model: mm.MultimodalModel, train: Digits, generator: torch.Generator, num_steps: int) -> list[float]:
    """Single digits first, then small canvases, then all sizes: what to write where is learned on little text."""
    builder = model.batch_builder(TEXT)

    def next_loss(step: int) -> Tensor:
        count, sizes = (72, SIZES[:1]) if step < 100 else (54, SIZES[:2] + SIZES[3:5]) if step < 220 else (36, SIZES)
        canvases = make_canvases(train, count, generator, sizes=sizes, augmented=True)
        samples = [[mm.image(canvas.pixels), *learned(canvas.transcript)] for canvas in canvases]
        return model(builder(samples, pack=150).to(DEVICE)).losses["text"]

    return fit(model, next_loss, num_steps, lr=2e-3, what="reading")


def answers(model: mm.MultimodalModel, prompts: list[list], max_tokens: int) -> list[str]:
    """What the model writes after each prompt."""
    written = [""] * len(prompts)
    grammar = mm.TextGrammar(TEXT.vocab_size, stop=(TEXT["<end>"],))
    begun = [[*prompt, mm.text([TEXT["<write>"]])] for prompt in prompts]
    for row, segment in model.generate(begun, grammar, mm.Generation(max_tokens=max_tokens, sampling=mm.GREEDY), tokenizer=TEXT):
        written[row] = segment.content
    return written


def score_reading(canvases: list[Canvas], written: list[str]) -> dict[str, float]:
    """Shares of digits and of whole canvases that were read right."""
    digits_right = []
    for canvas, said in zip(canvases, written, strict=True):
        words = [word for word in said.split() if word != "/"] + [""] * len(canvas.words)
        digits_right += [got == wanted for got, wanted in zip(words, canvas.words, strict=False) if wanted != "-"]
    exact = [said == canvas.transcript for canvas, said in zip(canvases, written, strict=True)]
    return {
        "held-out digits read right": round(sum(digits_right) / len(digits_right), 4),
        f"whole canvases of {len(exact)} exact": round(sum(exact) / len(exact), 4),
    }


def main(folder: Path, full: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    train, held_out = load_digits()
    model = build_model().to(DEVICE)
    losses = train_to_read(model, train, generator, num_steps=1000)
    model.save_pretrained(folder / "eve_like")

    canvases = make_canvases(held_out, 544, torch.Generator().manual_seed(1), sizes=SIZES[1:])
    written = answers(model, [[mm.image(canvas.pixels)] for canvas in canvases], max_tokens=24)
    titles = [written[row : row + 8] for row in (8, 16, 24)]
    show([[c.pixels for c in canvases[row : row + 8]] for row in (8, 16, 24)], folder / "canvases.png", titles=titles)
    show_curves({"reading: cross entropy": losses}, folder / "eve_like_losses.png")
    report("EVE-like: reading canvases", score_reading(canvases, written), folder)
    if full:
        from questions import answer_questions

        answer_questions(model, train, held_out, folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for pictures and summary.json")
    parser.add_argument("--full", action="store_true", help="also learn to answer questions")
    arguments = parser.parse_args()
    main(arguments.out, arguments.full)
