"""Reading and writing what a ``Block`` is made of: its config, its tensors, and the layouts of published files."""

from mmblocks.public import lazily

__getattr__, __dir__, __all__ = lazily("checkpoints")
