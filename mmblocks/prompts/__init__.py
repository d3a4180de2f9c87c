"""Prompts: messages and pictures as people have them, and how published models spell them."""

from mmblocks.public import lazily

__getattr__, __dir__, __all__ = lazily("prompts")
