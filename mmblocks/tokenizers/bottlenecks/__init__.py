"""What sits between a tokenizer's encoder and decoder: features to codes or latents. Any fits between any two."""

from mmblocks.public import lazily

__getattr__, __dir__, __all__ = lazily("tokenizers.bottlenecks")
