"""One token after the other: codes as words of one vocabulary (Emu3), and continuous latents (Orthus). What others compare with."""

from torch import Tensor

import mmblocks as mm
from mmblocks.sequence.segments import Segment

from latents import CHANNELS, SIZE
from recipes.way import BEGIN, END, STOP, TEXT, Sizes, Way, embed_latents, embed_text, framed, of_latents, replies


def emu3_like(sizes: Sizes) -> Way:
    """Codes are ids like any others: one embedding, one head, one loss.

    Source: Emu3 (arXiv 2409.18869).
    """
    codes = mm.vocabulary.CodeIds(sizes=(sizes.num_codes,), first=TEXT.vocab_size)
    form = mm.GridFormat(begin=BEGIN, closing=(END,), codes=codes, fixed_size=SIZE)
    model = mm.MultimodalModel(
        inputs={"text": mm.TextEmbedding(vocab_size=codes.stop, dim=sizes.dim, init_std=0.5)},
        trunk=mm.Decoder(**sizes.trunk),
        outputs={"text": mm.LMHead(dim=sizes.dim, vocab_size=codes.stop)},
    )

    def written(grid: Tensor) -> list[Segment]:
        return [mm.codes(grid, form, target="text", structure=True)]

    def read(grid: Tensor) -> list[Segment]:
        return [mm.codes(grid, form, target="text")]

    return Way(model, "codes", written, read, mm.GridGrammar(form, stop=(STOP,)), {"text": 1.0}, guidance=2.0)


def orthus_like(sizes: Sizes) -> Way:
    """A small network denoises each latent, told by the state before it.

    Source: Orthus (arXiv 2412.00127).
    """
    head = {"width": sizes.dim, "num_blocks": 3, "repeats": 4, "num_steps": 2 * sizes.num_steps}
    model = mm.MultimodalModel(
        inputs={"text": embed_text(sizes.dim), "latents": embed_latents(sizes.dim)},
        trunk=mm.Decoder(**sizes.trunk),
        outputs={
            "text": mm.LMHead(dim=sizes.dim, vocab_size=TEXT.vocab_size),
            "image": mm.heads.OrthusDiffusionHead(dim=sizes.dim, token_dim=CHANNELS, **head),
        },
    )
    return Way(model, "latents", *framed(of_latents), replies(whole=False), {"text": 0.5, "image": 1.0}, guidance=3.0)
