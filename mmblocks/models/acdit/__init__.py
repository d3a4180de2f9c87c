"""Acdit."""
