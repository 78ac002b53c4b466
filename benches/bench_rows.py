"""The timed rows, for pytest-benchmark: mibfast is what it times, peers and floors are interleaved round by round."""

from __future__ import annotations

import statistics
import time
from typing import Any

import pytest
import torch

from benches.rows import OURS, Row, rows

ROWS = rows()


def _agree(row: Row, inputs: list[torch.Tensor]) -> None:
    """Nothing is timed before values and gradients agree."""
    truth: list[torch.Tensor] = []
    for name in row.contenders:
        found = [*row.step(name, inputs)(), *(x.grad for x in inputs if x.grad is not None)]
        truth = truth or [x.clone() for x in found]
        for a, b in zip(truth, found, strict=True):
            error = (a - b).abs().max() / a.abs().max().clamp(min=1e-12)
            assert error <= row.tolerance, f"{name} differs from {OURS} by {error:.1e}, relative to the largest number"


@pytest.mark.parametrize("name", ROWS)
def test_row(name: str, benchmark: Any) -> None:
    row = ROWS[name]
    inputs = row.inputs()
    _agree(row, inputs)
    others = {peer: row.step(peer, inputs) for peer in row.contenders if peer != OURS}
    if row.floor is not None:
        others[row.floor[0]] = row.floor[1](inputs)
    seconds: dict[str, list[float]] = {peer: [] for peer in others}

    def run_peers() -> None:
        for peer, run in others.items():
            for x in inputs:
                x.grad = None
            started = time.perf_counter()
            run()
            seconds[peer].append(time.perf_counter() - started)
        for x in inputs:
            x.grad = None

    benchmark.pedantic(row.step(OURS, inputs), setup=run_peers, rounds=row.rounds, warmup_rounds=1)
    # The first round warmed up.
    benchmark.extra_info["peers"] = {peer: statistics.median(times[1:]) for peer, times in seconds.items()}
    benchmark.extra_info["row"] = name
