"""Emu2, Emu2-Chat and Emu2-Gen: text and averaged image features in one LLaMA; prompts, files, and images from its embeddings."""
