"""Images as pixels, as grids of tokens, and resized in between."""
