"""Kernels that all threads run without Python in between.

:func:`mibfast._threads.parallel` calls Python on each thread, so threads wait for each other's turn with the
interpreter: beside milliseconds of work that is nothing, but of half a millisecond it takes more than a second thread
wins. A callback is compiled as a C function of one pointer, to a record of numbers and addresses, and takes slots from
the record's counter.

A callback calls functions that are compiled into it (`inline`) and no kernels: see `compilation`.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from llvmlite import ir
from numba import carray
from numba.core import types
from numba.extending import intrinsic, overload

from mibfast._threads import run_compiled
from mibfast.kernels.compilation import INLINED, c_function, named_by_sources
from mibfast.kernels.vector_math import float32_at, float64_at

_Function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
# A record begins with the counter, and how many slots there are.
_HEAD = [("next_slot", np.int64), ("slots", np.int64)]


@intrinsic  # type: ignore[untyped-decorator]
def next_slot(typing_context: Any, record: Any) -> Any:
    """The slot that this thread is to do, and no other; past the last where none is left."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        counter = builder.bitcast(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", counter, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(record), codegen


@intrinsic  # type: ignore[untyped-decorator]
def _int64_at(typing_context: Any, address: Any) -> Any:
    """A pointer to int64 from an integer address, for `numba.carray`."""
    signature = types.CPointer(types.int64)(address)  # type: ignore[attr-defined]

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(sig.return_type))

    return signature, codegen


def array_at(address: int, shape: tuple[int, ...], like: float) -> Any:
    """The array at an address, of the dtype of a number: int64, float32 or float64."""
    raise NotImplementedError("called from kernels only")


@overload(array_at, jit_options=INLINED, strict=False)  # type: ignore[untyped-decorator]
def _array_at(address: Any, shape: Any, like: Any) -> Any:
    if like == types.int64:
        return lambda address, shape, like: carray(_int64_at(address), shape)
    if like == types.float32:
        return lambda address, shape, like: carray(float32_at(address), shape)
    return lambda address, shape, like: carray(float64_at(address), shape)


@functools.cache
def _compiled(function: Callable[[Any], None], names: tuple[str, ...], kinds: tuple[type, ...]) -> tuple[Any, ...]:
    """The layout of a callback's record, its machine code, which lives as long as this, and that as a function."""
    fields = zip(names, (np.int64 if kind is int else kind for kind in kinds), strict=True)
    record = np.dtype([*_HEAD, *fields])
    pointer = types.CPointer(numba.from_dtype(record))  # type: ignore[attr-defined]
    code = c_function(function, types.void(pointer))
    return record, code, _Function(code.address)


_Callback = TypeVar("_Callback", bound=Callable[[Any], None])


def callback(function: _Callback) -> _Callback:
    """Mark a function of a pointer to a record as one that :func:`run` compiles and runs, for the cache on disk."""
    named_by_sources(function)
    return function


def run(function: Callable[[Any], None], slots: int, **arguments: Any) -> None:
    """Run a callback on `slots` slots; fields of its record are integers, NumPy floats, and addresses of arrays."""
    values = [x.__array_interface__["data"][0] if isinstance(x, np.ndarray) else x for x in arguments.values()]
    layout, code, call = _compiled(function, tuple(arguments), tuple(map(type, values)))
    record = np.array((0, slots, *values), layout)
    if slots == 1:
        call(record.ctypes.data)
    else:
        run_compiled(code.address, record.ctypes.data, slots)
