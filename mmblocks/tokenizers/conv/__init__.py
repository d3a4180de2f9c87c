"""Convolutional encoders and decoders, and their evaluation stripe by stripe on large images."""
