"""Emu3's tokenizer of images and clips."""
