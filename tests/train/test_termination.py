"""SIGTERM, as clusters send it before they end a job: real signals to real processes, at chosen moments."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lightning")
from mibfast import _termination, train
from mibfast.train.fitting.recording import Recording
from mibfast.train.folder import RunFolder

# Runs each command of a list, and sends its own process SIGTERM at the n-th call of a function; says the exit status.
PROGRAM = """
import importlib, json, os, signal, sys
from unittest import mock
from mibfast.cli.commands import run
for arguments, place, calls in json.load(sys.stdin):
    module, _, name = place.partition(":")
    owner, _, name = name.rpartition(".")
    owner = getattr(importlib.import_module(module), owner) if owner else importlib.import_module(module)
    original, left = getattr(owner, name), calls
    def killing(*given, **named):
        global left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*given, **named)
    with mock.patch.object(owner, name, killing):
        status = run(arguments)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    print(f"status {status}", flush=True)
    print(f"status {status}", file=sys.stderr, flush=True)
"""
RECORDING = "mibfast.train.fitting.recording:Recording."
# 60 samples of training make 7 batches an epoch.
OPTIONS = ["--epochs", "3", "--batch-size", "8", "--features", "8", "--depth", "1"]


@pytest.fixture
def npz(tmp_path) -> str:
    generator = np.random.default_rng(0)
    labels = np.arange(100) % 4
    a, b = np.clip(np.eye(4)[labels] + 0.1 * generator.standard_normal((2, 100, 4)), 0, 1).astype(np.float32)
    np.savez(tmp_path / "small.npz", a=a, b=b, labels=labels)
    return f"npz:{tmp_path / 'small.npz'}"


def run_and_kill(*steps: tuple[list[str], str, int]) -> list[list[str]]:
    """Run commands, each terminated at a call of a function; what each wrote to stderr, the exit status last."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=json.dumps(steps), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    found: list[list[str]] = [[]]
    for line in done.stderr.splitlines():
        found[-1].append(line)
        if line.startswith("status "):
            found.append([])
    return found[:-1]


def weights(path: Path) -> bytes:
    return (path / "weights.safetensors").read_bytes()


def test_a_fit_ends_after_its_step_in_either_stage_and_goes_on_bit_for_bit(npz, tmp_path) -> None:
    """In the middle of an epoch, at its last step, in a validation, while the state is written, and after training."""

    def command(name: str) -> list[str]:
        warm_up = ["--warm-up-epochs", "2", "--beta", "0.1"]
        return ["fit", "omib", "--data", npz, "--output", str(tmp_path / name), *OPTIONS, *warm_up, "--resume"]

    run = command("run")
    ends = run_and_kill(
        (command("whole"), f"{RECORDING}state", 100),
        (run, f"{RECORDING}on_train_batch_start", 3),
        (run, f"{RECORDING}on_validation_batch_end", 1),
        (run, f"{RECORDING}on_train_batch_end", 7),
        (run, f"{RECORDING}on_train_batch_start", 2),
        (run, f"{RECORDING}_write", 1),
        (run, f"{RECORDING}on_train_epoch_end", 1),
        (run, "mibfast.train.fitting.training:_Fitting._finish", 1),
        (run, f"{RECORDING}state", 100),
    )
    assert [lines[-1] for lines in ends] == ["status 0", *["status 143"] * 7, "status 0"]
    for lines in ends[1:-1]:
        assert lines[-3:-1] == [
            f"stopped; the same command with --resume --output {tmp_path / 'run'} goes on",
            "mibfast: terminated",
        ]
    went_on = [line for lines in ends for line in lines if line.startswith("going on after step")]
    # Where a validation follows, it is not lost.
    assert went_on == [
        f"going on after step {step}, in epoch {epoch}"
        for step, epoch in ((3, 1), (7, 2), (14, 3), (16, 3), (21, 4), (28, 5), (35, 6))
    ]
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert (tmp_path / "run" / "steps.csv").read_text() == (tmp_path / "whole" / "steps.csv").read_text()
    assert not (tmp_path / "run" / "resume.pt").exists()


def test_other_commands_end_where_they_are_and_keep_what_is_done(npz, tmp_path) -> None:
    compare = ["compare", "--methods", "clip", "--data", npz, "--seeds", "1", "--no-tune", *OPTIONS[:4]]
    experiment = ["experiment", npz, "--sweep", "beta", "--values", "1,8", "--methods", "dvsib-no-reconstruction"]
    experiment += ["--seeds", "1", "--steps", "4", "--hidden-features", "8", "--latent", "2", "--batch-size", "8"]
    compare, experiment = ([*each, "--output", str(tmp_path / each[0])] for each in (compare, experiment))
    ends = run_and_kill(
        (compare, f"{RECORDING}on_train_batch_end", 10),
        (compare, "mibfast.train.comparison.runs:evaluate", 1),
        (experiment, "mibfast.train.experiments.bottlenecks:_cell", 2),
        (["info"], "mibfast:info", 1),
    )
    assert [lines[-2:] for lines in ends] == [["mibfast: terminated", "status 143"]] * 4
    assert ["goes on" in lines[-3] for lines in ends[:3]] == [True] * 3
    # The comparison has gone on with its run to the end; the experiment has one cell of two.
    assert len(list((tmp_path / "compare").rglob("weights.safetensors"))) == 1
    assert len((tmp_path / "experiment" / "cells.jsonl").read_text().splitlines()) == 1


def test_a_script_of_ones_own_ends_with_status_143(npz, tmp_path) -> None:
    """Without a command line around it: the state is written, and nothing after the fit is done."""
    program = f"""
import os, signal
from mibfast import train
from mibfast.train.fitting.recording import Recording
original = Recording.on_train_batch_start
def killing(self, *given):
    if self.step == 9:
        os.kill(os.getpid(), signal.SIGTERM)
    original(self, *given)
Recording.on_train_batch_start = killing
train.fit("ova-ib", {npz!r}, output={str(tmp_path / "run")!r}, epochs=3, batch_size=8, progress=False)
print("after")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "")
    state = RunFolder(tmp_path / "run").read_state()
    assert state is not None
    assert state["step"] == 10


def test_a_handler_of_the_users_own_decides(npz, monkeypatch) -> None:
    received: list[int] = []
    original = Recording.on_train_batch_start

    def killing(self: Recording, *given: object) -> None:
        if self.step == 3:
            signal.raise_signal(signal.SIGTERM)
        original(self, *given)

    monkeypatch.setattr(Recording, "on_train_batch_start", killing)

    def note(number: int, frame: object) -> None:
        received.append(number)

    previous = signal.signal(signal.SIGTERM, note)
    try:
        run = train.fit("ova-ib", npz, epochs=2, batch_size=8, progress=False)
        assert signal.getsignal(signal.SIGTERM) is note
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert len(run.epochs) == 2
    assert received == [signal.SIGTERM]


def test_a_request_is_not_lost_where_the_body_fails() -> None:
    """A comparison would go on with its next run after one that diverged."""

    def fails() -> None:
        with _termination.deferred():
            signal.raise_signal(signal.SIGTERM)
            raise ValueError("diverged")

    with pytest.raises(_termination.Terminated):
        fails()
