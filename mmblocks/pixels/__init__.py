"""What is done to images before a model sees them, beyond each part's own preprocessing."""
