"""Pipelines: whole models with their tokenizers and prompts, to chat with and to draw with."""

from mmblocks.public import lazily

__getattr__, __dir__, __all__ = lazily("pipelines")
