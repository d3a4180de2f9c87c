"""Omnigen."""
