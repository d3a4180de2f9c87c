"""Noise paths, schedules and samplers, and small networks that denoise tokens."""
