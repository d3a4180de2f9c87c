"""Heads: hidden states to losses and samples."""

from mmblocks.public import lazily

__getattr__, __dir__, __all__ = lazily("heads")
