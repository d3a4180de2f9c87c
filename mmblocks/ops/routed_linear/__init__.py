"""A linear map per group of rows, each row multiplied by its own group's weight alone."""

from mmblocks.ops.routed_linear.reference import RowGroups, group_rows, routed_linear

__all__ = ["RowGroups", "group_rows", "routed_linear"]
