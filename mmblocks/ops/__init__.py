"""Operations behind small interfaces; each imports torch alone, and Triton only when a kernel runs."""

from mmblocks.ops.dispatch import Choice, Impl, using, which

__all__ = ["Choice", "Impl", "using", "which"]
