"""Every environment variable that mibfast reads, in one place.

| variable | meaning | default |
|---|---|---|
| `MIBFAST_BACKEND` | backend of every operation: `auto`, `reference`, `cpu`, `triton` or `cuda` | `auto` |
| `MIBFAST_AUTOTUNE` | 1 measures Triton kernels' tiles at a first launch, and keeps the fastest | unset: a table |
| `MIBFAST_BUFFER_CACHE` | MiB of freed results that the CPU kernels keep for the next step; 0 keeps none | 512 |
| `MIBFAST_DATA` | folder with data sets that the tests and benches may use | unset: they skip |
| `MIBFAST_CUDA` | read by setup.py: 0 leaves the CUDA kernels out of an installation | unset: built where `nvcc` is |
| `MIBFAST_CUDA_ARCHS` | read by setup.py: architectures to build them for | `80+ptx 90a` |
| `NUMBA_DISABLE_JIT` | Numba's own: anything but 0 compiles nothing, and leaves no CPU kernels | unset |
| `TRITON_CACHE_DIR` | Triton's own: where it keeps what it compiled, and mibfast measured tiles | `~/.triton/cache` |
| `TRITON_INTERPRET` | Triton's own: 1 runs its kernels in its interpreter, on CPU tensors too, to test them | unset |
"""

from __future__ import annotations

import os
from pathlib import Path


def backend() -> str:
    """Return the backend named by `MIBFAST_BACKEND`, `auto` where it is unset or empty."""
    return os.environ.get("MIBFAST_BACKEND", "").strip().lower() or "auto"


def buffer_cache() -> int:
    """Return the MiB of `MIBFAST_BUFFER_CACHE`, 512 where it is unset or empty."""
    text = os.environ.get("MIBFAST_BUFFER_CACHE", "").strip() or "512"
    if not text.isdecimal():
        raise ValueError(f"MIBFAST_BUFFER_CACHE must be a whole number of MiB, got {text!r}")
    return int(text)


def autotune() -> bool:
    """Return whether Triton kernels are measured, by `MIBFAST_AUTOTUNE`: 1, or 0 as where it is unset or empty."""
    text = os.environ.get("MIBFAST_AUTOTUNE", "").strip() or "0"
    if text not in ("0", "1"):
        raise ValueError(f"MIBFAST_AUTOTUNE must be 0 or 1, got {text!r}")
    return text == "1"


def triton_cache() -> Path:
    """Return the folder in which Triton keeps what it compiled."""
    folder = os.environ.get("TRITON_CACHE_DIR", "").strip()
    # As Triton does: `Path.home` raises for a user without a home.
    home = os.environ.get("TRITON_HOME") or os.path.expanduser("~")
    return Path(folder) if folder else Path(home) / ".triton" / "cache"


def data_folder() -> Path | None:
    """Return the folder named by `MIBFAST_DATA`, None where it is unset or empty."""
    folder = os.environ.get("MIBFAST_DATA", "").strip()
    return Path(folder) if folder else None


def numba_disabled() -> bool:
    """Return whether Numba compiles nothing, by `NUMBA_DISABLE_JIT`, which it ignores where it is no whole number."""
    try:
        return int(os.environ.get("NUMBA_DISABLE_JIT", "0")) != 0
    except ValueError:
        return False


def triton_interpreted() -> bool:
    """Return whether Triton runs its kernels in its interpreter, which serves CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "") == "1"
