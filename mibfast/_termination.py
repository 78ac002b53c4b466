"""SIGTERM, by which a cluster ends a job: training stops after the step at hand, once its state is written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# What shells say of a process that the signal ended.
STATUS = 128 + signal.SIGTERM


class Terminated(SystemExit):
    """Raised where SIGTERM ends a process in order, with its exit status."""

    def __init__(self) -> None:
        super().__init__(STATUS)


class Request:
    """Whether SIGTERM came."""

    def __init__(self) -> None:
        self.made = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Be the signal's handler."""
        self.made = True


def _raise(number: int, frame: FrameType | None) -> None:
    raise Terminated


@contextmanager
def raised() -> Iterator[None]:
    """Raise :class:`Terminated` at once where SIGTERM comes, as Python does with Ctrl-C."""
    if not _ours_to_handle():
        yield
        return
    previous = signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def deferred() -> Iterator[Request]:
    """Note that SIGTERM came, for code that ends itself where that is best; where it did not, end after it."""
    request = Request()
    if not _ours_to_handle():
        yield request
        return
    previous = signal.signal(signal.SIGTERM, request)
    try:
        yield request
    except Exception as error:
        # Nobody may take the error for one to go on from.
        if request.made:
            raise Terminated from error
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)
    if request.made:
        raise Terminated


def _ours_to_handle() -> bool:
    """Whether no handler of the user's is there, and this is the thread that may set one."""
    alone = signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, _raise)
    return alone and threading.current_thread() is threading.main_thread()
