"""What several parts share: attention, feed-forward layers, normalisation."""
