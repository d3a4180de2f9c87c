"""Published models as wiring of parts; no layers of their own."""
