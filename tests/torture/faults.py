"""Each write, rename, folder and removal of a command fails once: the error is named, and the same command mends all.

A full disk and a broken one, after half of what was to be written; and memory that is short at an array.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import random
import shutil
import sys
import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torture.guarded_memory import GuardedMemory
from torture.runs import RUNS, Place, command, contents, copied, in_child, made
from torture.supervision import Finding

_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.truncate", "shutil.rmtree")


class _Disk:
    """Counts what a process asks of the disk below a folder, and lets one thing fail."""

    def __init__(self, folder: Path, fails_at: int, code: int) -> None:
        self.folder, self.fails_at, self.code, self.count = str(folder), fails_at, code, 0

    def asked(self, path: object) -> bool:
        """Count, and return whether this is what fails."""
        if isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path).startswith(self.folder):
            self.count += 1
            return self.count == self.fails_at
        return False

    def error(self) -> OSError:
        return OSError(self.code, os.strerror(self.code))

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _EVENTS:
            return
        reads = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if not reads and self.asked(arguments[0]):
            raise self.error()

    def install(self) -> None:
        sys.addaudithook(self.audit)
        disk, original, fsync = self, io.open, os.fsync

        class File(io.FileIO):
            def write(self, content: Any) -> int:
                if disk.asked(self.name):
                    super().write(memoryview(content).cast("B")[: len(content) // 2])
                    raise disk.error()
                return super().write(content)

        def opened(file: Any, mode: str = "r", buffering: int = -1, *options: Any, **named: Any) -> Any:
            if (
                not isinstance(file, (str, os.PathLike))
                or not os.fsdecode(file).startswith(disk.folder)
                or mode[0] == "r"
            ):
                return original(file, mode, buffering, *options, **named)
            buffered = io.BufferedWriter(File(file, mode.replace("b", "").replace("t", "")))
            return buffered if "b" in mode else io.TextIOWrapper(buffered, *options, **named)

        def synchronised(descriptor: int) -> None:
            if disk.asked(os.readlink(f"/proc/self/fd/{descriptor}")):
                raise disk.error()
            fsync(descriptor)

        builtins.open, io.open, os.fsync = opened, opened, synchronised  # type: ignore[assignment]


def _on_a_failing_disk(
    arguments: tuple[str, ...], folder: Path, fails_at: int, code: int, count: Path
) -> Callable[[], int]:
    def run() -> int:
        disk = _Disk(folder, fails_at, code)
        disk.install()
        try:
            return command(*arguments)()
        finally:
            disk.fails_at = 0
            os.write(os.open(count, os.O_WRONLY | os.O_CREAT), str(disk.count).encode())

    return run


def _short_of_memory(arguments: tuple[str, ...], fails_at: int, count: Path) -> Callable[[], int]:
    def run() -> int:
        memory = GuardedMemory()
        memory.at_least, memory.fails_at = 256, fails_at
        try:
            with memory.used():
                return command(*arguments)()
        finally:
            count.write_text(str(memory.count))

    return run


def _is(right: str, what: str, run: Path, output: Path) -> bool:
    try:
        return made(what, run, output) == right
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def findings(place: Place, seed: int, only: int | None = None) -> Iterator[Finding | int]:
    """Try all, in random order: the number of a case is 10,000 times its command's and kind's, and where it fails."""
    rng = random.Random(seed)
    output, scratch, counted = place.path / "output", place.path / "scratch", place.path / "count"
    kinds = [(method, folder, what, code)
             for method in RUNS
             for folder, what in ((None, "fit --resume"), (f"{method}-stopped", "fit --resume"),
                                  (method, "evaluate"), (method, "embed"))
             for code in (errno.ENOSPC, errno.EIO, None)]  # fmt: skip

    def prepared(method: str, folder: str | None) -> Path:
        for each in (output, scratch):
            shutil.rmtree(each, ignore_errors=True)
        output.mkdir()
        if folder is not None:
            copied(place.path / folder, scratch)
        if folder == method:
            # What was written before is there, and may be replaced only by what is whole.
            (output / "embeddings.npz").write_bytes(b"of before")
        return scratch

    def action(arguments: tuple[str, ...], what: str, code: int | None, fails_at: int) -> Callable[[], int]:
        if code is None:
            return _short_of_memory(arguments, fails_at, counted)
        return _on_a_failing_disk(arguments, scratch if "fit" in what else output, fails_at, code, counted)

    def of_a_kind(number: int) -> Iterator[tuple[int, int, str]]:
        method, folder, what, code = kinds[number]
        run = prepared(method, folder)
        done = in_child(action(place.commands(method, run, output)[what], what, code, 0))
        if done.status != 0:
            raise RuntimeError(f"{what} of {folder}, without a fault: {done.said}")
        right = made(what, run, output)
        total = int(counted.read_text())
        # Some, of which there are hundreds, and thousands of arrays.
        moments = random.Random(seed + number).sample(range(1, total + 1), min(total, 24 if code else 12))
        yield from ((number, at, right) for at in moments if only is None or only % 10_000 == at)

    order = [number for number in range(len(kinds)) if only is None or only // 10_000 == number]
    rng.shuffle(order)
    waiting = deque(map(of_a_kind, order))
    while waiting:
        # One of each kind, then another.
        case = next(waiting[0], None)
        waiting.rotate(-1)
        if case is None:
            waiting.pop()
            continue
        number, at, right = case
        method, folder, what, code = kinds[number]
        run = prepared(method, folder)
        arguments = place.commands(method, run, output)[what]
        before = contents(output)
        failure = "no memory" if code is None else errno.errorcode[code]
        text = f"{what} of {folder or f'a new {method}'}, {failure} at {at}"
        done = in_child(action(arguments, what, code, at))
        wrong = done.wrong()
        after = contents(output)
        if wrong is None and done.status == 2 and any(x.endswith(".partial") for x in (*after, *contents(run))):
            wrong = "left behind", "a partial file"
        # Where only the folder could not be synchronised, what is there is new, and whole.
        if (
            wrong is None
            and done.status == 2
            and what == "embed"
            and after != before
            and not _is(right, what, run, output)
        ):
            wrong = "not as before", ", ".join(sorted(after))
        if wrong is None and done.status == 0 and made(what, run, output) != right:
            wrong = "wrong number", "success, with other numbers"
        # Guarded arrays begin elsewhere in a page, which moves last bits of sums: all of a run is guarded or none.
        again = in_child(command(*arguments) if code else action(arguments, what, code, 0))
        if again.status != 0:
            wrong = "run lost", f"after {done.said.strip()[-160:]!r}, the same command: {again.said[-200:]}"
        elif made(what, run, output) != right:
            wrong = "run lost", "the same command ends with other numbers"
        if wrong is not None:
            yield Finding(wrong[0], f"{text}: {wrong[1]}", "faults", seed, number * 10_000 + at)
        yield number
