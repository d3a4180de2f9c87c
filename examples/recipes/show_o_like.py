"""Show-o-like: text one word after the other, images as masked codes that attend to each other, in one trunk and one vocabulary."""

from torch import Tensor

import mmblocks as mm
from mmblocks.layers.diffusion.masked_tokens import ConfidenceSampler
from mmblocks.sequence.segments import Segment

from recipes.way import TEXT, Sizes, Way, framed, replies


def show_o_like(sizes: Sizes) -> Way:
    """Some codes are hidden and found where they stand; one more id hides them. Both losses come from one pass over a row.

    Source: Show-o (arXiv 2408.12528).
    """
    first, mask = TEXT.vocab_size, TEXT.vocab_size + sizes.num_codes
    words = mm.LMHead(dim=sizes.dim, vocab_size=mask)
    sampler = ConfidenceSampler(num_steps=sizes.num_steps)
    model = mm.MultimodalModel(
        inputs={"text": mm.TextEmbedding(vocab_size=mask + 1, dim=sizes.dim, init_std=0.5)},
        trunk=mm.Decoder(**sizes.trunk),
        outputs={
            "text": words,
            "image": mm.heads.MaskedCodesHead(head=words, mask_id=mask, first=first, num_codes=sizes.num_codes, sampler=sampler),
        },
    )

    def image(grid: Tensor) -> Segment:
        return mm.codes(grid + first, target="image")

    weights = {"text": 0.5, "image": 1.0}
    return Way(model, "codes", *framed(image), replies(whole=True, input="text"), weights, guidance=2.0, first_code=first)
