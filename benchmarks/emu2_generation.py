"""An image's embeddings written on a cache, beside the authors' way: the whole row read again for each of them.

    python -m benchmarks.emu2_generation --threads 1            # 64 embeddings after prompts of one image and of four
    python -m benchmarks.emu2_generation 1x100 --threads 1      # images x tokens of the prompt

Both sides use the same ``Emu2`` with random weights. What they write is compared in float64: a random model that reads what it
wrote multiplies any rounding from embedding to embedding, in float32 up to some hundredths at the last of them. The prompt is a
text, after images where it is long enough for some, and the image tower is no part of what is timed: features are handed in.
Upstream reads the prompt and the embeddings so far in every step; it tokenizes the prompt again too, which is left out here.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.measure import Comparison, Step, check, main
from mmblocks import text, vectors
from mmblocks.heads import RegressionHead
from mmblocks.models import Emu2
from mmblocks.models.emu2.format import EMU2
from mmblocks.sequence.segments import Segment

SIZES = ((1, 100), (1, 300), (4, 100))
"""Images that are written at once, and tokens of the prompt."""

DIM, LAYERS, CHANNELS, TOKENS = 512, 8, 256, 64
"""Width and depth of the trunk, width of the embeddings, and how many an image has."""


class Run:
    """One model and its prompts."""

    def __init__(self, images: int, length: int, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        self.dtype = dtype
        vision = {"image_size": (112, 112), "dim": CHANNELS, "num_layers": 1, "num_heads": 4, "mlp_dim": CHANNELS}
        sizes = {"vocab_size": EMU2.end + 1, "dim": DIM, "num_layers": LAYERS, "num_heads": 8, "mlp_dim": 1376}
        self.model = Emu2(**sizes, num_tokens=TOKENS, frame_tokens=TOKENS, vision=vision).eval().to(dtype)
        self.prompts = [self._prompt(length) for _ in range(images)]

    def _prompt(self, length: int) -> list[Segment]:
        count, words = divmod(length - 1, TOKENS + 2)
        segments: list[Segment] = [text([1])]
        for _ in range(count):
            shown = vectors(torch.randn(TOKENS, CHANNELS).to(self.dtype), input="embeddings")
            segments += [text([EMU2.begin]), shown, text([EMU2.end])]
        return [*segments, text([40] * words)] if words else segments

    def ours(self) -> Tensor:
        """On a cache."""
        return self.model.embeddings(self.prompts)

    @torch.no_grad()
    def again(self) -> Tensor:
        """The whole row for each embedding."""
        head, model = self.model.outputs["embeddings"], self.model
        check(isinstance(head, RegressionHead), "the head is no RegressionHead")
        build, up = model.batch_builder(), model.inputs["embeddings"]
        prompt = build([[*one, text([EMU2.begin])] for one in self.prompts], learn=False)
        embeds = model.embed(prompt)
        found = embeds.new_zeros(len(self.prompts), 0, CHANNELS)
        for count in range(TOKENS):
            row = torch.cat([embeds, up(found)], dim=1) if count else embeds
            table = prompt.table.text(*row.shape[:2])
            hidden = model.trunk(row, table)
            found = head.sample(hidden[:, -1 - count :])  # all of them anew, as upstream has it
        return found


def comparison(images: int, length: int) -> Comparison:
    """One size."""
    run = Run(images, length)

    def difference() -> str:
        exact = Run(images, length, torch.float64)
        ours, again = exact.ours(), exact.again()
        largest = float((ours - again).abs().max() / again.abs().max())
        check(largest < 1e-8, f"embeddings differ by {largest:.1e} of their largest value")
        return f"in float64 embeddings differ by at most {largest:.1e} of the largest"

    def side(step: Callable[[], Tensor]) -> Step:
        return step

    sides = {"ours": partial(side, run.ours), "the row read again": partial(side, run.again)}
    title = f"Emu2: {TOKENS} embeddings of {images} images after {length} tokens, {LAYERS} layers of width {DIM}"
    return Comparison(title, sides, difference, target=10, memory=False)


def on(device: str, images: int, length: int) -> Comparison:
    """One size, on the processor."""
    check(device == "cpu", "this comparison is of the processor: --device cpu")
    return comparison(images, length)


COMPARISONS = {f"{a}x{b}": partial(on, images=a, length=b) for a, b in SIZES}

if __name__ == "__main__":
    main("benchmarks.emu2_generation", COMPARISONS, __doc__)
