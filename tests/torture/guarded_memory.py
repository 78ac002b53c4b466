"""Arrays between two pages without access, filled with NaN: what is read or written beside them ends the process.

Numpy takes its memory from an allocator made here, and `torch.empty` from numpy, so that this holds for what kernels
allocate as well as for what they are given. Where the array ends, or begins, at the border of a page decides which side
of it is exact to the byte; on the other a pattern is looked at when the memory is given back.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_PAGE = 4096
_NONE, _READ_WRITE, _PRIVATE_ANONYMOUS = 0, 3, 0x22
_PATTERN = 0xA5

_Malloc = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_Calloc = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
_Realloc = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_MOST_FREED = 2**16
_CAPSULE = b"mem_handler"


@numba.cfunc("void(CPointer(intp), intp, uintp)")  # type: ignore[untyped-decorator]
def _left_to_release(freed: Any, address: Any, size: Any) -> None:
    """Free: compiled, as it is called where an exception is on its way, and Python must not run."""
    addresses = numba.carray(freed, (_MOST_FREED,))
    addresses[0] += 1
    addresses[addresses[0]] = address


class _Handler(ctypes.Structure):
    """PyDataMem_Handler of numpy/ndarraytypes.h."""

    _fields_ = (
        ("name", ctypes.c_char * 127),
        ("version", ctypes.c_uint8),
        ("context", ctypes.c_void_p),
        ("malloc", _Malloc),
        ("calloc", _Calloc),
        ("realloc", _Realloc),
        ("free", ctypes.c_void_p),
    )


class GuardedMemory:
    """An allocator for numpy. Attributes say what it does, and what it saw.

    `at_end`: whether arrays end or begin at a border. `fails_at`: which allocation of `at_least` bytes, counted in
    `count`, finds no memory. `overwritten`: the sizes of arrays beside which something was written.
    """

    def __init__(self) -> None:
        self.at_end, self.fails_at, self.at_least, self.count = True, 0, 1, 0
        self.overwritten: list[int] = []
        self._blocks: dict[int, tuple[int, int, int]] = {}
        # How many addresses are free, and these.
        self._freed = (ctypes.c_ssize_t * _MOST_FREED)()
        self._handler = _Handler(
            b"guarded",
            1,
            ctypes.addressof(self._freed),
            _Malloc(lambda _, size: self._allocate(size, 0xFF)),
            _Calloc(lambda _, count, size: self._allocate(count * size, 0)),
            _Realloc(self._reallocate),
            _left_to_release.address,
        )
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        self._capsule = new(ctypes.addressof(self._handler), _CAPSULE, None)

    def _allocate(self, size: int, fill: int) -> int | None:
        self.release()
        size = max(size, 1)
        if size >= self.at_least:
            self.count += 1
            if self.count == self.fails_at:
                return None
        inner = -(-size // _PAGE) * _PAGE
        start = _libc.mmap(None, inner + 2 * _PAGE, _READ_WRITE, _PRIVATE_ANONYMOUS, -1, 0)
        if start in (None, ctypes.c_void_p(-1).value):
            return None
        for border in (start, start + _PAGE + inner):
            _libc.mprotect(border, _PAGE, _NONE)
        first = start + _PAGE
        ctypes.memset(first, _PATTERN, inner)
        address = first + (inner - size if self.at_end else 0)
        ctypes.memset(address, fill, size)
        self._blocks[address] = start, inner, size
        return int(address)

    def release(self) -> None:
        """Give back the memory of arrays that are gone, and look what was written beside them."""
        # One at a time: while Python runs, arrays go.
        while count := self._freed[0]:
            address, self._freed[0] = self._freed[count], count - 1
            if address not in self._blocks:
                continue
            start, inner, size = self._blocks.pop(address)
            before = address - start - _PAGE
            beside = ctypes.string_at(start + _PAGE, before) + ctypes.string_at(address + size, inner - size - before)
            if beside.strip(bytes([_PATTERN])):
                self.overwritten.append(size)
            _libc.munmap(start, inner + 2 * _PAGE)

    def _reallocate(self, _: Any, address: int | None, size: int) -> int | None:
        new = self._allocate(size, 0xFF)
        if new is not None and address is not None:
            ctypes.memmove(new, address, min(size, self._blocks[address][2]))
            _left_to_release.ctypes(ctypes.addressof(self._freed), address, 0)
        return new

    @contextmanager
    def used(self) -> Iterator[None]:
        """Allocate so in this block; arrays may outlive it, and this object must outlive them."""
        before = _set_handler()(self._capsule)
        originals = [(place, name, getattr(place, name)) for place, name in _MADE_BY_TORCH]
        for place, name, original in originals:
            setattr(place, name, _guarded(original))
        try:
            yield
        finally:
            for place, name, original in originals:
                setattr(place, name, original)
            _set_handler()(before)


# What kernels' launchers call for memory: results, workspace, and copies of another dtype or of unit stride.
_MADE_BY_TORCH = ((torch, "empty"), (torch, "empty_like"), (Tensor, "to"), (Tensor, "contiguous"))


def _guarded(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(make)
    def guarded(*arguments: Any, **options: Any) -> Tensor:
        x = make(*arguments, **options)
        if x.device.type != "cpu" or x.requires_grad or not x.is_contiguous() or not x.numel():
            return x
        if isinstance(first := arguments[0], Tensor) and first.data_ptr() == x.data_ptr():
            return x
        result = contiguous(tuple(x.shape), x.dtype)
        return result if make.__name__.startswith("empty") else result.copy_(x)

    return guarded


def _set_handler() -> Any:
    """PyDataMem_SetHandler, number 304 of numpy's C interface."""
    from numpy._core import _multiarray_umath as multiarray

    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    table = ctypes.cast(pointer(multiarray._ARRAY_API, None), ctypes.POINTER(ctypes.c_void_p))
    return ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(table[304])


def contiguous(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return an uninitialised tensor on numpy's memory."""
    size = torch.Size(shape).numel() * dtype.itemsize
    if not size:
        return torch.zeros(shape, dtype=dtype)
    return torch.from_numpy(np.empty(size, np.uint8)).view(dtype).view(shape)


# By what they are called: the strides of [N, d], and what is between their numbers is NaN.
LAYOUTS = {
    "contiguous": lambda n, d: (d, 1),
    "gaps after rows": lambda n, d: (d + 3, 1),
    "every other column": lambda n, d: (2 * d, 2),
    "transposed": lambda n, d: (1, n),
    "transposed, gaps after columns": lambda n, d: (1, n + 1),
    "rows overlap": lambda n, d: (1, 1),
    "one row for all": lambda n, d: (0, 1),
    "one column for all": lambda n, d: (1, 0),
}


def laid_out(x: Tensor, layout: str) -> Tensor:
    """Return a matrix [N, d] in these strides, on memory that ends with its last number.

    Where numbers share memory, all of them are the last one of x.
    """
    strides = LAYOUTS[layout](*x.shape)
    rows, columns = (torch.arange(size) * stride for size, stride in zip(x.shape, strides, strict=True))
    places = (rows[:, None] + columns).reshape(-1).numpy()
    last = np.full(places.max() + 1, -1)
    # In order, which an assignment by PyTorch's threads is not.
    last[places] = np.arange(x.numel())
    memory = contiguous((len(last),), x.dtype)
    written = torch.from_numpy(last) >= 0
    memory[written] = x.reshape(-1)[torch.from_numpy(last)[written]]
    return memory.as_strided(x.shape, strides)
