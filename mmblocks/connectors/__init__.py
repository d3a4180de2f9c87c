"""Connectors: features of an encoder to features of another width and count, such as a trunk reads."""
