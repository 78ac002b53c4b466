"""How the CPU kernels are compiled: Numba, cached on disk, without the GIL, with fast-math that keeps NaN and inf.

Numba is imported here and in the `cpu.py` files only, and those are imported when the first CPU kernel is called:
`import mibfast` does not pay for it.

A kernel is found in the cache by its name, which carries a fingerprint of all sources that a CPU kernel may be made of:
it calls into other files than its own. Where the cache is damaged, or cannot be read or written, kernels are compiled
as if there were none, and a process says so once.
"""

from __future__ import annotations

import hashlib
import pickle
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core import sigutils
from numba.core.caching import FunctionCache, NullCache
from numba.core.ccallback import CFunc
from numba.core.serialize import dumps

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

# Of what an overload returns, which Numba compiles as a function too.
INLINED: dict[str, Any] = {"fastmath": FASTMATH, "forceinline": True}


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
    if numba.config.DISABLE_JIT:
        raise RuntimeError("NUMBA_DISABLE_JIT is set, and the CPU kernels work on addresses, which Python cannot read")
    named_by_sources(function)
    compiled = numba.njit(fastmath=FASTMATH, nogil=True, error_model="numpy")(function)
    compiled._cache = _cache_of(function)
    return compiled  # type: ignore[no-any-return]


def c_function(function: Callable[..., None], signature: Any) -> Any:
    """Compile a function of a name by :func:`named_by_sources` for callers in C, cached like a :func:`kernel`."""
    options = {"fastmath": FASTMATH, "nopython": True, "error_model": "numpy"}
    compiled: Any = CFunc(function, sigutils.normalize_signature(signature), locals={}, options=options)
    compiled._cache = _cache_of(function)
    compiled.compile()
    return compiled


class _Entries:
    """A kernel's compiled forms on disk: a file for each signature, of a digest and what Numba serialises.

    Numba's own files have no digest, so that a bit which flipped in machine code would be executed. They also have an
    index of their numbers, and of two processes that write at the same time one finds the other's code by its number.
    """

    def __init__(self, folder: str, name: str) -> None:
        self._folder, self._name = Path(folder), name

    def _place(self, key: Any) -> tuple[Path, bytes]:
        """The file of a signature, and what the digest is of beside the file's content."""
        described = repr((numba.__version__, key)).encode()
        return self._folder / f"{self._name}.{hashlib.sha256(described).hexdigest()[:16]}.nbc", described

    def load(self, key: Any) -> Any:
        path, described = self._place(key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        digest, kernel = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(described + kernel).digest() != digest:
            raise ValueError(f"{path} is damaged")
        return pickle.loads(kernel)

    def save(self, key: Any, compiled: Any) -> None:
        path, described = self._place(key)
        kernel = dumps(compiled)
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:16]}")
        try:
            with partial.open("xb") as file:
                file.write(hashlib.sha256(described + kernel).digest())
                file.write(kernel)
            partial.replace(path)
        except BaseException:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


_DIGEST_BYTES = hashlib.sha256().digest_size


class _Cache(FunctionCache):  # type: ignore[misc]
    """Numba's cache of a kernel, except that no failure is more than a kernel which is not cached."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file = _Entries(self.cache_path, self._impl.filename_base)

    def load_overload(self, signature: Any, target: Any) -> Any:
        with _not_cached_where_it_fails():
            return super().load_overload(signature, target)
        return None

    def save_overload(self, signature: Any, compiled: Any) -> None:
        with _not_cached_where_it_fails():
            super().save_overload(signature, compiled)


def _cache_of(function: Callable[..., Any]) -> Any:
    with _not_cached_where_it_fails():
        return _Cache(function)
    return NullCache()


_failed = False


@contextmanager
def _not_cached_where_it_fails() -> Iterator[None]:
    """Turn whatever a cache raises, also what damaged files make pickle and LLVM raise, into one warning a process."""
    global _failed
    try:
        yield
    except Exception as error:
        if not _failed:
            _failed = True
            warnings.warn(
                f"mibfast: the cache of compiled CPU kernels fails ({type(error).__name__}: {error}); what it lacks is "
                "compiled again. If this happens again, set NUMBA_CACHE_DIR to a folder that can be written.",
                RuntimeWarning,
                stacklevel=2,
            )
