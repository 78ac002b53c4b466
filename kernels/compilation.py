"""How the CPU kernels are compiled: Numba, cached on disk, without the GIL, with fast-math that keeps NaN and inf.

Numba is imported here and in the `cpu.py` files only, and those are imported when the first CPU kernel is called:
`import mibfast` does not pay for it.

Numba finds a cached kernel again by its name and its own file's time stamp; a change in a file that it calls into would
go unseen. So the name carries a fingerprint of all sources that a CPU kernel may be made of.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba

_Function = TypeVar("_Function", bound=Callable[..., Any])

# Never `True`: no-NaN and no-inf would let a kernel return a number for a NaN.
FASTMATH = {"reassoc", "contract", "arcp", "nsz"}
# For maxima alone, whose callers propagate NaN through the exponential that follows.
FASTMATH_MAXIMUM = FASTMATH | {"nnan"}


def _fingerprint() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        if not path.stem.endswith(("cuda", "triton")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


_FINGERPRINT = _fingerprint()

# `error_model="numpy"` divides as IEEE says; Python's would test every divisor and keep loops from becoming vector
# code.


# Inlined by force: of a function that stays one, the process that compiles it has two copies, optimised apart, and
# calls the first; a process that finds the kernel in the cache has the other, whose last bits differ.


def inline(function: _Function) -> _Function:
    """Compile a function that only other kernels call: part of its callers, so not cached by itself."""
    return numba.njit(fastmath=FASTMATH, nogil=True, error_model="numpy", forceinline=True)(function)  # type: ignore[no-any-return]


def inline_maximum(function: _Function) -> _Function:
    """Like :func:`inline`, for maxima: LLVM turns them into vector code only where NaN may be dropped."""
    options = {"fastmath": FASTMATH_MAXIMUM, "nogil": True, "error_model": "numpy", "forceinline": True}
    return numba.njit(**options)(function)  # type: ignore[no-any-return]


def named_by_sources(function: Callable[..., Any]) -> None:
    """Give a function a name under which the cache finds what was made of the same sources."""
    function.__qualname__ = f"{function.__qualname__}.{_FINGERPRINT}"


def kernel(function: _Function) -> _Function:
    """Compile a kernel that Python calls, cached on disk where a folder for it can be written."""
    named_by_sources(function)
    try:
        return numba.njit(fastmath=FASTMATH, nogil=True, error_model="numpy", cache=True)(function)  # type: ignore[no-any-return]
    except RuntimeError as error:  # raised where neither the package's nor the user's cache folder can be written
        warnings.warn(
            f"mibfast: compiled CPU kernels cannot be cached ({error}); each process compiles them anew. "
            "Set NUMBA_CACHE_DIR to a folder that can be written.",
            RuntimeWarning,
            stacklevel=2,
        )
        return numba.njit(fastmath=FASTMATH, nogil=True, error_model="numpy")(function)  # type: ignore[no-any-return]
