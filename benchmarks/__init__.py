"""Scripts that measure; see ``measure.py`` for how."""
