"""Connectors: features of an encoder to features of another width and count, such as a trunk reads."""

from mmblocks.public import lazily

__getattr__, __dir__, __all__ = lazily("connectors")
