"""Cross entropy of a linear map's logits, which are never all held."""

from mmblocks.ops.linear_cross_entropy.reference import Reduction, linear_cross_entropy, linear_log_prob

__all__ = ["Reduction", "linear_cross_entropy", "linear_log_prob"]
