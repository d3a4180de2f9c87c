"""Trunks: embeddings and a token table to hidden states."""

from mmblocks.public import lazily

__getattr__, __dir__, __all__ = lazily("trunks")
