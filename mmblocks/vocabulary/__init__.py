"""Ids: of text, and of images' codes in a language model's vocabulary."""

from mmblocks.public import lazily

__getattr__, __dir__, __all__ = lazily("vocabulary")
