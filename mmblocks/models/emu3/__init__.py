"""Emu3 and Emu3.5: the language models, their prompts, and the rules of the authors' generation code."""
