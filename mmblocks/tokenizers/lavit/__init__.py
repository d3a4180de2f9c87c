"""LaVIT's dynamic tokenizer: patches are selected, the others merged into them."""
