"""Pruned."""
