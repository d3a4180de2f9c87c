"""Ming tok."""
