"""Training of the parts: what a loss, an optimizer and a loop add to them."""

from mmblocks.public import lazily

__getattr__, __dir__, __all__ = lazily("training")
