"""VARGPT-like: text one word after the other, images scale by scale, from one token to 7 x 7, in one trunk."""

from torch import Tensor

import mmblocks as mm
from mmblocks.sequence.segments import Segment

from recipes.way import BEGIN, CODE_DIM, END, SCALES, STOP, TEXT, Sizes, Way, embed_text, framed, placed


def vargpt_like(sizes: Sizes) -> Way:
    """Each scale is written in one pass, told by what the coarser ones add up to; what is read of scales stays in the row.

    That is all but the last scale, so that images to be named stand in the row as what all scales add up to. VARGPT reads these
    through a vision encoder, and writes scales in a transformer of its own after the language model.

    Source: VARGPT (arXiv 2501.12327).
    """
    options = {"num_codes": sizes.num_codes, "dim": CODE_DIM, "scales": SCALES}
    quantizer = sizes.quantizer or mm.tokenizers.bottlenecks.MultiScaleQuantizer(**options)
    features = mm.connectors.MLPProjector(in_dim=CODE_DIM, dim=sizes.dim, num_layers=2)
    image = mm.heads.NextScaleHead(dim=sizes.dim, quantizer=quantizer, temperature=0.8)
    model = mm.MultimodalModel(
        inputs={"text": embed_text(sizes.dim), "features": placed(features, sizes.dim)},
        trunk=mm.Decoder(**sizes.trunk),
        outputs={"text": mm.LMHead(dim=sizes.dim, vocab_size=TEXT.vocab_size), "image": image},
    )

    def of_scales(codes: Tensor) -> Segment:
        """The codes of all scales, coarse first, as the head is to write them."""
        return mm.codes(codes, target="image")

    def seen_map(codes: Tensor) -> Segment:
        """What they add up to, to be read alone."""
        whole = quantizer.lookup(codes[None].to(quantizer.codes.device))[0]
        return mm.vectors(whole.detach().cpu(), input="features", bidirectional=True)

    block = mm.generation.VectorBlock(begin=BEGIN, end=END, size=(image.span.count(()),), head="image", input="text", whole=True)
    grammar = mm.generation.VectorGrammar(block, vocab_size=TEXT.vocab_size, stop=(STOP,))
    return Way(model, "scales", *framed(of_scales, seen_map), grammar, {"text": 0.5, "image": 1.0}, guidance=2.0)
