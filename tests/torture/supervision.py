"""Runs cases in a process of their own, so that a crash or a hang is a finding and not the end.

A tool is a module with `draw(seed, number)`, which makes one case of random numbers of its own. The worker is started
anew rather than forked: a forked child has no OpenMP threads, and would run another path than users do.
"""

from __future__ import annotations

import faulthandler
import importlib
import multiprocessing
import os
import resource
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Address space of a worker: a request for more is an error to be seen, and not the end of the machine.
LARGEST_MEMORY = 6 * 2**30
# Of seconds, beyond a case's own: before the first one come imports.
_START = 60.0


@dataclass(frozen=True)
class Case:
    """What is tried, in words, and how: `run` returns the kind of a finding and what was found, or None."""

    text: str
    run: Callable[[], tuple[str, str] | None]


@dataclass(frozen=True)
class Finding:
    kind: str
    text: str
    tool: str
    seed: int
    number: int

    def __str__(self) -> str:
        call = f"python -m torture {self.tool} --seed {self.seed} --only {self.number}"
        return f"{self.kind}: {self.text}\n    PYTHONPATH=.:tests .venv/bin/{call}"


def findings(tool: str, seed: int, first: int, last: int, *, limit: float, ends: float) -> Iterator[Finding | int]:
    """Run the cases from first to last, and yield findings, and the number of each case that is done.

    A case has `limit` seconds. None is waited for once `time.monotonic()` is past `ends`.
    """
    spawn = multiprocessing.get_context("spawn")
    while first < last and time.monotonic() < ends:
        with tempfile.TemporaryDirectory(prefix="torture-") as folder:
            ours, theirs = spawn.Pipe(duplex=False)
            worker = spawn.Process(target=_work, args=(tool, seed, first, last, folder, theirs))
            worker.start()
            theirs.close()
            text = f"case {first}"
            try:
                while time.monotonic() < ends:
                    if not ours.poll(limit + _START):
                        kind, how = "hang", f"nothing for {limit:g} s"
                        break
                    what = ours.recv()
                    if isinstance(what, str):
                        text = what
                        continue
                    if what is not None:
                        yield Finding(what[0], f"{text}: {what[1]}", tool, seed, first)
                    yield first
                    first += 1
                else:
                    return
            except (EOFError, ConnectionError):
                worker.join()
                if first >= last:
                    return
                kind, how = "crash", signal_name(worker.exitcode or 0)
            finally:
                worker.kill()
                worker.join()
            stack = [line.strip() for line in Path(folder, "stack").read_text().splitlines() if "File" in line]
            yield Finding(kind, f"{text}: {how} {' <- '.join(stack[:3])}", tool, seed, first)
            yield first
            first += 1


def signal_name(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def _work(tool: str, seed: int, first: int, last: int, folder: str, answers: Any) -> None:
    faulthandler.enable(open(Path(folder, "stack"), "w"))  # noqa: SIM115 - open until the end
    # A folder of its own, in which no call may leave anything.
    os.mkdir(Path(folder, "empty"))
    os.chdir(Path(folder, "empty"))
    resource.setrlimit(resource.RLIMIT_AS, (LARGEST_MEMORY, -1))
    draw = importlib.import_module(f"torture.{tool}").draw
    for number in range(first, last):
        try:
            case: Case = draw(seed, number)
            answers.send(case.text)
            answers.send(case.run())
        except Exception:
            answers.send(("tool", traceback.format_exc(limit=-3).replace("\n", " | ")))
    # Without the interpreter's tidying up: allocators of arrays that still live are callbacks.
    os._exit(0)
