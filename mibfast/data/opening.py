"""Regular files, opened without waiting for pipes or devices, and refused before they exceed memory."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file to read, unbuffered; OSError at once for anything else, such as a pipe without a writer."""
    try:
        # Opening could otherwise wait for a pipe, or make a terminal that of the process.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except ValueError as error:
        # The path holds a zero byte.
        raise OSError(errno.EINVAL, str(error)) from error
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind != stat.S_IFREG:
        os.close(descriptor)
        if kind == stat.S_IFDIR:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        raise OSError(errno.EINVAL, f"it is {_KINDS.get(kind, 'no file')}, not a regular file")
    return open(descriptor, "rb", buffering=0)


def read_bytes(path: str | Path) -> bytes:
    """Return the content of a regular file; OSError where it cannot be read or takes more memory than is free."""
    with open_regular(path) as file:
        why = why_no_memory(os.fstat(file.fileno()).st_size)
        if why is not None:
            raise OSError(errno.ENOMEM, why)
        return file.read()


def why_no_memory(size: int) -> str | None:
    """Return why so many bytes cannot be held in memory, None where they can."""
    free = free_memory()
    return None if size <= free else f"it takes {_gigabytes(size)} of memory, and {_gigabytes(free)} are free"


def free_memory() -> int:
    """Return the bytes of free memory: those that Linux calls available, elsewhere the whole memory."""
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return 1024 * int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.3g} GB"
