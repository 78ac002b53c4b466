"""Lists at the end of a command's help: methods, data sets and so on, with the help of their registries."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from typer.core import TyperCommand


def command_with(registries: Mapping[str, str]) -> type[TyperCommand]:
    """Return the class of a command whose help ends in registries: a mapping from a heading to "module:NAME"."""

    class CommandWithLists(TyperCommand):
        def format_epilog(self, ctx: Any, formatter: Any) -> None:
            """Write the lists after the options."""
            for heading, registry in registries.items():
                with formatter.section(heading):
                    formatter.write_dl(list(rows(registry)))

    return CommandWithLists


def rows(registry: str) -> Iterator[tuple[str, str]]:
    """Yield the name of each entry, with its title and its one line of help or the first line of its docstring.

    The registry is imported now: help alone should wait for it.
    """
    module, _, name = registry.partition(":")
    for key, entry in getattr(importlib.import_module(module), name).items():
        if not hasattr(entry, "help"):
            yield key, (inspect.getdoc(entry) or "").partition("\n")[0]
            continue
        named = entry.title.casefold() == key or entry.help.startswith(entry.title)
        yield key, entry.help if named else f"{entry.title}: {entry.help}"
