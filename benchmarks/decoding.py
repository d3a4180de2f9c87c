"""What a guided step of image codes costs beside the same layers and head alone, on the same cache.

    python -m benchmarks.decoding --threads 1                       # 1, 8 and 64 images, 64 to 4,000 tokens in the cache
    python -m benchmarks.decoding 8x1000 text --threads 1 --repeats 15

One side is a step of ``generate_ids``: the trunk with its mask and positions, the head, guidance, grammar and choice. The other
side runs the same layers on the same cache under no mask, with angles that are there already, and computes the logits of the codes;
it is what no bookkeeping could go below. The guided prompt is twice as long as the other one, so that half of the rows are
padded. Weights are random; the cache is filled with a prompt that no layer has read, which takes no time.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import Comparison, Step, check, main
from mmblocks import Decoder, Generation, GridGrammar, LMHead, MultimodalModel, TextEmbedding, TokenTable, text
from mmblocks.generation.autoregressive import Step as Written
from mmblocks.generation.autoregressive import generate_ids
from mmblocks.layers.categorical import GREEDY
from mmblocks.sequence.masks import Causal
from mmblocks.trunks.caches.kv_cache import KVCache
from mmblocks.trunks.context import ForwardContext
from mmblocks.vocabulary import CodeIds, GridFormat

SIZES = ((1, 64), (1, 1000), (1, 4000), (8, 64), (8, 1000), (8, 4000), (64, 64), (64, 1000), (64, 2000))
"""Images, and tokens in the cache."""

DIM, LAYERS, CODES, SIDE = 256, 4, 4096, 64
"""Width and depth of the trunk, codes, and the height and width of an image in tokens."""

TOKENS, ROOM = 4, 400
"""Tokens of one timed step, and how many the cache has room for after the prompt."""

CODE_IDS = {
    "": CodeIds(sizes=(CODES,), first=64),
    "scattered": CodeIds(sizes=(CODES,), table=tuple(range(64, 64 + 2 * CODES, 2))),  # no two ids are neighbours
}


class Unread(nn.Module):
    """A trunk that takes a prompt without reading it: the cache holds zeros in its place."""

    def __init__(self, trunk: Decoder) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, embeds: Tensor, table: TokenTable, cache: KVCache, *, mask: Any = None) -> Tensor:
        """States of single tokens; a prompt is only noted."""
        if table.shape[1] == 1:
            found: Tensor = self.trunk(embeds, table, cache, mask=mask)
            return found
        cache.append(table)
        return embeds

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """The trunk's own."""
        return self.trunk.new_cache(batch, capacity)


class Run:
    """One generation, and the layers alone on its cache."""

    def __init__(self, images: int, length: int, ids: str = "") -> None:
        torch.manual_seed(0)
        codes = CODE_IDS[ids]
        trunk = Decoder(dim=DIM, num_layers=LAYERS, num_heads=8, num_kv_heads=2, mlp_dim=3 * DIM)
        embedding, head = TextEmbedding(vocab_size=codes.stop, dim=DIM), LMHead(dim=DIM, vocab_size=codes.stop)
        self.model = MultimodalModel(inputs={"text": embedding}, trunk=Unread(trunk), outputs={"lm": head}).eval()
        self.trunk, self.head, self.images, self.codes = trunk, head, images, codes
        form = GridFormat(
            begin=32, image=33, row_end=34, closing=(35,), digits=tuple(range(10)), times=10, codes=codes, last_row_end=True
        )
        opening = form.head(SIDE, SIDE)
        prompts = [[text([40] * (count - len(opening)) + opening)] for count in (length, length // 2)]
        prompts = [prompt for prompt in prompts for _ in range(images)]
        self.cache = self.model.trunk.new_cache(len(prompts), length + ROOM)
        batch = self.model.batch_builder(None)(prompts, padding="left")
        options = Generation(max_tokens=ROOM, sampling=GREEDY, guidance=3.0)
        self.steps: Iterator[Written] = generate_ids(
            self.model, batch, GridGrammar(form, size=(SIDE, SIDE)), options, cache=self.cache
        )
        for _ in range(2):
            next(self.steps)
        self._prepare_alone()

    @torch.no_grad()
    def _prepare_alone(self) -> None:
        self.embeds = torch.randn(2 * self.images, 1, DIM)
        self.column = self.cache.table.slice(self.cache.length - 1, self.cache.length)
        context = ForwardContext(self.column, self.cache.table, Causal(), cache=self.cache)
        for layer in self.trunk.layers:
            layer.prepare(context)
        self.angles = context.angles

    def ours(self) -> Tensor:
        """Some tokens of the generation."""
        for _ in range(TOKENS):
            step = next(self.steps)
        return step.ids

    @torch.no_grad()
    def alone(self) -> Tensor:
        """As many passes through layers and head."""
        for _ in range(TOKENS):
            context = ForwardContext(self.column, self.column, Causal(), cache=self.cache)
            context.angles = self.angles
            self.cache.length += 1  # the place of the next token, which the generation will write
            hidden = self.trunk.norm(self.trunk.run(self.embeds, context))
            self.cache.length -= 1
            logits = self.head.logits(hidden[:, 0], self.codes.start, self.codes.stop)
        return logits


def comparison(images: int, length: int, ids: str = "") -> Comparison:
    """One size."""
    run = Run(images, length, ids)

    def difference() -> str:
        check(bool((run.ours() >= 0).all()), "no codes were written")
        return f"{TOKENS} tokens each; the cache holds {run.cache.length} tokens"

    def side(step: Step) -> Step:
        return step

    sides = {"ours": partial(side, run.ours), "layers and head alone": partial(side, run.alone)}
    title = f"a guided step of {images} images, {length} tokens in the cache, through {LAYERS} layers of width {DIM}"
    return Comparison(f"{title}{', ids that are no neighbours' * bool(ids)}", sides, difference, target=1 / 1.15, memory=False)


def on(device: str, images: int, length: int, ids: str = "") -> Comparison:
    """One size, on the processor."""
    check(device == "cpu", "this comparison is of the processor: --device cpu")
    return comparison(images, length, ids)


COMPARISONS = {f"{images}x{length}": partial(on, images=images, length=length) for images, length in SIZES}
ON_REQUEST = {"scattered": partial(on, images=8, length=1000, ids="scattered")}

if __name__ == "__main__":
    main("benchmarks.decoding", COMPARISONS, __doc__, on_request=ON_REQUEST)
