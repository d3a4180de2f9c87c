"""VARGPT-like: text one word after the other, images scale by scale, from one token to 7 x 7, in one trunk."""

from torch import Tensor

import mmblocks as mm
from mmblocks.sequence.segments import Segment

from recipes.way import BEGIN, END, SCALES, STOP, TEXT, Sizes, Way, embed_text, framed


def vargpt_like(sizes: Sizes) -> Way:
    """Each scale is written in one pass, told by what the coarser ones add up to; what is read of scales stays in the row.

    VARGPT writes scales in a transformer of its own after the language model, and reads images through a vision encoder. Here one
    trunk does both, and reads the scales themselves.

    Source: VARGPT (arXiv 2501.12327).
    """
    quantizer = sizes.quantizer or mm.tokenizers.bottlenecks.MultiScaleQuantizer(num_codes=sizes.num_codes, dim=16, scales=SCALES)
    image = mm.heads.NextScaleHead(dim=sizes.dim, quantizer=quantizer, temperature=0.8)
    model = mm.MultimodalModel(
        inputs={"text": embed_text(sizes.dim)},
        trunk=mm.Decoder(**sizes.trunk),
        outputs={"text": mm.LMHead(dim=sizes.dim, vocab_size=TEXT.vocab_size), "image": image},
    )
    block = mm.generation.VectorBlock(begin=BEGIN, end=END, size=(image.span.count(()),), head="image", input="text", whole=True)
    grammar = mm.generation.VectorGrammar(block, vocab_size=TEXT.vocab_size, stop=(STOP,))
    return Way(model, "scales", *framed(of_scales), grammar, {"text": 0.5, "image": 1.0}, guidance=2.0)


def of_scales(codes: Tensor) -> Segment:
    """The codes of all scales, coarse first, as a head is to write them."""
    return mm.codes(codes, target="image")
