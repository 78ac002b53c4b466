"""Output of commands: tables, and how to go on after an interruption."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mibfast._termination import Terminated


def show(title: str, tables: list[Any], note: str) -> None:
    """Print a title, tables and a note, 160 columns wide where stdout is no terminal."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = 160
    console.print(title)
    for table in tables:
        console.print(table)
    console.print(note, style="dim", soft_wrap=True)


@contextmanager
def resumable(begun: Path, how: str) -> Iterator[None]:
    """Say how to go on where a command is interrupted after this file was written."""
    try:
        yield
    except (KeyboardInterrupt, Terminated):
        if begun.exists():
            print(f"\nstopped; {how} goes on", file=sys.stderr)
        raise


def averaged_over(seeds: int, folder: Path) -> str:
    """Return the note below a table of means over seeds."""
    return f"± the standard deviation over {seeds} seeds; written to {folder}"
