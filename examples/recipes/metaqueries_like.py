"""MetaQueries-like: the states of learned queries tell a small image generator what to make, in pixels."""

from torch import Tensor

import mmblocks as mm
from mmblocks.sequence.segments import Segment

from recipes.way import BEGIN, END, STOP, TEXT, Sizes, Way, embed_text, framed

SIDE = 28
DOWN, UP = ["DownBlock2D", "CrossAttnDownBlock2D"], ["CrossAttnUpBlock2D", "UpBlock2D"]


def metaqueries_like(sizes: Sizes) -> Way:
    """Words by the trunk, pixels by a UNet of diffusers, both learned together; MetaQueries keeps the language model as it is.

    The queries stay in the row: they say what was told and not what was made of it, so that images to be named are read as patches.

    Source: MetaQueries (arXiv 2504.06256).
    """
    channels = [sizes.dim // 4, sizes.dim // 2]
    blocks = {"down_block_types": DOWN, "up_block_types": UP, "block_out_channels": channels, "layers_per_block": 1}
    inside = {"cross_attention_dim": sizes.dim, "attention_head_dim": 16, "norm_num_groups": 8}
    network = mm.pixels.DiffusersDenoiser(
        kind="UNet2DConditionModel", arguments={"in_channels": 3, "out_channels": 3, **blocks, **inside}
    )
    sampler = mm.layers.DiffusersSampler(scheduler="FlowMatchEulerDiscreteScheduler", num_steps=sizes.num_steps)
    generator = mm.pixels.StateGenerator(network=network, sampler=sampler)
    model = mm.MultimodalModel(
        inputs={"text": embed_text(sizes.dim), "pixels": mm.embedders.LinearPatchEmbedding(dim=sizes.dim, patch_size=4)},
        trunk=mm.Decoder(**sizes.trunk),
        outputs={
            "text": mm.LMHead(dim=sizes.dim, vocab_size=TEXT.vocab_size),
            "image": mm.heads.GeneratorHead(dim=sizes.dim, num_queries=8, generator=generator),
        },
    )
    block = mm.generation.VectorBlock(begin=BEGIN, end=END, size=(SIDE, SIDE), head="image", input="pixels", whole=True)
    grammar = mm.generation.VectorGrammar(block, vocab_size=TEXT.vocab_size, stop=(STOP,))
    return Way(model, "pixels", *framed(of_pixels, seen_pixels), grammar, {"text": 0.5, "image": 1.0}, guidance=2.0)


def of_pixels(pixels: Tensor) -> Segment:
    """Pixels that the generator is to make."""
    return mm.image(pixels, target="image")


def seen_pixels(pixels: Tensor) -> Segment:
    """Pixels that are read alone."""
    return mm.image(pixels, input="pixels", bidirectional=True)
