"""A small EVA-CLIP on real digits: an image tower and a text tower learn to tell which caption belongs to which digit.

It then sorts digits it has never seen into classes that are given by their names alone, with descriptions of which it has read
none, and finds the digits that a caption asks for, such as "a bold seven that leans right".

    python examples/contrastive_digits.py [--out demo]
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

import mmblocks as mm

from digits import NAMES, Digits, augment, load_digits
from fit import DEVICE, fit
from pictures import report, show, show_curves

TEMPLATES = ("a {}", "the number {}", "somebody wrote a {}")
"""What captions begin with."""

UNREAD = ("a photo of the digit {}.", "a {} on paper", "here is a {}")
"""Descriptions that occur in no caption: no tower without these words would understand them, were it not for the name."""

LOOKS = [(weight, lean) for weight in ("thin", "bold") for lean in ("upright", "that leans right")]


def build_model() -> mm.encoders.EVACLIP:
    tower = {"image_size": (28, 28), "patch_size": 7, "dim": 96, "num_layers": 4, "num_heads": 4, "mlp_dim": 256}
    eva02 = {"swiglu": True, "attention_norm": True, "rope": True}
    vision = {"tower": {**tower, **eva02}, "embed_dim": 64}
    text = {"embed_dim": 64, "dim": 64, "num_layers": 2, "num_heads": 4, "context_length": 14}
    model = mm.encoders.EVACLIP(vision=vision, text=text)
    torch.nn.init.normal_(model.vision.head.weight, std=0.1)  # as published it begins at almost nothing, for days of warm-up
    # Of 49,408 words the captions have thirty; they stay as they are drawn, which halves the time of a step.
    model.text.model.token_embedding.requires_grad_(False)
    return model


def looks(digits: Digits) -> Tensor:
    """Which of ``LOOKS`` each digit has: how much ink it took and how far it leans, against the median of its class."""
    ink = digits.pixels[:, 0]
    mass = ink.sum(dim=(1, 2), keepdim=True)
    down, right = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    down, right = (axis - (ink * axis).sum(dim=(1, 2), keepdim=True) / mass for axis in (down, right))
    lean = -(ink * down * right).sum(dim=(1, 2)) / (ink * down.square()).sum(dim=(1, 2))

    def above(values: Tensor) -> Tensor:
        medians = torch.stack([values[digits.labels == digit].median() for digit in range(10)])
        return (values > medians[digits.labels]).long()

    return 2 * above(mass.flatten()) + above(lean)


def caption(digit: int, look: int) -> str:
    weight, lean = LOOKS[look]
    return f"{weight} {NAMES[digit]} {lean}" if lean != "upright" else f"{weight} upright {NAMES[digit]}"


def train_towers(model: mm.encoders.EVACLIP, train: Digits, generator: torch.Generator, num_steps: int) -> list[float]:
    """Batches of all 40 digits with a look, each once, and of the 10 bare names: no other caption of a batch would be right too."""
    kinds = 4 * train.labels + looks(train)
    members = [(kinds == kind).nonzero().flatten() for kind in range(40)]
    read = {
        (kind, template): model.text.tokenize(template.format(caption(kind // 4, kind % 4)))[0]
        for kind in range(40)
        for template in TEMPLATES
    }
    plain = {
        (digit, template): model.text.tokenize(template.format(NAMES[digit]))[0] for digit in range(10) for template in TEMPLATES
    }

    def template() -> str:
        return TEMPLATES[int(torch.randint(len(TEMPLATES), (), generator=generator))]

    def next_loss(step: int) -> Tensor:
        chosen = [own[torch.randint(len(own), (), generator=generator)] for own in members]
        digits = [torch.randint(4, (), generator=generator) + 4 * digit for digit in range(10)]
        chosen += [members[kind][torch.randint(len(members[kind]), (), generator=generator)] for kind in digits]
        pixels = augment(train.pixels[torch.stack(chosen)], generator, degrees=4, stretch=0.08, shift=2, bend=1)
        ids = torch.stack([read[kind, template()] for kind in range(40)] + [plain[digit, template()] for digit in range(10)])
        image, text, scale = model(pixels.to(DEVICE), ids.to(DEVICE))
        looked, named = (mm.training.clip_loss(image[part], text[part], scale).loss for part in (slice(40), slice(40, None)))
        return looked + named

    return fit(model, next_loss, num_steps, lr=2e-3, what="towers")


@torch.no_grad()
def score(model: mm.encoders.EVACLIP, held_out: Digits) -> dict[str, float]:
    images = model.encode_image(held_out.pixels.to(DEVICE))
    figures = {}
    for name, templates in (("captions' words", TEMPLATES), ("words of no caption", UNREAD)):
        guessed = (images @ model.classifier(NAMES, templates).T).argmax(dim=1).cpu()
        figures[f"zero-shot accuracy on held-out digits, {name}"] = float((guessed == held_out.labels).float().mean())
    kinds = 4 * held_out.labels + looks(held_out)
    texts = model.encode_text([TEMPLATES[0].format(caption(kind // 4, kind % 4)) for kind in range(40)])
    first = (texts @ images.T).topk(5).indices.cpu()
    wanted = torch.arange(40)[:, None]
    figures["first 5 found for 40 captions: right digit"] = float((held_out.labels[first] == wanted // 4).float().mean())
    figures["first 5 found for 40 captions: right digit and look"] = float((kinds[first] == wanted).float().mean())
    return {name: round(value, 4) for name, value in figures.items()}


@torch.no_grad()
def draw_found(model: mm.encoders.EVACLIP, held_out: Digits, file: Path) -> None:
    """What four captions find among the held-out digits, best first."""
    asked = [TEMPLATES[0].format(caption(digit, look)) for digit, look in ((7, 3), (2, 0), (4, 2), (0, 1))]
    found = model.similarity(model.encode_text(asked), model.encode_image(held_out.pixels.to(DEVICE))).topk(10).indices.cpu()
    show([[held_out.pixels[number] for number in row] for row in found], file, row_names=asked)


def main(folder: Path, num_steps: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    train, held_out = load_digits()
    model = build_model().to(DEVICE)
    losses = train_towers(model, train, torch.Generator().manual_seed(0), num_steps)
    model.save_pretrained(folder / "contrastive_digits")
    draw_found(model, held_out, folder / "found_digits.png")
    show_curves({"both towers: contrastive loss": losses}, folder / "contrastive_losses.png")
    report("Contrastive digits", score(model, held_out), folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for pictures and summary.json")
    parser.add_argument("--steps", type=int, default=3000, help="of training")
    arguments = parser.parse_args()
    main(arguments.out, arguments.steps)
