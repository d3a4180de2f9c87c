"""Reading and writing what a ``Block`` is made of: its config, its tensors, and the layouts of published files."""
