"""VAR: images scale by scale."""
