"""Changing loaded models: grafting parts and vocabularies, low-rank adapters, freezing."""
