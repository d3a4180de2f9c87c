"""Visual tokenizers: pixels to codes or latents, and back."""
