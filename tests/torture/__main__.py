"""Try to break the package: `python -m torture [TOOL ...] [--seed S] [--calls N] [--minutes T] [--only CASE]`.

Prints each finding with the line that makes it again, and a summary by kind; exit status 1 where there is any.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import functools
import importlib
import logging
import os
import queue
import re
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from torture import supervision
from torture.runs import Place
from torture.supervision import Finding

# The share of the calls that each has at most; in processes of their own those of `_CALLS`.
_SHARES = {"public_api": 0.67, "kernels": 0.33, "corruption": 1.0, "faults": 1.0, "kills": 0.003}
_CALLS = ("public_api", "kernels")
# Of one kind and place are printed.
_PRINTED = 3


def _of_calls(tool: str, options: argparse.Namespace, calls: int, ends: float) -> Iterator[Finding | int]:
    """Cases of a tool that works in processes of its own, as many at a time as there are jobs."""
    # Freed memory is given back at once, so that a guard page stands where it ended.
    os.environ.update(MIBFAST_BUFFER_CACHE="0", OMP_NUM_THREADS="2", OMP_WAIT_POLICY="passive")
    first, last = (0, calls) if options.only is None else (options.only, options.only + 1)
    jobs = min(options.jobs, last - first)
    found: queue.Queue[Finding | int | None] = queue.Queue()

    def work(job: int) -> None:
        bounds = [first + (last - first) * each // jobs for each in (job, job + 1)]
        try:
            for each in supervision.findings(tool, options.seed, *bounds, limit=options.limit, ends=ends):
                found.put(each)
        finally:
            found.put(None)

    for job in range(jobs):
        threading.Thread(target=work, args=(job,), daemon=True).start()
    while jobs:
        each = found.get()
        if each is None:
            jobs -= 1
        else:
            yield each


@functools.cache
def _place() -> Place:
    """Make the runs that are tried, once, and import what children would each take seconds for."""
    for name in (
        "lightning.pytorch",
        "matplotlib.pyplot",
        "sklearn.linear_model",
        "mibfast.train.evaluation",
    ):
        importlib.import_module(name)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    folder = tempfile.TemporaryDirectory(prefix="torture-")
    atexit.register(folder.cleanup)
    return Place(Path(folder.name))


def _of_runs(tool: str, options: argparse.Namespace, calls: int) -> Iterator[Finding | int]:
    done = 0
    for each in importlib.import_module(f"torture.{tool}").findings(_place(), options.seed, options.only):
        yield each
        done += isinstance(each, int)
        if done >= calls:
            return


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m torture", description=__doc__.splitlines()[0])
    parser.add_argument("tools", nargs="*", metavar="TOOL", help=f"of {', '.join(_SHARES)} [default: all]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calls", type=int, default=20_000, help="fuzzed calls, and at most so many of all else")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="for each tool, at most")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for a case before it hangs")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes at a time")
    parser.add_argument("--only", type=int, help="the case of this number alone")
    options = parser.parse_args()
    if unknown := set(options.tools) - set(_SHARES):
        parser.error(f"no tool {', '.join(sorted(unknown))}; there are {', '.join(_SHARES)}")
    total = 0
    for tool in options.tools or _SHARES:
        started, kinds, seen, done = time.monotonic(), Counter[str](), Counter[str](), 0
        ends = started + 60 * options.minutes
        calls = max(1, round(options.calls * _SHARES[tool]))
        cases = _of_calls(tool, options, calls, ends) if tool in _CALLS else _of_runs(tool, options, calls)
        with contextlib.closing(cases):
            for each in cases:
                if isinstance(each, int):
                    done += 1
                    if time.monotonic() > ends:
                        break
                    continue
                kinds[each.kind] += 1
                # Of one kind and place, or of one operation where no place is known.
                place = re.search(r"\(in ([^)]*)\)$|(File [^)]*)\)$", each.text)
                key = f"{each.kind} {place[0] if place else re.split(r'[(:,]', each.text)[0]}"
                seen[key] += 1
                if seen[key] <= _PRINTED:
                    print(each, flush=True)
        total += sum(kinds.values())
        listed = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common()) or "nothing found"
        print(f"-- {tool}: {done} cases in {time.monotonic() - started:.0f} s: {listed}", flush=True)
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
