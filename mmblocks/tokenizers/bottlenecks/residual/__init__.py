"""Quantizers that work level by level on what is left."""
