"""Tokenizers of a vision tower's features: SEED, UniTok, Tar, DualToken."""
