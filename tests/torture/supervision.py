"""Runs cases in a process of their own, so that a crash or a hang is a finding and not the end.

A tool is a module with `draw(seed, number)`, which makes one case of random numbers of its own. The worker is started
anew rather than forked: a forked child has no OpenMP threads, and would run another path than users do.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

TESTS = Path(__file__).parents[1]
# Address space of a worker: a request for more is an error to be seen, and not the end of the machine.
LARGEST_MEMORY = 16 * 2**30


@dataclass(frozen=True)
class Case:
    """What is tried, in words, and how: `run` returns the kind of a finding and what was found, or None."""

    text: str
    run: Callable[[], tuple[str, str] | None]


@dataclass(frozen=True)
class Finding:
    kind: str
    text: str
    reproduce: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}\n    {self.reproduce}"


def reproducing(tool: str, seed: int, number: int) -> str:
    return f"PYTHONPATH=.:tests .venv/bin/python -m torture {tool} --seed {seed} --only {number}"


def signal_name(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


class _Worker:
    def __init__(self, tool: str, seed: int, first: int, last: int, environment: dict[str, str]) -> None:
        self.place = tempfile.TemporaryDirectory(prefix="torture-")
        self.errors: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the worker
        paths = os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "torture.supervision", tool, *map(str, (seed, first, last))],
            stdout=subprocess.PIPE,
            stderr=self.errors,
            # A folder of its own, in which no call may leave anything.
            cwd=self.place.name,
            env={**os.environ, **environment, "PYTHONPATH": paths},
        )

    def lines(self, limit: float) -> Iterator[list[str] | None]:
        """Yield the worker's lines; None, at the end, where none comes within the limit in seconds."""
        assert self.process.stdout is not None
        descriptor, waiting = self.process.stdout.fileno(), b""
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while True:
                if not selector.select(limit):
                    yield None
                    return
                piece = os.read(descriptor, 65536)
                if not piece:
                    return
                *whole, waiting = (waiting + piece).split(b"\n")
                for line in whole:
                    yield json.loads(line)

    def close(self) -> tuple[int, str]:
        """End the worker; its exit status and the last it said."""
        assert self.process.stdout is not None
        if self.process.stdout.closed is False:
            self.process.stdout.close()
        status = self.process.wait()
        self.errors.seek(0)
        # faulthandler's stack begins with its innermost frame.
        said = [line.strip() for line in self.errors.read().splitlines() if line.strip()]
        frames = [line for line in said if line.startswith("File")] or said[-1:]
        self.errors.close()
        self.place.cleanup()
        return status, " <- ".join(frames[:3])


def findings(
    tool: str, seed: int, first: int, last: int, *, limit: float, ends: float, environment: dict[str, str]
) -> Iterator[Finding | int]:
    """Run the cases from first to last, and yield findings, and the number of each case that is done.

    A case has `limit` seconds. None is begun once `time.monotonic()` is past `ends`.
    """
    while first < last and time.monotonic() < ends:
        worker = _Worker(tool, seed, first, last, environment)
        text, hung = "before the first case", False
        try:
            # A first case waits for imports.
            for line in worker.lines(limit + 60):
                if line is None:
                    hung = True
                    worker.process.kill()
                    break
                what, *rest = line
                if what == "begin":
                    text = rest[0]
                else:
                    if rest:
                        yield Finding(rest[0], f"{text}: {rest[1]}", reproducing(tool, seed, first))
                    yield first
                    first += 1
                    if time.monotonic() > ends:
                        worker.process.kill()
                        worker.close()
                        return
        except BaseException:
            worker.process.kill()
            raise
        status, said = worker.close()
        if first >= last and status == 0:
            return
        kind = "hang" if hung else "crash"
        how = f"nothing for {limit:g} s" if hung else signal_name(status)
        yield Finding(kind, f"{text}: {how} {said}", reproducing(tool, seed, first))
        yield first
        first += 1


def _work(tool: str, seed: int, first: int, last: int) -> None:
    # What libraries print does not mix with what the parent reads.
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (LARGEST_MEMORY, -1))
    draw = importlib.import_module(f"torture.{tool}").draw
    for number in range(first, last):
        try:
            case: Case = draw(seed, number)
            print(json.dumps(["begin", case.text]), file=out)
            found = case.run()
        except Exception:
            found = "tool", traceback.format_exc(limit=-3).replace("\n", " | ")
        print(json.dumps(["end", *(found or ())]), file=out)
    out.flush()
    # Without the interpreter's tidying up: allocators of arrays that still live are callbacks.
    os._exit(0)


if __name__ == "__main__":
    _work(sys.argv[1], *map(int, sys.argv[2:]))
