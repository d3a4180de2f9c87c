"""Parallel decoding of the Emu3-like model: all 49 codes of an image at once, refined in a few passes.

Our own design, after the idea of Emu3.5's DiDA, for which no code is public: the trained model goes on learning to write code by
code, and at the same time to fill in hidden codes of noised copies (``MaskedCodesHead`` with a ``learner``).

1. The model of ``emu3_like.py`` is read from the folder, or trained if it is not there.
2. It is adapted on the same digits.
3. Both ways of drawing are compared: forward passes, time, and what an independent classifier reads.

    python examples/parallel_decoding.py [--out demo]
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

import mmblocks as mm
from mmblocks.heads.vocabularies import extend_vocabulary
from mmblocks.layers.diffusion.masked_tokens import ConfidenceSampler

import emu3_like
from digits import NAMES, Digits, Reader, diversity, load_digits
from emu3_like import FORMAT, NUM_CODES, TEXT, prompt, vary
from fit import DEVICE, fit
from pictures import report, show, show_curves

SIZE = (7, 7)
MASK = TEXT.vocab_size + NUM_CODES
NUM_PASSES, GUIDANCE = 8, 3.0
SAMPLER = ConfidenceSampler(num_steps=NUM_PASSES, temperature=4.0)
Draw = Callable[[Tensor, torch.Generator], Tensor]


def in_parallel(model: mm.MultimodalModel) -> mm.MultimodalModel:
    """The same model, whose ids have one more: the one that hides a code. Its head over ids writes whole images too."""
    old, words = model.inputs["text"], model.outputs["text"]
    text = mm.TextEmbedding(vocab_size=old.vocab_size + 1, dim=old.weight.shape[1]).to(DEVICE)
    text.weight.data = extend_vocabulary(old.weight, 1)
    ids = {"mask_id": MASK, "first": TEXT.vocab_size, "num_codes": NUM_CODES}
    image = mm.heads.MaskedCodesHead(head=words, **ids, sampler=SAMPLER, predicts="next", learner="text")
    return mm.MultimodalModel(inputs={"text": text}, trunk=model.trunk, outputs={"text": words, "image": image})


def adapt(
    model: mm.MultimodalModel, vq: mm.tokenizers.ConvVQ, train: Digits, generator: torch.Generator, num_steps: int
) -> list[float]:
    """Every image is learned code by code, and in a noised copy whose hidden codes are learned at once."""
    builder = model.batch_builder(TEXT)

    def next_loss(step: int) -> Tensor:
        chosen = torch.randint(len(train.labels), (16,), generator=generator)
        with torch.no_grad():
            grids = vq.encode(vary(train.pixels[chosen], generator).to(DEVICE)).ids.cpu()
        dropped = torch.rand(16, generator=generator) < 0.1
        told = train.labels[chosen].masked_fill(dropped, -1).tolist()
        samples = [[*prompt(digit), mm.codes(grid, FORMAT, target="image")] for digit, grid in zip(told, grids, strict=True)]
        losses = model(builder(samples).to(DEVICE)).losses
        return (losses["text"] + losses["image"]) / 2

    return fit(model, next_loss, num_steps, lr=1.5e-3, what="adaptation")


@torch.no_grad()
def draw(model: mm.MultimodalModel, vq: mm.tokenizers.ConvVQ, digits: Tensor, generator: torch.Generator) -> Tensor:
    """One image per digit asked for, all codes at once."""
    begin = mm.text(FORMAT.head(*SIZE))
    prompts, nothing = [[*prompt(digit), begin] for digit in digits.tolist()], [[*prompt(-1), begin]] * len(digits)
    options = mm.Generation(guidance=GUIDANCE, generator=generator)
    grammar = mm.GridGrammar(FORMAT, size=SIZE, head="image", whole=True)
    made = dict(model.generate(prompts, grammar, options, unconditional=nothing, tokenizer=TEXT))
    return vq.decode(torch.stack([made[row].grid for row in range(len(digits))])).cpu()


def measure(draw_some: Draw, trunk: torch.nn.Module, digits: Tensor) -> tuple[float, float]:
    """Forward passes an image, and the median of the seconds that one takes, one image at a time."""
    passes: list[int] = []
    seconds = []
    hook = trunk.register_forward_hook(lambda *_: passes.append(1))
    chance = torch.Generator(DEVICE).manual_seed(1)
    for digit in digits.split(1):
        begun = time.perf_counter()
        draw_some(digit, chance)
        seconds.append(time.perf_counter() - begun)
    hook.remove()
    return len(passes) / len(digits), median(seconds)


def main(folder: Path) -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    if not (folder / "emu3_like").is_dir():
        emu3_like.main(folder)
    vq = mm.tokenizers.ConvVQ.from_pretrained(folder / "emu3_like_tokenizer").to(DEVICE).eval()
    trained, model = (mm.MultimodalModel.from_pretrained(folder / "emu3_like").to(DEVICE).eval() for _ in range(2))
    train, _ = load_digits()
    model = in_parallel(model)
    losses = adapt(model, vq, train, generator, num_steps=400)
    ways = {
        "code by code": (trained, partial(emu3_like.draw, trained, vq)),
        "code by code, adapted model": (model, partial(emu3_like.draw, model, vq)),
        "in parallel": (model, partial(draw, model, vq)),
    }
    asked = torch.arange(10).repeat_interleave(20)
    reader = Reader(train)
    figures: dict[str, object] = {}
    for name, (drawing, draw_some) in ways.items():
        chance = torch.Generator(DEVICE).manual_seed(0)
        drawn = torch.cat([draw_some(some, chance) for some in asked.split(100)])
        passes, seconds = measure(draw_some, drawing.trunk, asked[::20])
        figures[f"{name}: forward passes an image"] = passes
        figures[f"{name}: milliseconds an image, one at a time"] = round(1000 * seconds, 1)
        figures[f"{name}: {len(drawn)} digits read as the digit asked for"] = reader.score(drawn, asked)
        figures[f"{name}: pixel standard deviation in a class"] = next(iter(diversity(drawn, asked).values()))
    show([list(drawn[asked == digit][:16]) for digit in range(10)], folder / "drawn_in_parallel.png", row_names=list(NAMES))
    show_curves({"adaptation: cross entropy, both objectives": losses}, folder / "parallel_decoding_losses.png")
    report("Parallel decoding (our own design)", figures, folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for pictures and summary.json")
    main(parser.parse_args().out)
