"""Embedders: text ids, images or vectors to the tokens a trunk reads."""

from mmblocks.public import lazily

__getattr__, __dir__, __all__ = lazily("embedders")
