"""Rows of an .npy file, read as they are asked for."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mibfast._check import InputError


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
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115
        version = np.lib.format.read_magic(self._file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"it is of .npy version {version[0]}.{version[1]}; expected 1.0 or 2.0")
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        self.shape: tuple[int, ...]
        self.dtype: np.dtype[Any]
        self.shape, in_fortran_order, self.dtype = read_header(self._file)
        if self.dtype.hasobject:
            raise ValueError("Object arrays cannot be loaded")
        if in_fortran_order and len(self.shape) > 1:
            raise ValueError("it is in Fortran order, so its rows cannot be read one at a time")
        self.ndim, self.size = len(self.shape), math.prod(self.shape)
        self._start = self._file.tell()
        self._row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        if os.fstat(self._file.fileno()).st_size < self._start + self.size * self.dtype.itemsize:
            raise ValueError("it is shorter than its header says")

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
                raise InputError(f"cannot read {self._file.name}: {error.strerror}") from error
            if not count:
                raise InputError(f"cannot read {self._file.name}: it has become shorter")
            into, at = into[count:], at + count
