"""BAGEL: the model, what its published files are like, and how it is prompted."""
