"""Chameleon and what was built on it, Anole and Lumina-mGPT: the model, and how each of them is prompted."""
