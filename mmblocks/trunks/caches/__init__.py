"""What a decoder remembers of the tokens it has read."""
