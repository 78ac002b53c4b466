"""How long a process waits for its first loss, and what importing mibfast costs beyond importing torch.

Each figure is the median over fresh processes, cold and warm by the cache of compiled kernels that they find.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

_FIRST_LOSS = """
import time, torch, mibfast
views = [torch.randn(256, 256, requires_grad=True) for _ in range(3)]
started = time.perf_counter()
mibfast.losses.OVAIBLoss()(views).backward()
print(time.perf_counter() - started)
"""
_IMPORT = """
import time
started = time.perf_counter()
import {module}
print(time.perf_counter() - started)
"""


def _seconds(program: str, **environment: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[1],
    )
    return float(done.stdout)


def measure() -> dict[str, float]:
    """Seconds: `first loss, cold`, `first loss, warm`, `import torch`, `import mibfast`."""
    with tempfile.TemporaryDirectory() as cache:
        cold = _seconds(_FIRST_LOSS, NUMBA_CACHE_DIR=cache)
        warm = statistics.median(_seconds(_FIRST_LOSS, NUMBA_CACHE_DIR=cache) for _ in range(3))
    imports: dict[str, list[float]] = {"torch": [], "mibfast": []}
    for _ in range(5):
        for module, seconds in imports.items():
            seconds.append(_seconds(_IMPORT.format(module=module)))
    return {
        "first loss, cold": cold,
        "first loss, warm": warm,
        "import torch": statistics.median(imports["torch"]),
        "import mibfast": statistics.median(imports["mibfast"]),
    }
