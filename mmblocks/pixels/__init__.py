"""What is done to images before a model sees them, beyond each part's own preprocessing."""

from mmblocks.public import lazily

__getattr__, __dir__, __all__ = lazily("pixels")
