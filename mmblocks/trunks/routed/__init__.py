"""Decoders with weights, experts or low-rank additions per token."""
