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
TAUGHT = {"place": 0.25, "count": 0.15, "where": 0.2, "relation": 0.4}
"""How often a kind is asked while training. To find a digit is a step on the way to its neighbour."""

NUM_STEPS = 2400
TOLD_ONLY = 0.3
"""Share of the steps that are on text alone. To look something up in one's own text is learned there in a few hundred steps; with
images from the start it is not learned at all, since guessing from the image is the shorter way to a first gain."""


def seen(canvas: Canvas, blind: bool) -> list:
    """What the model is shown of a canvas, and the request to write down what stands where."""
    return [image(NOTHING if blind else canvas.pixels), text("places?")]


def told(said: str) -> list:
    """What stands where as text, as if the model had written it."""
    return [text([TEXT["<write>"], *said.encode(), TEXT["<end>"]])]


def sample(canvas: Canvas, generator: torch.Generator, *, is_told: bool, blind: bool, deaf: bool) -> list:
    """A canvas, what stands where, and six questions with answers.

    Told: with what stands where given as text instead of the canvas. Blind: without either. Deaf: without questions.
    """
    turns = []
    for kind in torch.multinomial(torch.tensor(list(TAUGHT.values())), 6, replacement=True, generator=generator).tolist():
        question = ask(canvas, list(TAUGHT)[kind], generator) or ask(canvas, "place", generator)
        turns += [text("?" if deaf else question.text), *learned(question.working + question.answer)]
    if is_told:
        return [text("places?"), *told(canvas.places), *turns]
    return [*seen(canvas, blind), *learned(canvas.places), *turns]


def train_to_answer(
    model: MultimodalModel, train: Digits, num_steps: int, *, blind: bool = False, deaf: bool = False
) -> list[float]:
    """Text alone first, small canvases first; then images, and still some text alone."""
    generator = torch.Generator().manual_seed(4)
    builder = model.batch_builder(TEXT)

    def next_loss(step: int) -> Tensor:
        canvases = make_canvases(train, 18, generator, sizes=SMALL if step < num_steps // 12 else SIZES[1:], augmented=True)
        num_told = 0 if blind else 18 if step < num_steps * TOLD_ONLY else 4
        order = torch.randperm(18, generator=generator).tolist()
        samples = [sample(c, generator, is_told=i < num_told, blind=blind, deaf=deaf) for i, c in zip(order, canvases, strict=True)]
        return model(builder(samples, pack=240).to(DEVICE)).losses["text"]

    return fit(model, next_loss, num_steps, lr=2e-3, what="answering" + ", no image" * blind + ", no question" * deaf)


def replies(model: MultimodalModel, asked: list[tuple[Canvas, Question]], *, blind: bool = False, deaf: bool = False) -> list[str]:
    """The model first writes down what it sees where, then reads that and the question."""
    written = answers(model, [seen(canvas, blind) for canvas, _ in asked], max_tokens=48)
    prompts = [
        [*seen(canvas, blind), *told(said), text("?" if deaf else question.text)]
        for (canvas, question), said in zip(asked, written, strict=True)
    ]
    return answers(model, prompts, max_tokens=10)


def score(
    model: MultimodalModel, asked: list[tuple[Canvas, Question]], *, blind: bool = False, deaf: bool = False
) -> dict[str, float]:
    """Share of exact answers for each kind of question. The last character is the answer, after its working."""
    right: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for (_, question), said in zip(asked, replies(model, asked, blind=blind, deaf=deaf), strict=True):
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
            titles = [f"{question.text}\n{said}" for (_, question), said in zip(shown, replies(model, shown), strict=True)]
            rows = range(0, 27, 9)
            sheet = [[canvas.pixels for canvas, _ in shown[row : row + 9]] for row in rows]
            show(sheet, folder / "answers.png", titles=[titles[row : row + 9] for row in rows])
    show_curves(curves, folder / "answers_losses.png")
    report("EVE-like: questions about canvases", figures, folder)
