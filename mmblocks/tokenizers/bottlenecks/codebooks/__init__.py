"""What quantizers share: codebooks, their averages over all processes, estimators and losses."""
