"""Emu: text and images as embeddings in one LLaMA; its prompts, its files, and images from its embeddings."""
