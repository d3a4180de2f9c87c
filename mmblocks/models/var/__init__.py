"""VAR: images drawn scale by scale."""
