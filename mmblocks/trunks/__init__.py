"""Trunks: embeddings and a token table to hidden states."""
