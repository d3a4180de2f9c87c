"""Routed."""
