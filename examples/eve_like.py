"""An EVE-like model on real digits: no image encoder, pixels go straight into the trunk that also reads and writes text.

It looks at canvases of 1x1 to 3x3 cells, each a handwritten digit or a gap, and writes down what it sees, such as
"1 - 7 / 3 9 -". With --full it goes on to answer questions about canvases, beside a model that sees no image and one
that reads no question.

    python examples/eve_like.py [--out demo] [--full]
"""

import argparse
from pathlib import Path

import torch
from canvases import SIZES, Canvas, Question, ask, make_canvases
from fit import fit
from pictures import report, show, show_curves
from torch import Tensor

from digits import Digits, load_digits
from mmblocks import (
    GREEDY,
    ByteTokenizer,
    Decoder,
    EVE2PatchEmbedding,
    LMHead,
    MultimodalModel,
    TextEmbedding,
    TextGrammar,
    image,
    text,
)  # fmt: skip

TEXT = ByteTokenizer(specials=("<write>", "<end>"))
NOTHING = torch.zeros(3, 28, 28)


def build_model(dim: int = 128) -> MultimodalModel:
    return MultimodalModel(
        inputs={
            "text": TextEmbedding(vocab_size=TEXT.vocab_size, dim=dim, init_std=0.5),
            "vision": EVE2PatchEmbedding(dim=dim, hidden_dim=256, patch_size=14, merge_size=2),
        },
        trunk=Decoder(dim=dim, num_layers=4, num_heads=2, mlp_dim=336, qk_norm=True),
        outputs={"text": LMHead(dim=dim, vocab_size=TEXT.vocab_size)},
    )


def learned(answer: str) -> list:
    """An answer that the model learns to write, and to end."""
    return [text([TEXT["<write>"]]), text([*answer.encode(), TEXT["<end>"]], target="text")]


def train_to_read(model: MultimodalModel, train: Digits, generator: torch.Generator, num_steps: int) -> list[float]:
    """Single digits first, then small canvases, then all sizes: what to write where is learned on little text."""
    builder = model.batch_builder(TEXT)

    def next_loss(step: int) -> Tensor:
        count, sizes = (72, SIZES[:1]) if step < 100 else (54, SIZES[:2] + SIZES[3:5]) if step < 220 else (36, SIZES)
        canvases = make_canvases(train, count, generator, sizes=sizes, augmented=True)
        samples = [[image(canvas.pixels), *learned(canvas.transcript)] for canvas in canvases]
        return model(builder(samples, pack=80)).losses["text"]

    return fit(model, next_loss, num_steps, lr=2e-3, what="reading")


def answers(model: MultimodalModel, prompts: list[list], max_tokens: int) -> list[str]:
    """What the model writes behind each prompt."""
    written = [""] * len(prompts)
    grammar = TextGrammar(TEXT.vocab_size, stop=(TEXT["<end>"],))
    begun = [[*prompt, text([TEXT["<write>"]])] for prompt in prompts]
    for row, segment in model.generate(begun, grammar, max_tokens=max_tokens, sampling=GREEDY, tokenizer=TEXT):
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


def train_to_answer(
    model: MultimodalModel, train: Digits, generator: torch.Generator, num_steps: int, *, blind: bool = False, deaf: bool = False
) -> list[float]:
    """Several questions about each canvas, with transcripts mixed in. Blind: no image. Deaf: no question."""
    builder = model.batch_builder(TEXT)

    def sample(canvas: Canvas, number: int) -> list:
        seen = image(NOTHING if blind else canvas.pixels)
        if number % 4 == 0 and not (blind or deaf):
            return [seen, *learned(canvas.transcript)]
        turns = []
        for _ in range(4):
            kind = ("place", "count", "relation", "relation")[int(torch.randint(4, (), generator=generator))]
            question = ask(canvas, kind, generator) or ask(canvas, "place", generator)
            turns += [text("?" if deaf else question.text), *learned(question.answer)]
        return [seen, *turns]

    def next_loss(step: int) -> Tensor:
        canvases = make_canvases(train, 32, generator, sizes=SIZES[1:], augmented=True)
        return model(builder([sample(canvas, number) for number, canvas in enumerate(canvases)], pack=140)).losses["text"]

    what = "answering" + " without image" * blind + " without question" * deaf
    return fit(model, next_loss, num_steps, lr=2e-3, what=what)


def score_answers(
    model: MultimodalModel, asked: list[tuple[Canvas, Question]], *, blind: bool = False, deaf: bool = False
) -> dict[str, float]:
    """Share of right answers for each kind of question."""
    prompts = [[image(NOTHING if blind else c.pixels), text("?" if deaf else q.text)] for c, q in asked]
    right: dict[str, list[bool]] = {}
    for (_, question), said in zip(asked, answers(model, prompts, max_tokens=4), strict=True):
        right.setdefault(question.kind, []).append(said == question.answer)
    return {kind: round(sum(values) / len(values), 4) for kind, values in right.items()}


def answer_questions(reader: MultimodalModel, train: Digits, held_out: Digits, folder: Path, num_steps: int) -> None:
    """--full: questions, and two models that cannot know: one sees nothing, one is not told what is asked."""
    canvases = make_canvases(held_out, 800, torch.Generator().manual_seed(2), sizes=SIZES[1:])
    choice = torch.Generator().manual_seed(3)
    kinds = ("place", "count", "relation")
    asked = [(c, q) for c in canvases for kind in kinds if (q := ask(c, kind, choice))]
    figures: dict[str, object] = {}
    curves = {}
    for name, options, share in (("", {}, 1.0), (", no image", {"blind": True}, 0.1), (", no question", {"deaf": True}, 0.1)):
        torch.manual_seed(0)
        model = build_model()
        model.load_state_dict(reader.state_dict())
        generator = torch.Generator().manual_seed(4)
        curves[f"answers{name}"] = train_to_answer(model, train, generator, int(num_steps * share), **options)
        figures |= {f"{kind}{name}": share for kind, share in score_answers(model, asked, **options).items()}
    show_curves(curves, folder / "eve_like_answers_losses.png")
    report("EVE-like: questions about canvases", figures, folder)


def main(folder: Path, full: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    train, held_out = load_digits()
    model = build_model()
    losses = train_to_read(model, train, generator, num_steps=1200)

    canvases = make_canvases(held_out, 540, torch.Generator().manual_seed(1))
    written = answers(model, [[image(canvas.pixels)] for canvas in canvases], max_tokens=24)
    titles = [written[row : row + 9] for row in (9, 18, 27)]
    show([[c.pixels for c in canvases[row : row + 9]] for row in (9, 18, 27)], folder / "canvases.png", titles=titles)
    show_curves({"reading: cross entropy": losses}, folder / "eve_like_losses.png")
    report("EVE-like: reading canvases", score_reading(canvases, written), folder)
    if full:
        answer_questions(model, train, held_out, folder, num_steps=4000)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for pictures and summary.json")
    parser.add_argument("--full", action="store_true", help="also learn to answer questions")
    arguments = parser.parse_args()
    main(arguments.out, arguments.full)
