"""Runs killed at random moments of either stage, with a state written at every step, end with the same bytes."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Iterator

from torture.runs import RUNS, Place, command, in_child, made
from torture.supervision import Finding


def findings(place: Place, seed: int, only: int | None = None, kills: int = 60) -> Iterator[Finding | int]:
    """Kill runs up to four times each, and let them end."""
    output, run = place.path / "output", place.path / "scratch"
    for number in range(kills // 2) if only is None else [only]:
        rng = random.Random(f"kills {seed} {number}")
        method = RUNS[number % len(RUNS)]
        shutil.rmtree(run, ignore_errors=True)
        arguments = place.fit(method, run)
        moments = []
        wrong = None
        for _ in range(rng.randint(1, 4)):
            moments.append(rng.uniform(0.05, 1.1) * place.seconds[method])
            done = in_child(command(*arguments), kill_after=moments[-1])
            if done.status != -signal.SIGKILL and (done.status != 0 or done.wrong()):
                wrong = done.wrong() or ("run lost", done.said[-300:])
        done = in_child(command(*arguments))
        if done.status != 0:
            wrong = "run lost", done.said[-300:]
        elif made("fit --resume", run, output) != made("fit --resume", place.path / method, output):
            wrong = "wrong number", "other weights or losses than those of the run that was not killed"
        if wrong is not None:
            text = f"{method} killed after {', '.join(f'{x:.2f} s' for x in moments)}: {wrong[1]}"
            yield Finding(wrong[0], text, "kills", seed, number)
        yield number
