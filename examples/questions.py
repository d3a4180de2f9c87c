"""What ``eve_like.py --full`` goes on to: questions about canvases, beside two models that cannot know the answers."""

from pathlib import Path

import torch
from torch import Tensor

from mmblocks import MultimodalModel, image, text

from canvases import SIZES, Canvas, Question, ask, make_canvases
from digits import Digits
from eve_like import TEXT, answers, build_model, learned
from fit import DEVICE, fit
from pictures import report, show, show_curves

NOTHING = torch.zeros(3, 28, 28)
SMALL = [(1, 2), (2, 1), (2, 2)]
KINDS = ("place", "count", "relation")
TAUGHT = ("place", "count", "where", "relation")
"""To find a digit is a step on the way to its neighbour; asked alone, it is learned sooner."""
NUM_STEPS = 4000


def sample(canvas: Canvas, generator: torch.Generator, *, blind: bool, deaf: bool) -> list:
    """Six questions about a canvas and their answers. Blind: without the canvas. Deaf: without the questions."""
    turns = []
    for _ in range(6):
        kind = TAUGHT[int(torch.multinomial(torch.tensor([0.25, 0.15, 0.25, 0.35]), 1, generator=generator))]
        question = ask(canvas, kind, generator) or ask(canvas, "place", generator)
        turns += [text("?" if deaf else question.text), *learned(question.working + question.answer)]
    return [image(NOTHING if blind else canvas.pixels), *turns]


def train_to_answer(
    model: MultimodalModel, train: Digits, num_steps: int, *, blind: bool = False, deaf: bool = False
) -> list[float]:
    """Questions about small canvases first, then about all; canvases of all sizes are read out all along."""
    generator = torch.Generator().manual_seed(4)
    builder = model.batch_builder(TEXT)

    def next_loss(step: int) -> Tensor:
        sizes = SMALL if step < num_steps // 4 else SIZES[1:]
        asked = make_canvases(train, 14, generator, sizes=sizes, augmented=True)
        read = make_canvases(train, 9, generator, sizes=SIZES, augmented=True)
        samples = [sample(canvas, generator, blind=blind, deaf=deaf) for canvas in asked]
        samples += [[image(NOTHING if blind else canvas.pixels), *learned(canvas.transcript)] for canvas in read]
        return model(builder(samples, pack=200).to(DEVICE)).losses["text"]

    return fit(model, next_loss, num_steps, lr=2e-3, what="answering" + ", no image" * blind + ", no question" * deaf)


def score(
    model: MultimodalModel, asked: list[tuple[Canvas, Question]], *, blind: bool = False, deaf: bool = False
) -> dict[str, float]:
    """Share of exact answers for each kind of question."""
    prompts = [[image(NOTHING if blind else canvas.pixels), text("?" if deaf else question.text)] for canvas, question in asked]
    right: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for (_, question), said in zip(asked, answers(model, prompts, max_tokens=8), strict=True):
        right[question.kind].append(said[-1:] == question.answer)
    return {kind: round(sum(values) / len(values), 4) for kind, values in right.items()}


def answer_questions(reader: MultimodalModel, train: Digits, held_out: Digits, folder: Path) -> None:
    """Teaches a model that can read canvases to answer; reports shares of exact answers on held-out digits."""
    canvases = make_canvases(held_out, 800, torch.Generator().manual_seed(2), sizes=SIZES[1:])
    choice = torch.Generator().manual_seed(3)
    asked = [(canvas, question) for canvas in canvases for kind in KINDS if (question := ask(canvas, kind, choice))]
    figures: dict[str, object] = {}
    curves: dict[str, list[float]] = {}
    for name, options, num_steps in (
        ("", {}, NUM_STEPS),
        (", no image", {"blind": True}, NUM_STEPS // 10),
        (", no question", {"deaf": True}, NUM_STEPS // 10),
    ):
        model = build_model().to(DEVICE)
        model.load_state_dict(reader.state_dict())
        curves[f"answers{name}"] = train_to_answer(model, train, num_steps, **options)
        for kind, share in score(model, asked, **options).items():
            figures[f"{kind}{name}: exact answers of {sum(q.kind == kind for _, q in asked)}"] = share
        if not options:
            shown = asked[-27:]
            said = answers(model, [[image(canvas.pixels), text(question.text)] for canvas, question in shown], max_tokens=8)
            titles = [f"{question.text}\n{answer}" for (_, question), answer in zip(shown, said, strict=True)]
            rows = range(0, 27, 9)
            sheet = [[canvas.pixels for canvas, _ in shown[row : row + 9]] for row in rows]
            show(sheet, folder / "answers.png", titles=[titles[row : row + 9] for row in rows])
    show_curves(curves, folder / "answers_losses.png")
    report("EVE-like: questions about canvases", figures, folder)
