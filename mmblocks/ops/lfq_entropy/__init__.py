"""Entropies of soft choices among all sign vectors."""

from mmblocks.ops.lfq_entropy.reference import Floor, lfq_entropy

__all__ = ["Floor", "lfq_entropy"]
