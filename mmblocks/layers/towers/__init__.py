"""Vision transformers that encoders and tokenizers share."""
