"""What several parts share: attention, feed-forward layers, normalisation."""

from mmblocks.public import lazily

__getattr__, __dir__, __all__ = lazily("layers")
