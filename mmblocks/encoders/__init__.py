"""Encoders: pixels to features on a grid."""
