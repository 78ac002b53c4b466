"""Times the rows of the benchmark table in this checkout and in another, step by step in turn.

    python -m benches.checkouts PATH [--rows NAME,..] [--seconds S]

Each checkout has a process of its own, which waits while the other's step runs, so that both see the same machine.
Prints the ratio of medians for each row, above 1 where this checkout is faster, and the quartiles of that of two
steps that follow each other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[1]


class _Checkout:
    """A process that runs steps of rows with the package and the benches of one checkout."""

    def __init__(self, place: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WORKER],
            cwd=place,
            env=os.environ | {"PYTHONPATH": str(place)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, *request: Any) -> Any:
        """Send a request and return the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"mibfast: error: the checkout of {self._process.args} ended, see above")
        return json.loads(line)


_WORKER = """
import json, sys, time
from benches.rows import OURS, rows
step, table = None, rows()
for line in sys.stdin:
    what, name = json.loads(line)
    if what == "rows":
        answer = list(table)
    elif what == "row":
        inputs = table[name].inputs()
        step, answer = table[name].step(OURS, inputs), None
    else:
        started = time.perf_counter()
        step()
        answer = time.perf_counter() - started
    print(json.dumps(answer), flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benches.checkouts", description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="the other checkout")
    parser.add_argument("--rows", help="names with commas between them [default: all that both have]")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each row and checkout")
    options = parser.parse_args()
    new, old = _Checkout(HERE), _Checkout(options.path.resolve())
    there = old.ask("rows", None)
    names = options.rows.split(",") if options.rows else [name for name in new.ask("rows", None) if name in there]
    for name in names:
        for each in (new, old):
            each.ask("row", name)
            # The first compiles, the second warms up.
            each.ask("step", None)
            each.ask("step", None)
        times: list[tuple[float, float]] = []
        ends = time.monotonic() + 2 * options.seconds
        while time.monotonic() < ends or len(times) < 5:
            # Whoever comes second finds the caches of the other, so they take turns.
            first, second = (new, old) if len(times) % 2 else (old, new)
            a, b = first.ask("step", None), second.ask("step", None)
            times.append((a, b) if first is new else (b, a))
        ours, theirs = (statistics.median(x) for x in zip(*times, strict=True))
        quartiles = statistics.quantiles([b / a for a, b in times], n=4)
        print(
            f"{name:44} {theirs / ours:6.3f}  ({quartiles[0]:.3f}-{quartiles[2]:.3f}, {len(times)} steps)", flush=True
        )


if __name__ == "__main__":
    main()
