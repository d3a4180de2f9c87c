"""A decoder that drops visual tokens between its layers."""
