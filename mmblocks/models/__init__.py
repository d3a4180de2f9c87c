"""Published models as wiring of parts; no layers of their own."""

from mmblocks.public import lazily

__getattr__, __dir__, __all__ = lazily("models")
