"""Arrays in .npy files: rows read as needed, and whole arrays, checked against the size of the file."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from mibfast._check import InputError
from mibfast.data.opening import open_regular, why_no_memory

_CHUNK_BYTES = 1 << 24
_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True)
class NpyHeader:
    """The header of an .npy file.

    Attributes
    ----------
    shape : tuple of int
    fortran_order : bool
    dtype : dtype
        Of no Python objects.
    start : int
        The number of bytes before the array's own.
    """

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]
    start: int

    @property
    def array_bytes(self) -> int:
        """The size of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(file: IO[bytes], size: int) -> NpyHeader:
    """Read the header of an .npy file of `size` bytes, from its beginning.

    Raises
    ------
    ValueError
        For a header that is damaged, that says there is more than `size`, or that asks for Python objects.
    """
    try:
        version = np.lib.format.read_magic(file)
        if version not in _READERS:
            raise ValueError(f"version {version[0]}.{version[1]}; expected 1.0 or 2.0")
        shape, fortran_order, dtype = _READERS[version](file)
    except OSError:
        raise
    except Exception as error:
        # The header is a Python literal, and what numpy raises depends on where it is damaged.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"its .npy header is damaged: {reason}") from error
    if dtype.hasobject:
        raise ValueError(
            "it is an object array, which would have to be unpickled; save it with a numeric dtype, or strings by "
            ".astype(str)"
        )
    if any(isinstance(n, bool) or n < 0 for n in shape):
        raise ValueError(f"its header says that it is of shape {list(shape)}")
    header = NpyHeader(tuple(shape), bool(fortran_order), dtype, file.tell())
    if header.start + header.array_bytes > size:
        raise ValueError(
            f"it is shorter than its header says: {size} bytes, and {list(shape)} of {dtype} takes {header.array_bytes}"
        )
    return header


def read_array(file: IO[bytes], size: int) -> NDArray[Any]:
    """Read the array of an .npy file of `size` bytes, in C order, once it is known to be there and to fit into memory.

    Raises
    ------
    ValueError
        As :func:`read_header`, and for an array that takes more memory than is free.
    """
    header = read_header(file, size)
    why = why_no_memory(header.array_bytes * (2 if header.fortran_order else 1))
    if why is not None:
        raise ValueError(
            f"{why}; rows are read as needed of .npy files in a folder, dir:FOLDER, that numpy.save wrote of "
            "numpy.ascontiguousarray(...)"
        )
    content = np.empty(math.prod(header.shape), header.dtype)
    into = memoryview(content.view(np.uint8).data) if content.nbytes else memoryview(b"")
    while len(into):
        # Reading from an archive copies as much as is asked for, so ask for chunks.
        count = file.readinto(into[:_CHUNK_BYTES])  # type: ignore[attr-defined]
        if not count:
            raise ValueError("it ends before its array does")
        into = into[count:]
    if header.fortran_order:
        return np.ascontiguousarray(content.reshape(header.shape[::-1]).transpose())
    return content.reshape(header.shape)


def read_npy(path: Path) -> NDArray[Any]:
    """Read the array of an .npy file; OSError where that cannot be read, ValueError as :func:`read_array`."""
    with open_regular(path) as file:
        return read_array(file, os.fstat(file.fileno()).st_size)


def open_rows(path: Path) -> NpyRows | NDArray[Any]:
    """Open an .npy file to read its rows as needed, or, in Fortran order, read all of it: its rows lie scattered."""
    with open_regular(path) as file:
        header = read_header(file, os.fstat(file.fileno()).st_size)
    return read_npy(path) if header.fortran_order and len(header.shape) > 1 else NpyRows(path)


class NpyRows:
    """An array [N, ...] in an .npy file, of which rows are read from the file each time.

    Not mapped into memory: one row of a mapped file can bring in megabytes around it, so that a batch of random rows
    holds the whole file in no time; and a file that is cut short under a map ends the interpreter.

    Parameters
    ----------
    path : Path

    Raises
    ------
    OSError
        Where it cannot be read.
    ValueError
        For a file that is damaged, holds Python objects, or is in Fortran order. Rows that cannot be read later are
        an InputError, which is one too.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, open_regular(path)
        header = read_header(self._file, os.fstat(self._file.fileno()).st_size)
        if header.fortran_order and len(header.shape) > 1:
            raise ValueError("it is in Fortran order, so its rows cannot be read one at a time")
        self.shape: tuple[int, ...] = header.shape
        self.dtype: np.dtype[Any] = header.dtype
        self.ndim, self.size = len(self.shape), math.prod(self.shape)
        self._start = header.start
        self._row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.shape[0]

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        """Return rows that follow each other."""
        first, last, step = rows.indices(len(self))
        if step != 1:
            raise IndexError("rows of a slice must follow each other")
        out = np.empty((max(0, last - first), *self.shape[1:]), self.dtype)
        self._read(out.reshape(-1).view(np.uint8).data, first)
        return out

    def take(self, indices: NDArray[Any] | Sequence[int], axis: int = 0) -> NDArray[Any]:
        """Return rows by their indices."""
        chosen = np.asarray(indices)
        if axis != 0:
            raise IndexError(f"axis must be 0, got {axis}")
        if chosen.size and not (chosen.min() >= 0 and chosen.max() < len(self)):
            raise IndexError(f"rows must be in [0, {len(self) - 1}]")
        out = np.empty((len(chosen), *self.shape[1:]), self.dtype)
        content, size = out.reshape(-1).view(np.uint8).data, self._row_bytes
        for place, row in enumerate(chosen.tolist()):
            self._read(content[place * size : (place + 1) * size], row)
        return out

    def _read(self, into: memoryview, row: int) -> None:
        at = self._start + row * self._row_bytes
        while len(into):
            try:
                count = os.preadv(self._file.fileno(), [into], at)
            except OSError as error:
                raise InputError(f"cannot read {self._path}: {error.strerror}") from error
            if not count:
                raise InputError(f"cannot read {self._path}: it has become shorter")
            into, at = into[count:], at + count
