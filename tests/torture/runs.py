"""Small runs, ended and stopped, and commands on them in forked children: how each ends, and what it made.

The process that forks never computes: with no threads of torch's of its own, its children may have theirs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import select
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from torture.supervision import LARGEST_MEMORY, signal_name

STOPPED_AT = 9
_OPTIONS = {
    "ova-ib": ("--epochs", "2"),
    # Two stages of an epoch each.
    "omib": ("--epochs", "1", "--warm-up-epochs", "1", "--beta", "0.01"),
}
RUNS = tuple(_OPTIONS)


@dataclass(frozen=True)
class Outcome:
    """How a command ended: an exit status, minus a signal, or None where it hung; and what it said."""

    status: int | None
    said: str

    def wrong(self) -> tuple[str, str] | None:
        """Return what is wrong with an end that is neither success nor one line and exit status 2."""
        if self.status is None:
            return "hang", self.said[-200:]
        if self.status < 0:
            return "crash", f"{signal_name(self.status)} {self.said[-200:]}"
        lines = [line for line in self.said.splitlines() if line.strip()]
        if "Traceback" in self.said:
            frames = [line.strip() for line in lines if line.startswith("  File") and "mibfast" in line]
            return "traceback", f"{lines[-1][:200]} ({' '.join(frames[-1:])})"
        if self.status == 2 and (not lines or not lines[-1].startswith("mibfast: error: ")):
            return "unclear end", self.said[-300:]
        errors = [line for line in lines if line.startswith("mibfast: error: ")]
        if self.status not in (0, 2) or len(errors) > (self.status == 2):
            return "unclear end", f"exit status {self.status}: {self.said[-300:]}"
        return None


def _processor_seconds(child: int) -> float:
    # Its name, in parentheses, may hold spaces.
    fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _ends(child: int, watched: int) -> bool:
    """Wait for a child, and return whether it ends: not where it rests for 20 s, or works for longer than 120 s."""
    used = -1.0
    while not select.select([watched], [], [], 20.0)[0]:
        before, used = used, _processor_seconds(child)
        if used - before < 0.05 or used > 120:
            return False
    return True


def in_child(action: Callable[[], int]) -> Outcome:
    """Fork a child that does something and ends with the status it returns; it is killed where it hangs."""
    with tempfile.TemporaryFile("w+") as said:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                # A group of its own: signals for it are not for its parent.
                os.setpgid(0, 0)
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
                resource.setrlimit(resource.RLIMIT_AS, (LARGEST_MEMORY, -1))
                status = action()
            except BaseException:
                traceback.print_exc()
            finally:
                with contextlib.suppress(BaseException):
                    for stream in (os.sys.stdout, os.sys.stderr):  # type: ignore[attr-defined]
                        stream.flush()
                os._exit(status)
        watched = os.pidfd_open(child)
        try:
            ended = _ends(child, watched)
            if not ended:
                os.kill(child, signal.SIGKILL)
        finally:
            os.close(watched)
        _, code = os.waitpid(child, 0)
        said.seek(0)
        text = said.read()
    return Outcome(os.waitstatus_to_exitcode(code) if ended else None, text)


def command(*arguments: str) -> Callable[[], int]:
    """Return what runs `mibfast` with arguments, in the process that calls it."""

    def run() -> int:
        import torch

        from mibfast.cli.commands import run as main

        # Waiting for threads on a machine that is shared takes longer than the work.
        torch.set_num_threads(1)
        return main(arguments)

    return run


class Place:
    """A folder with data and runs: `small.npz`, `arrays/`, and for each method an ended run and a stopped one.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        generator = np.random.default_rng(0)
        labels = np.arange(60) % 3
        views = {x: (labels[:, None] + generator.standard_normal((60, 4))).astype(np.float32) for x in "abc"}
        np.savez(path / "small.npz", **views, labels=labels)
        (path / "arrays").mkdir()
        for name, array in {**views, "labels": labels}.items():
            np.save(path / "arrays" / f"{name}.npy", array)
        for method in RUNS:
            for folder, action in (
                (method, command(*self.fit(method, path / method))),
                (f"{method}-stopped", self._stopping(method)),
            ):
                done = in_child(action)
                if done.status != (0 if folder == method else -signal.SIGKILL):
                    raise RuntimeError(f"{folder} ended with {done.status}: {done.said}")

    def fit(self, method: str, output: Path, data: str | None = None) -> tuple[str, ...]:
        data = data or f"npz:{self.path / 'small.npz'}"
        sizes = ("--batch-size", "6", "--features", "4", "--depth", "1", "--checkpoint-minutes", "1e-9")
        return ("fit", method, "--data", data, "--output", str(output), "--resume", *_OPTIONS[method], *sizes)

    def _stopping(self, method: str) -> Callable[[], int]:
        def run() -> int:
            from mibfast.train.fitting.recording import Recording

            original = Recording.on_train_batch_end

            def stopping(self: Recording, *arguments: object) -> None:
                original(self, *arguments)
                if self.step == STOPPED_AT:
                    os.kill(os.getpid(), signal.SIGKILL)

            Recording.on_train_batch_end = stopping  # type: ignore[method-assign]
            return command(*self.fit(method, self.path / f"{method}-stopped"))()

        return run

    def commands(self, method: str, run: Path, output: Path) -> dict[str, tuple[str, ...]]:
        """Return what may be done with a run's folder; `embed` and `evaluate` write into `output`."""
        # A fusion has no embeddings.
        whole = ("--representations",) if method == "omib" else ()
        return {
            "fit --resume": self.fit(method, run),
            "evaluate": ("evaluate", str(run), "--probe", "none", "--pool", "10", "--output", str(output)),
            "embed": ("embed", str(run), "--output", str(output / "embeddings.npz"), *whole),
        }


def made(what: str, run: Path, output: Path) -> str:
    """Return a digest of the numbers that a command made: weights and losses, figures, or embeddings."""
    digest = hashlib.sha256()
    if what == "fit --resume":
        digest.update((run / "weights.safetensors").read_bytes())
        metrics = json.loads((run / "metrics.json").read_text())
        digest.update(str([(row["train_loss"], row["validation_loss"]) for row in metrics["epochs"]]).encode())
    elif what == "evaluate":
        digest.update(str(json.loads((output / "evaluation.json").read_text())["rows"]).encode())
    else:
        with np.load(output / "embeddings.npz") as arrays:
            for name in sorted(arrays.files):
                digest.update(name.encode() + arrays[name].tobytes())
    return digest.hexdigest()


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder by their names, but those that are no files."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def copied(source: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)
    return target
