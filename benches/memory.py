"""Workspace of a contender: its peak memory beyond inputs, output and gradients, measured in a process of its own.

Run as `python -m benches.memory ROW CONTENDER`; prints bytes. Linux only: the peak is the kernel's high-water mark of
resident memory, reset before the step.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import torch

from benches.rows import OURS, Row, rows

RESET = "5"


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def large_rows() -> dict[str, tuple[Row, str]]:
    """Rows that no peer can run on a small machine, by name, each with what eager PyTorch would need."""
    from benches.rows import _info_nce_row, _symile_row

    info_nce, symile = _info_nce_row(65536), _symile_row(1024)
    info_nce.workspace_bytes = 256 * 2**20
    return {
        "info-nce-65536": (info_nce, "eager needs 16 GiB a matrix"),
        "symile-1024": (symile, "eager needs 5 GiB an anchor for products and logits alone"),
    }


def workspace(row: Row, contender: str) -> tuple[int, float]:
    """Bytes of workspace and seconds of one forward and backward."""
    # Small inputs first, so that code, compilers and thread stacks are not counted.
    # Weights of a critic are as they are.
    small = [(x.detach()[:32] if x.ndim > 1 else x.detach()).clone().requires_grad_() for x in row.inputs()]
    upstream, row.upstream = row.upstream, None
    run = row.step(contender, small)
    if upstream is None:
        run()
    row.upstream = upstream
    inputs = row.inputs()
    run = row.step(contender, inputs)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text(RESET)
    started = time.perf_counter()
    found = run()
    seconds = time.perf_counter() - started
    peak = _status("VmHWM")
    results = [*found, *(x.grad for x in inputs if x.grad is not None)]
    return peak - before - sum(x.numel() * x.element_size() for x in results), seconds


def measure(row: str, contender: str) -> tuple[int, float] | None:
    """Run this module on a row in a new process; None where the system cannot tell."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    command = [sys.executable, "-m", "benches.memory", row, contender]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    size, seconds = done.stdout.split()
    return int(size), float(seconds)


if __name__ == "__main__":
    torch.manual_seed(0)
    name = sys.argv[1]
    large = large_rows()
    chosen = large[name][0] if name in large else rows()[name]
    print(*workspace(chosen, sys.argv[2] if len(sys.argv) > 2 else OURS))
