"""The command ``mmblocks``: list, info, convert, verify, tokenize, reconstruct, embed, plan, chat, draw.

Exit codes: 0 done; 1 something went wrong, or did not verify, and one sentence on the standard error says what; 2 wrong usage;
130 interrupted. With ``--json`` the standard output holds one JSON value and nothing else.
"""

import sys

__all__ = ["main"]


def main() -> None:
    """Runs the command that ``sys.argv`` names."""
    try:
        from mmblocks.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit(f"the command line needs {error.name}: pip install 'mmblocks[cli]'")
    app()
