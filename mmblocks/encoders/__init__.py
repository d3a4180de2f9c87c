"""Encoders: pixels to features on a grid."""

from mmblocks.public import lazily

__getattr__, __dir__, __all__ = lazily("encoders")
