"""The nearest code of each vector."""

from mmblocks.ops.nearest_code.reference import Metric, nearest_code

__all__ = ["Metric", "nearest_code"]
