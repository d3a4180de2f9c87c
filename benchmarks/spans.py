"""What a pass of in-trunk denoising costs beside a forward pass of the span alone, on the same cache.

    python -m benchmarks.spans --threads 1                # spans of 64 and 256 tokens after prompts of 64 to 1,000 tokens
    python -m benchmarks.spans 1x256x64 --threads 1       # images x tokens of the prompt x tokens of the span

One side is a pass of ``generate_ids`` over a span: embeddings and time, table, mask, the trunk, the head's prediction, and the step
of the sampler. The other side hands the same embeddings and table to the trunk, on the same cache with the prompt in it. Weights
are random.
"""

from functools import partial

import torch
from torch import Tensor

from benchmarks.measure import Comparison, Step, check, main
from mmblocks import Decoder, Generation, MultimodalModel, TextEmbedding, text
from mmblocks.generation import VectorBlock, VectorGrammar
from mmblocks.generation.autoregressive import generate_ids
from mmblocks.generation.span_writing import Shown
from mmblocks.heads import SpanDenoisingHead
from mmblocks.layers import DiffusersSampler
from mmblocks.sequence.tokens import TokenTable
from mmblocks.trunks.caches.kv_cache import KVCache

SIZES = ((1, 64, 64), (1, 256, 64), (1, 1000, 256), (8, 256, 64))
"""Images, tokens of the prompt, tokens of the span."""

DIM, LAYERS, CHANNELS, STEPS = 256, 4, 16, 1000
"""Width and depth of the trunk, channels of the latents, and passes over a span, of which a few are timed."""


class Watched(Decoder):
    """A decoder that remembers what it was last given."""

    last: tuple[Tensor, TokenTable, KVCache]

    def forward(self, embeds: Tensor, table: TokenTable, cache: KVCache | None = None, **options: object) -> Tensor:  # type: ignore[override]
        """As a decoder's."""
        if cache is not None:
            self.last = (embeds, table, cache)
        return super().forward(embeds, table, cache, **options)  # type: ignore[arg-type]


class Run:
    """One generation that is within a span, and its trunk alone."""

    def __init__(self, images: int, length: int, tokens: int) -> None:
        torch.manual_seed(0)
        sampler = DiffusersSampler(scheduler="FlowMatchEulerDiscreteScheduler", num_steps=STEPS)
        self.trunk = Watched(dim=DIM, num_layers=LAYERS, num_heads=4, mlp_dim=3 * DIM)
        model = MultimodalModel(
            inputs={"text": TextEmbedding(vocab_size=64, dim=DIM), "latents": torch.nn.Linear(CHANNELS, DIM)},
            trunk=self.trunk,
            outputs={"image": SpanDenoisingHead(dim=DIM, channels=CHANNELS, sampler=sampler)},
        ).eval()
        block = VectorBlock(begin=7, end=None, size=(tokens // 8, 8), head="image", input="latents", whole=True)
        batch = model.batch_builder()([[text([1] * (length - 1) + [7])]] * images, padding="left")
        options = Generation(generator=0, previews=True)
        self.images = images
        self.passes = generate_ids(model, batch, VectorGrammar(block, vocab_size=64), options)
        self.ours()

    def ours(self) -> Tensor:
        """One pass, up to the next preview; a preview comes for each image."""
        for _ in range(self.images):
            shown = next(self.passes)
        check(isinstance(shown, Shown), "the span was finished")
        return self.trunk.norm.weight

    @torch.no_grad()
    def alone(self) -> Tensor:
        """The trunk on the same tokens."""
        embeds, table, cache = self.trunk.last
        hidden: Tensor = Decoder.forward(self.trunk, embeds, table, cache)
        cache.forget(table.shape[1])
        return hidden


def comparison(images: int, length: int, tokens: int) -> Comparison:
    """One size."""
    run = Run(images, length, tokens)
    run.ours()

    def difference() -> str:
        check(bool(run.alone().isfinite().all()), "states are not finite")
        return f"the cache holds {run.trunk.last[2].length} tokens"

    def side(step: Step) -> Step:
        return step

    sides = {"ours": partial(side, run.ours), "the trunk alone": partial(side, run.alone)}
    title = f"a pass over spans of {tokens} tokens, {images} images, {length} tokens before, {LAYERS} layers of width {DIM}"
    return Comparison(title, sides, difference, target=1 / 1.1, memory=False)


def on(device: str, images: int, length: int, tokens: int) -> Comparison:
    """One size, on the processor."""
    check(device == "cpu", "this comparison is of the processor: --device cpu")
    return comparison(images, length, tokens)


COMPARISONS = {f"{a}x{b}x{c}": partial(on, images=a, length=b, tokens=c) for a, b, c in SIZES}

if __name__ == "__main__":
    main("benchmarks.spans", COMPARISONS, __doc__)
