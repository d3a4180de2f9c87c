"""What OmniGen is told, as segments: text and input images, and the image that is made.

Shapes: C channels of a latent, h and w latents.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmblocks.generation.continuous import VectorBlock, VectorGrammar
from mmblocks.sequence.batches import Sample
from mmblocks.sequence.segments import Segment, text, vectors
from mmblocks.sequence.tokens import TokenTable

Prompt = Sequence[Tensor]
"""What a row is conditioned on, in order: text ids (n,), integers, and latents of input images (C, h, w), floating point."""


def check_prompts(prompts: Sequence[Prompt], channels: int, patch_size: int) -> None:
    """Refuses what is no prompt.

    Raises:
        TypeError: an item that is neither ids nor latents.
        ValueError: no prompt, an empty one, or latents of another shape.
    """
    if not prompts:
        raise ValueError("prompts is empty; accepted: at least one")
    for prompt in prompts:
        if not any(item.numel() for item in prompt):
            raise ValueError("a prompt has no tokens; accepted: at least one, such as the id that begins a text")
        for item in prompt:
            if not item.is_floating_point() and item.ndim != 1:
                raise TypeError(f"a prompt has {item.dtype} of shape {tuple(item.shape)}; accepted: ids (n,) or latents (C, h, w)")
            if item.is_floating_point():
                check_latents("an input image", item, channels, patch_size)


def check_latents(name: str, latents: Tensor, channels: int, patch_size: int) -> None:
    """Refuses latents that are not (C, h, w) with sides that are multiples of the patch."""
    shape = tuple(latents.shape)
    if latents.ndim != 3 or shape[0] != channels or shape[1] % patch_size or shape[2] % patch_size or not all(shape):
        raise ValueError(f"{name} is {shape}; accepted: ({channels}, h, w) with sides that are multiples of {patch_size}")


def segments(prompt: Prompt) -> Sample:
    """Text as it is; an input image attends within itself."""
    return [
        vectors(item.movedim(0, -1), input="vision", bidirectional=True) if item.is_floating_point() else text(item.tolist())
        for item in prompt
    ]


def output(latents: Float[Tensor, "C h w"]) -> Segment:
    """The image that is learned."""
    return vectors(latents.movedim(0, -1), input="noised", target="image")


def one_image(size: tuple[int, int]) -> VectorGrammar:
    """An image of that many latents, and nothing else."""
    return VectorGrammar(VectorBlock(begin=None, end=None, size=size, head="image", input="noised", whole=True), vocab_size=1)


def only_the_prompt(queries: TokenTable, keys: TokenTable) -> Bool[Tensor, "B Lq Lk"]:
    """Upstream's cache in its first step: time and image see the prompt alone, not even themselves."""
    seen = ~keys.is_padding[:, None].expand(-1, queries.shape[1], -1)
    return seen & (torch.arange(keys.shape[1], device=seen.device) < keys.shape[1] - queries.shape[1])
