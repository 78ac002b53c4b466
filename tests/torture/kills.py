"""Runs killed at random moments of either stage, with a state written at every step, end with the same bytes."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Callable, Iterator

from torture.runs import RUNS, Place, command, in_child, made
from torture.supervision import Finding


def _killed(arguments: tuple[str, ...], stage: int, seconds: float) -> Callable[[], int]:
    """Return what runs a command that dies so long after a stage of its training begins, whatever it is doing."""

    def run() -> int:
        from mibfast.train.fitting.recording import Recording

        original, begun = Recording.on_train_start, iter(range(9))

        def timed(self: Recording, *given: object) -> None:
            if next(begun) == stage:
                # Nobody handles this signal: the process ends at once, as from SIGKILL.
                signal.setitimer(signal.ITIMER_REAL, seconds)
            original(self, *given)

        Recording.on_train_start = timed  # type: ignore[method-assign, assignment]
        return command(*arguments)()

    return run


def findings(place: Place, seed: int, only: int | None = None) -> Iterator[Finding | int]:
    """Kill runs up to four times each, and let them end."""
    output, folder = place.path / "output", place.path / "scratch"
    for number in range(10_000) if only is None else [only]:
        rng = random.Random(f"kills {seed} {number}")
        method = RUNS[number % len(RUNS)]
        shutil.rmtree(folder, ignore_errors=True)
        arguments, text, wrong = place.fit(method, folder), f"{method} killed", None
        for _ in range(rng.randint(1, 4)):
            # A step takes milliseconds; a second later pictures are drawn, or all is done.
            stage, seconds = rng.choice((0, 0, 1)), 10 ** rng.uniform(-2.5, 0.3)
            done = in_child(_killed(arguments, stage, seconds))
            text += f" {seconds:.3f} s after stage {stage} began,"
            if done.status != -signal.SIGALRM:
                wrong = wrong or done.wrong() or (("run lost", done.said) if done.status else None)
        done = in_child(command(*arguments))
        if done.status != 0:
            wrong = "run lost", done.said[-300:]
        elif made("fit --resume", folder, output) != made("fit --resume", place.path / method, output):
            wrong = "wrong number", "other weights or losses than those of the run that was not killed"
        if wrong is not None:
            yield Finding(wrong[0], f"{text} {wrong[1]}", "kills", seed, number)
        yield number
