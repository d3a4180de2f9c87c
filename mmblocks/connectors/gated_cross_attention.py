"""Flamingo's gated cross-attention, as a connector; ``trunks.gated_cross_attention`` puts such layers into a trunk."""

from mmblocks.layers.gated_cross_attention import GatedCrossAttention

__all__ = ["GatedCrossAttention"]
