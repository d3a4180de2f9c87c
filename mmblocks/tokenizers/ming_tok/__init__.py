"""MingTok, Ming-UniVision's continuous tokenizer."""
