"""Titok."""
