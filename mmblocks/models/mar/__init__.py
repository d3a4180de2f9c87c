"""MAR: masked tokens, sampled in any order by a diffusion head."""
