"""Losses of single rows, entropies and distributions over codes."""
