"""The nearest code of each vector."""

from mmblocks.ops.nearest_code.reference import nearest_code

__all__ = ["nearest_code"]
