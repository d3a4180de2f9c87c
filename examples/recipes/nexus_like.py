"""Nexus-Gen-like: learned placeholders become an image's embeddings in one pass, which a decoder turns into pixels."""

import mmblocks as mm

from latents import CHANNELS, SIZE
from recipes.way import TEXT, Sizes, Way, embed_latents, embed_text, framed, of_latents, placed, replies, seen_latents


def nexus_like(sizes: Sizes) -> Way:
    """Nothing is random: it writes the mean of what may come. Nexus-Gen's diffusion decoder makes a sharp image of that.

    Placeholders say nothing of an image before it is written, so that images to be named stand in the row themselves.

    Source: Nexus-Gen (arXiv 2504.21356).
    """
    regression = mm.heads.RegressionHead(dim=sizes.dim, target_dim=CHANNELS, bias=True)
    model = mm.MultimodalModel(
        inputs={"text": embed_text(sizes.dim), "latents": placed(embed_latents(sizes.dim), sizes.dim)},
        trunk=mm.Decoder(**sizes.trunk),
        outputs={
            "text": mm.LMHead(dim=sizes.dim, vocab_size=TEXT.vocab_size),
            "image": mm.heads.PlaceholderHead(head=regression, num_tokens=SIZE[0] * SIZE[1], dim=sizes.dim, attends="span"),
        },
    )
    images = framed(of_latents, seen_latents)
    return Way(model, "latents", *images, replies(whole=True), {"text": 0.5, "image": 1.0}, guidance=None)
