"""Causal language models of transformers as trunks."""
