"""Losses of single rows."""
