"""What sits between a tokenizer's encoder and decoder: features to codes or latents. Any fits between any two."""
