"""TiTok and TA-TiTok: images as one row of tokens."""
