"""Training of the parts: what a loss, an optimizer and a loop add to them."""
