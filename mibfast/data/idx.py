"""The IDX files that MNIST is published in: unsigned bytes, plain or gzipped."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from mibfast.data.multimodal import DataError
from mibfast.data.opening import open_regular, why_no_memory

_UNSIGNED_BYTES = 8
_GZIP = b"\x1f\x8b"
_CHUNK_BYTES = 1 << 22


def read_idx(path: Path, ndim: int) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes: images in 3 dimensions, labels in 1.

    Its header is two bytes of zero, the type (8), the number of dimensions, and each size as a big-endian int32.

    Parameters
    ----------
    path : Path
        Whether it is gzipped is read off its first bytes.
    ndim : int
        The number of dimensions that it must have.

    Raises
    ------
    DataError
        For a file that cannot be read, that is of another type or number of dimensions, that is empty, or that is
        shorter or longer than its header says.
    """
    try:
        with open_regular(path) as file:
            zipped = file.read(len(_GZIP)) == _GZIP
            file.seek(0)
            if not zipped:
                return _parsed(file, path, ndim)
            with gzip.open(file) as content:
                return _parsed(content, path, ndim)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is a damaged gzip file: {error}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _parsed(file: IO[bytes] | gzip.GzipFile, path: Path, ndim: int) -> NDArray[np.uint8]:
    expected = bytes([0, 0, _UNSIGNED_BYTES, ndim])
    header = file.read(4 + 4 * ndim)
    if header[:4] != expected:
        raise DataError(
            f"{path} is no IDX file of unsigned bytes in {ndim} dimensions: it begins with "
            f"{header[:4].hex(' ') or 'nothing'}, expected {expected.hex(' ')}"
        )
    if len(header) < 4 + 4 * ndim:
        raise DataError(f"{path} ends within its header, after {len(header)} bytes of {4 + 4 * ndim}")
    shape = tuple(int.from_bytes(header[at : at + 4], "big", signed=True) for at in range(4, len(header), 4))
    if min(shape) < 1:
        raise DataError(f"{path} is of shape {list(shape)}; expected sizes of at least 1")
    size = math.prod(shape)
    content = _read(file, size + 1, path)
    if len(content) != size:
        got = f"{len(content)}" if len(content) < size else "more"
        raise DataError(f"{path} is of shape {list(shape)}, {size} bytes, and holds {got}")
    found_array: NDArray[np.uint8] = np.frombuffer(content, np.uint8).reshape(shape)
    return found_array


def _read(file: Any, count: int, path: Path) -> bytearray:
    """Read up to `count` bytes; in parts, since a damaged header may ask for more than there is memory."""
    content = bytearray()
    while len(content) < count:
        # A small gzip file can hold more than there is memory, too; a bytearray that grows is copied.
        why = why_no_memory(2 * len(content)) if len(content) >= _CHUNK_BYTES else None
        if why is not None:
            raise DataError(f"{path} cannot be read: {why}")
        part = file.read(min(_CHUNK_BYTES, count - len(content)))
        if not part:
            break
        content += part
    return content
