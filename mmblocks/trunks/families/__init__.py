"""Published families of language models as a ``Decoder``: configs as descriptions of layers, and names of tensors."""
