"""Embedders: text ids, images or vectors to the tokens a trunk reads."""
