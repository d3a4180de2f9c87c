"""MAR: masked tokens, drawn in any order by a diffusion head."""
