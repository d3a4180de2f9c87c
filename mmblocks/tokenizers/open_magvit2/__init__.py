"""Open magvit2."""
