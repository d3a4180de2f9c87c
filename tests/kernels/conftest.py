"""Kernels are interpreted in a process of their own, since that must be decided before they are defined (``make kernels``)."""

import os

collect_ignore = ["test_compiled_only.py" if os.environ.get("TRITON_INTERPRET") == "1" else "test_interpreted.py"]
