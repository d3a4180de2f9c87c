"""VAR's multi-scale tokenizer."""
