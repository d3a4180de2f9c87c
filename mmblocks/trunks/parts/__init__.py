"""What the layers of a ``Decoder`` are made of: token mixers, feed-forward parts, norms, linear maps, rotary angles."""
