"""Residual."""
