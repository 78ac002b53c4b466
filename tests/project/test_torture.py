"""A short, seeded part of what `make torture` does: guard pages, fuzzed calls, damaged runs, failing disks, kills."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


# On a machine that is busy with something else, and with kernels still to be compiled.
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("tools", "calls"),
    [
        pytest.param(["kernels", "public_api"], 240, id="calls"),
        pytest.param(["corruption", "faults", "kills"], 4, id="runs"),
    ],
)
def test_nothing_is_found(tools, calls) -> None:
    if tools[0] == "corruption":
        pytest.importorskip("lightning")
    # A process of its own: it forks, and must not have computed.
    done = subprocess.run(
        [sys.executable, "-m", "torture", *tools, "--calls", str(calls), "--jobs", "1"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
