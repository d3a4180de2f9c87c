"""Attention, feed-forward layers and what positions do to them."""
