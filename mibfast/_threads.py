"""The CPU pool: runs a function once a slot, on as many threads as torch uses.

A *slot* is a fixed share of the work with accumulators of its own, so a result depends on the number of slots and
not on which thread took which: it repeats bit for bit. There are more slots than threads, because OpenMP's
workers go on spinning for a while after each `torch.mm` and a thread that has to share its core should not keep the
others waiting.

The pool is made on first use and belongs to one process: a forked child (a DataLoader worker) makes its own. Threads
of the user's may call at the same time; they share the pool.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

_SLOTS_PER_THREAD = 2
_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_key: tuple[int, int] = (0, 0)


def _forget_pool() -> None:
    """Drop the parent's pool in a forked child, and the lock, which another thread may have held."""
    global _lock, _pool, _pool_key
    _lock = threading.Lock()
    _pool, _pool_key = None, (0, 0)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


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
    turn = iter(range(count))
    turn_lock = threading.Lock()

    def take_turns() -> None:
        while True:
            with turn_lock:
                slot = next(turn, None)
            if slot is None:
                return
            function(slot)

    threads = min(torch.get_num_threads(), count)
    futures = [_workers(threads - 1).submit(take_turns) for _ in range(threads - 1)]
    try:
        take_turns()
    finally:
        for future in futures:
            # Waits also when the caller's share failed: nobody may write to buffers that are gone.
            future.exception()
    for future in futures:
        future.result()
