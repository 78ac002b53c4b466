"""Memory for large results, kept for the next step instead of given back to the system.

A fresh page costs more than writing it: page faults were half the time of a Gaussian KL's backward. A training step
asks for the same gradients again and again, so what a tensor leaves behind is kept, as torch keeps memory on a GPU. At
most `MIBFAST_BUFFER_CACHE` MiB wait at a time; the oldest go first.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from typing import Any

import numpy as np

from mibfast import _env

# Smaller arrays are what malloc keeps by itself.
SMALLEST = 2**20
_limit = _env.buffer_cache() * 2**20
_lock = threading.Lock()
_waiting: OrderedDict[int, np.ndarray[Any, Any]] = OrderedDict()
_waiting_bytes = 0


class _Lease:
    """Holds a buffer for as long as an array or tensor on it lives."""

    def __init__(self, buffer: np.ndarray[Any, Any]) -> None:
        self._buffer = buffer
        self.__array_interface__ = buffer.__array_interface__

    def __del__(self) -> None:
        _keep(self._buffer)


def _keep(buffer: np.ndarray[Any, Any]) -> None:
    global _waiting_bytes
    # Never wait here: this runs wherever a tensor dies, which may be inside this module.
    if buffer.nbytes > _limit or not _lock.acquire(blocking=False):
        return
    try:
        _waiting[id(buffer)] = buffer
        _waiting_bytes += buffer.nbytes
        while _waiting_bytes > _limit:
            _, oldest = _waiting.popitem(last=False)
            _waiting_bytes -= oldest.nbytes
    finally:
        _lock.release()


def _take(size: int) -> np.ndarray[Any, Any] | None:
    global _waiting_bytes
    if not _lock.acquire(blocking=False):
        return None
    try:
        for key, buffer in reversed(_waiting.items()):
            if buffer.nbytes == size:
                del _waiting[key]
                _waiting_bytes -= size
                return buffer
    finally:
        _lock.release()
    return None


def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """Return an uninitialised array, on kept memory where some of its size waits."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < SMALLEST or not _limit:
        return np.empty(shape, dtype)
    buffer = _take(size)
    if buffer is None:
        # Numpy asks for huge pages, torch does not.
        buffer = np.empty(size, np.uint8)
    array: np.ndarray[Any, Any] = np.asarray(_Lease(buffer)).view(dtype).reshape(shape)
    return array


def release() -> None:
    """Give all waiting memory back."""
    global _waiting_bytes
    with _lock:
        _waiting.clear()
        _waiting_bytes = 0
