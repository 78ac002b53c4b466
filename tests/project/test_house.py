"""The house: files that one can read at a sitting, and calls whose arguments one can tell apart."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
MOST_LINES = 700
MOST_POSITIONAL = 12


def _sources() -> Iterator[Path]:
    """Files of the package; `mibfast/kernels` is a symbolic link to the first folder."""
    for folder in ("kernels", "mibfast"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            if REPOSITORY / "mibfast" / "kernels" not in path.parents:
                yield path


def _name(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def test_no_file_is_longer_than_one_can_read() -> None:
    lengths = {_name(path): len(path.read_text().splitlines()) for path in _sources()}
    assert len(lengths) > 100
    assert not {name: lines for name, lines in lengths.items() if lines > MOST_LINES}


def test_no_call_has_more_positional_arguments_than_one_can_tell_apart() -> None:
    """A kernel's launch is a call too: its arguments go by keyword, or in groups."""
    calls: dict[str, list[str]] = {}
    for path in _sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and len(node.args) > MOST_POSITIONAL:
                calls.setdefault(_name(path), []).append(f"line {node.lineno}: {len(node.args)}")
    assert not calls


def test_every_launch_of_a_triton_kernel_is_by_keyword() -> None:
    launches = 0
    for path in _sources():
        if path.stem.endswith("triton"):
            for node in ast.walk(ast.parse(path.read_text())):
                # kernel[grid](...): a subscript is called, whose index is a tuple.
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
                    launches += isinstance(node.func.slice, ast.Tuple)
                    assert not (isinstance(node.func.slice, ast.Tuple) and node.args), f"{_name(path)}:{node.lineno}"
    assert launches > 20
