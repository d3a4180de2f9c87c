"""Heads: hidden states to losses and samples."""
