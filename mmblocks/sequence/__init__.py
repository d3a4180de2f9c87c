"""Rows of tokens: segments and batches, the token table, and positions and masks as functions of it."""

from mmblocks.public import lazily

__getattr__, __dir__, __all__ = lazily("sequence")
