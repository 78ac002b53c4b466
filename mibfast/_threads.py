"""The CPU pool: runs a function once a slot, on the threads that torch itself uses.

A *slot* is a fixed share of the work with accumulators of its own, so a result depends on the number of slots and
not on which thread took which: it repeats bit for bit.

The threads are those of torch's OpenMP runtime. They go on spinning for milliseconds after each `torch.mm`, so a second
pool would have to share its cores with them: the row passes between two GEMMs took as long on two threads as on one.
Where the runtime's entry point is not found, and in a forked child (a DataLoader worker), whose copy of the runtime has
no threads left, a pool of Python threads takes over, which belongs to one process. Threads of the user's may call at
the same time.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

_SLOTS_PER_THREAD = 2
_OpenMPFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_OpenMPEntry = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)


def _openmp_entry() -> Any:
    """The function that runs another on every thread of a team, None where the process has no such OpenMP runtime."""
    try:
        entry = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return None
    entry.argtypes = [_OpenMPFunction, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    entry.restype = None
    return entry


_openmp = _openmp_entry()
_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_key: tuple[int, int] = (0, 0)


def _forget_threads() -> None:
    """In a forked child: drop the parent's threads, and the lock, which another thread may have held."""
    global _lock, _openmp, _pool, _pool_key
    _lock = threading.Lock()
    _openmp, _pool, _pool_key = None, None, (0, 0)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


def _workers(count: int) -> ThreadPoolExecutor:
    global _pool, _pool_key
    key = (os.getpid(), count)
    with _lock:
        if _pool is None or _pool_key != key:
            # The replaced pool is left to finish what other threads gave it; its threads end with it.
            _pool = ThreadPoolExecutor(count, thread_name_prefix="mibfast")
            _pool_key = key
        return _pool


def slots(work: int, grain: int) -> int:
    """Return how many slots to cut `work` items into, so that none is smaller than `grain` items.

    One slot (no threads at all) where the work is smaller than two grains or torch is set to one thread.
    """
    threads = torch.get_num_threads()
    if threads <= 1 or work < 2 * grain:
        return 1
    return int(min(_SLOTS_PER_THREAD * threads, work // grain))


def parallel(function: Callable[[int], object], count: int) -> None:
    """Call `function(slot)` for each slot in `range(count)`, the caller's thread helping, and wait for all.

    The functions must release the GIL to gain anything. The first exception raised is raised here.
    """
    if count == 1:
        function(0)
        return
    turn, turn_lock = iter(range(count)), threading.Lock()
    failures: list[BaseException] = []

    def take_turns(_: object = None) -> None:
        try:
            while not failures:
                with turn_lock:
                    slot = next(turn, None)
                if slot is None:
                    return
                function(slot)
        except BaseException as failure:
            failures.append(failure)

    threads = min(torch.get_num_threads(), count)
    if _openmp is not None:
        _openmp(_OpenMPFunction(take_turns), None, threads, 0)
    else:
        futures = [_workers(threads - 1).submit(take_turns) for _ in range(threads - 1)]
        take_turns()
        # Waits also where a share failed: nobody may write to buffers that are gone.
        for future in futures:
            future.result()
    if failures:
        raise failures[0]


def run_compiled(function: int, argument: int, count: int) -> None:
    """Call the C function of one pointer at an address on as many threads as `count` slots keep busy, and wait for all.

    Each call does slots until none is left, whichever thread it is on; none of them sees Python.
    """
    threads = min(torch.get_num_threads(), count)
    entry = _openmp
    if threads > 1 and entry is not None:
        ctypes.cast(entry, _OpenMPEntry)(function, argument, threads, 0)
        return
    compiled = _OpenMPFunction(function)
    futures = [_workers(threads - 1).submit(compiled, argument) for _ in range(threads - 1)]
    compiled(argument)
    for future in futures:
        future.result()
