"""Published checkpoints: tables of tensor names in both directions, and configs that are read whole."""
