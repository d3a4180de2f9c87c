"""BAGEL-like: two sets of weights under one attention, one that understands and one that generates."""

from torch import Tensor

import mmblocks as mm
from mmblocks.sequence import TokenTable

from recipes.way import TEXT, Sizes, Way, embed_latents, embed_text, flow_head, framed, of_latents, placed, replies


def by_noise(table: TokenTable) -> Tensor:
    """Noised tokens go to the second expert; text, and images as they are read, to the first."""
    return table.noisy.long()


def bagel_like(sizes: Sizes) -> Way:
    """A flow in the trunk; the tokens after an image attend to a clean copy, which only they can see.

    BAGEL shows images that it has written to itself through a vision encoder, too. Here the clean latents take its place.

    Source: BAGEL (arXiv 2505.14683).
    """
    model = mm.MultimodalModel(
        inputs={"text": embed_text(sizes.dim), "latents": placed(embed_latents(sizes.dim), sizes.dim)},
        trunk=mm.trunks.RoutedDecoder(**sizes.trunk, experts=("understanding", "generation"), route=by_noise),
        outputs={
            "text": mm.LMHead(dim=sizes.dim, vocab_size=TEXT.vocab_size),
            "image": flow_head(sizes.dim, sizes.num_steps),
        },
    )
    return Way(model, "latents", *framed(of_latents), replies(whole=True), {"text": 0.2, "image": 1.0}, guidance=3.0)
