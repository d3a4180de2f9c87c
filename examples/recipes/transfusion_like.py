"""Transfusion-like: one trunk predicts the next word and denoises continuous latents, which attend to each other."""

import mmblocks as mm

from recipes.way import TEXT, Sizes, Way, embed_latents, embed_text, flow_head, framed, of_latents, placed, replies, seen_latents


def transfusion_like(sizes: Sizes) -> Way:
    """What stands after an image attends to it as it was noised, so that a row holds it once. A flow instead of DDPM.

    Images to be named stand in the row without noise; Transfusion noises these too, but less.

    Source: Transfusion (arXiv 2408.11039).
    """
    model = mm.MultimodalModel(
        inputs={"text": embed_text(sizes.dim), "latents": placed(embed_latents(sizes.dim), sizes.dim)},
        trunk=mm.Decoder(**sizes.trunk),
        outputs={
            "text": mm.LMHead(dim=sizes.dim, vocab_size=TEXT.vocab_size),
            "image": flow_head(sizes.dim, sizes.num_steps, context="read"),
        },
    )
    images = framed(of_latents, seen_latents)
    return Way(model, "latents", *images, replies(whole=True), {"text": 0.2, "image": 1.0}, guidance=3.0)
