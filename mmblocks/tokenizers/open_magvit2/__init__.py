"""Open-MAGVIT2, of images and of clips."""
