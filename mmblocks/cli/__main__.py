"""``python -m mmblocks.cli``."""

from mmblocks.cli import main

main()
