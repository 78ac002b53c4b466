"""The command line: `mibfast`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; exit status 2 for bad input, with one line on stderr."""
    try:
        from mibfast.cli.commands import run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "mibfast":
            raise
        print(f"mibfast: error: {error.name} is missing; pip install 'mibfast[train]'", file=sys.stderr)
        sys.exit(2)
    sys.exit(run(sys.argv[1:]))
