"""Visual tokenizers: pixels to codes or latents, and back."""

from mmblocks.public import lazily

__getattr__, __dir__, __all__ = lazily("tokenizers")
