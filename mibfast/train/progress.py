"""Progress of long operations: a bar with the time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mibfast import _check

_SECONDS_TO_FIRST_LINE = 2.0
_SECONDS_BETWEEN_LINES = 15.0


class Report:
    """Output of progress.

    Parameters
    ----------
    shown : bool
        False writes nothing.
    console : rich.console.Console, optional
        By default stderr, so that stdout has only results.
    """

    def __init__(self, shown: bool = True, console: Console | None = None) -> None:
        self._shown = _check.boolean("Report", "shown", shown)
        self._console = console or Console(stderr=True)

    def say(self, line: str) -> None:
        """Write a line."""
        if self._shown:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Task]:
        """Report on a task of `total` parts, `done` of which were done before."""
        if self._shown and self._console.is_terminal:
            bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", style="dim"),
                console=self._console,
                transient=True,
            )
            with bar:
                yield _Bar(bar, bar.add_task(title, total=total, completed=done, note=""))
        else:
            yield _Lines(self, title, total, done) if self._shown else Task()


def reported(operation: str, progress: bool | Report) -> Report:
    """Return the report that an operation's argument `progress` stands for."""
    return progress if isinstance(progress, Report) else Report(_check.boolean(operation, "progress", progress))


class Task:
    """A task that shows nothing."""

    def advance(self, parts: int = 1, note: str | None = None) -> None:
        """Report that more parts are done, with a note."""

    def reach(self, done: int, note: str | None = None) -> None:
        """Report how many parts are done."""


class _Bar(Task):
    def __init__(self, bar: Progress, task: Any) -> None:
        self._bar, self._task = bar, task

    def advance(self, parts: int = 1, note: str | None = None) -> None:
        self._bar.advance(self._task, parts)
        self._note(note)

    def reach(self, done: int, note: str | None = None) -> None:
        self._bar.update(self._task, completed=done)
        self._note(note)

    def _note(self, note: str | None) -> None:
        if note is not None:
            self._bar.update(self._task, note=note)


class _Lines(Task):
    def __init__(self, report: Report, title: str, total: int, done: int) -> None:
        self._report, self._title, self._total, self._done, self._before = report, title, total, done, done
        self._note = ""
        self._started = time.monotonic()
        self._due = self._started + _SECONDS_TO_FIRST_LINE

    def advance(self, parts: int = 1, note: str | None = None) -> None:
        self.reach(self._done + parts, note)

    def reach(self, done: int, note: str | None = None) -> None:
        self._done = done
        self._note = self._note if note is None else note
        now = time.monotonic()
        if now < self._due or done <= self._before or done >= self._total:
            return
        left = (now - self._started) / (done - self._before) * (self._total - done)
        parts = (f"{self._title}: {100 * done // self._total}%", f"{_clock(left)} left", self._note)
        self._report.say(", ".join(part for part in parts if part))
        self._due = now + _SECONDS_BETWEEN_LINES


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
