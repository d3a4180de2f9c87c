"""Eight published ways of writing an image, side by side: the same digits, words, trunk size and training steps.

Each recipe in ``recipes/`` composes a model from parts. It learns rows such as "seven <image> ... <image end> seven", of which one
loss is of words and one of images; where the prompt is dropped, the words after the image must be read off it. Then a prompt is
replied to with an image and a word, and held-out digits are named. An independent classifier reads what was written.

    python examples/ways_of_writing.py [--out demo] [--ways emu3 orthus show_o transfusion bagel nexus ...] [--steps 600]
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

import mmblocks as mm
from mmblocks.generation import ClassifierFree, ModalSampling
from mmblocks.generation.grammar import Grammar
from mmblocks.sequence.segments import Segment, Text

from digits import NAMES, Digits, Reader, diversity, load_digits
from emu3_like import NUM_CODES
from fit import DEVICE, fit
from latents import vary
from pictures import report, show, show_curves
from recipes import RECIPES
from recipes.tokenizers import Tokenizers, load_tokenizers
from recipes.way import BEGIN, STOP, TEXT, Sizes, Way

NOTHING, BEGUN = [mm.text([TEXT["<bos>"]])], mm.text([BEGIN])
SAMPLING = ModalSampling(text=mm.GREEDY, image=mm.Sampling(temperature=0.8))


def told(digit: int) -> list[Segment]:
    """What a model is told to write."""
    return [*NOTHING, mm.text(NAMES[digit])]


def named(digit: int) -> list[Segment]:
    """What it is to say of an image."""
    return [mm.text(NAMES[digit], target="text"), mm.text([STOP], target="text")]


def train_way(way: Way, tokenizers: Tokenizers, train: Digits, num_steps: int) -> list[float]:
    """Each step writes 9 images as told and 2 as it likes, for guidance, and names 5 of which nothing was said."""
    generator = torch.Generator().manual_seed(0)
    model = way.model.to(DEVICE)
    builder = model.batch_builder(TEXT)
    images = tokenizers.encode(way.images, torch.cat([vary(train.pixels, generator) for _ in range(3)]))
    labels = train.labels.repeat(3)

    def next_loss(step: int) -> Tensor:
        chosen = torch.randint(len(images), (16,), generator=generator)
        rows = list(zip(images[chosen], labels[chosen].tolist(), strict=True))
        samples = [[*told(digit), *way.written(image), *named(digit)] for image, digit in rows[:9]]
        samples += [[*NOTHING, *way.written(image)] for image, _ in rows[9:11]]
        samples += [[*NOTHING, *way.read(image), *named(digit)] for image, digit in rows[11:]]
        losses = model(builder(samples).to(DEVICE)).losses
        return torch.stack([way.weights[head] * loss for head, loss in losses.items()]).sum()

    return fit(model, next_loss, num_steps, lr=2.5e-3, what="model")


def reply(way: Way, prompts: list[list[Segment]], grammar: Grammar) -> Iterator[tuple[int, Segment]]:
    """What a model writes after each prompt, as it is completed."""
    guidance = None if way.guidance is None else ClassifierFree(scale=way.guidance, images_only=True)
    options = mm.Generation(max_tokens=96, sampling=SAMPLING, guidance=guidance, generator=0)
    nothing = None if guidance is None else [NOTHING] * len(prompts)
    return way.model.generate(prompts, grammar, options, unconditional=nothing, tokenizer=TEXT)


def measure(way: Way, digits: Sequence[int] = range(10)) -> tuple[float, float]:
    """Passes of the trunk for an image, and the median of the seconds that one takes, one image at a time."""
    passes: list[int] = []
    hook = way.model.trunk.register_forward_hook(lambda *_: passes.append(1))
    seconds = []
    for digit in digits:
        begun = time.perf_counter()
        next(reply(way, [[*told(digit), BEGUN]], way.grammar))
        seconds.append(time.perf_counter() - begun)
    hook.remove()
    return len(passes) / len(digits), median(seconds)


def evaluate(
    way: Way, tokenizers: Tokenizers, held_out: Digits, reader: Reader, count: int = 20
) -> tuple[dict[str, object], Tensor]:
    """Figures, and ``count`` images of each digit, black where there is none."""
    asked = torch.arange(10).repeat_interleave(count)
    written, said = torch.zeros(len(asked), 3, 28, 28), [""] * len(asked)
    for row, segment in reply(way, [told(digit) for digit in asked.tolist()], way.grammar):
        if isinstance(segment, Text):
            said[row] += segment.content
        else:
            written[row] = tokenizers.decode(segment)
    pixels, labels = held_out.pixels[::5], held_out.labels[::5]
    shown = [[*NOTHING, *way.read(image)] for image in tokenizers.encode(way.images, pixels)]
    names = [""] * len(shown)
    for row, segment in reply(way, shown, mm.TextGrammar(TEXT.vocab_size, stop=(STOP,))):
        names[row] += segment.content
    passes, seconds = measure(way)
    figures = {
        f"{len(asked)} written digits read as the digit told": reader.score(written, asked),
        "share of these replies that go on with the digit's name": share_right(said, asked),
        f"{len(labels)} held-out digits named right": share_right(names, labels),
        "pixel standard deviation in a class": next(iter(diversity(written, asked).values())),
        "passes of the trunk an image": passes,
        "milliseconds an image, one at a time": round(1000 * seconds, 1),
    }
    return figures, written


def share_right(said: list[str], digits: Tensor) -> float:
    right = [text.removesuffix("<stop>") == NAMES[digit] for text, digit in zip(said, digits.tolist(), strict=True)]
    return sum(right) / len(right)


def main(folder: Path, ways: list[str], num_steps: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    train, held_out = load_digits()
    reader = Reader(train)
    tokenizers = load_tokenizers(folder, train, num_steps=600)
    rows, curves = [list(held_out.pixels[::100])], {}
    for name in ways:
        torch.manual_seed(0)
        way = RECIPES[name](Sizes(num_codes=NUM_CODES, quantizer=tokenizers.scales.bottleneck))
        begun = time.process_time()
        curves[name] = train_way(way, tokenizers, train, num_steps)
        minutes = round((time.process_time() - begun) / 60, 1)
        figures, written = evaluate(way, tokenizers, held_out, reader)
        way.model.save_pretrained(folder / f"ways_of_writing_{name}")
        rows.append(list(written[::20]))
        report(f"Ways of writing an image: {name}", {**figures, f"processor minutes for {num_steps} steps": minutes}, folder)
    show(rows, folder / "ways_of_writing.png", row_names=["held out", *ways])
    show_curves(curves, folder / "ways_of_writing_losses.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for pictures and summary.json")
    parser.add_argument("--ways", nargs="+", choices=list(RECIPES), default=list(RECIPES), help="which ones; all by default")
    parser.add_argument("--steps", type=int, default=600, help="training steps of each")
    arguments = parser.parse_args()
    main(arguments.out, arguments.ways, arguments.steps)
