"""Lavit."""
