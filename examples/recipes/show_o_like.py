"""Show-o-like: text one word after the other, images as masked codes that attend to each other, in one trunk."""

from torch import Tensor

import mmblocks as mm
from mmblocks.layers.diffusion.masked_tokens import ConfidenceSampler
from mmblocks.sequence.segments import Segment

from recipes.way import TEXT, Sizes, Way, embed_text, framed, placed, replies


def show_o_like(sizes: Sizes) -> Way:
    """Some codes are hidden and found where they stand. Losses of words and of codes come from one pass over a row.

    Show-o writes words and codes in one vocabulary; here each has its own, which to the trunk is the same.

    Source: Show-o (arXiv 2408.12528).
    """
    hidden = sizes.num_codes
    codes = mm.TextEmbedding(vocab_size=sizes.num_codes + 1, dim=sizes.dim, init_std=0.5)
    head = mm.LMHead(dim=sizes.dim, vocab_size=sizes.num_codes)
    sampler = ConfidenceSampler(num_steps=sizes.num_steps)
    model = mm.MultimodalModel(
        inputs={"text": embed_text(sizes.dim), "codes": placed(codes, sizes.dim)},
        trunk=mm.Decoder(**sizes.trunk),
        outputs={
            "text": mm.LMHead(dim=sizes.dim, vocab_size=TEXT.vocab_size),
            "image": mm.heads.MaskedCodesHead(head=head, mask_id=hidden, sampler=sampler),
        },
    )

    def image(grid: Tensor) -> Segment:
        return mm.codes(grid, input="codes", target="image")

    weights = {"text": 0.5, "image": 1.0}
    return Way(model, "codes", *framed(image), replies(whole=True, input="codes"), weights, guidance=2.0)
