"""Generation: loops and rules that turn a model's predictions into text and images."""

from mmblocks.public import lazily

__getattr__, __dir__, __all__ = lazily("generation")
