"""Kernels that all threads run without Python in between.

:func:`mibfast._threads.parallel` calls Python on each thread, so threads wait for each other's turn with the
interpreter, some 100 microseconds a call: nothing beside milliseconds of work, and all that a second thread wins of
half a millisecond. A callback is compiled as a C function of one pointer, to the integers and addresses that it works
on, and takes its slots by an atomic counter. The pointer's type is float32 or float64 and says what the arrays hold.

A callback calls functions that are compiled into it (`inline`) and no kernels: see `compilation`.
"""

from __future__ import annotations

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

# Of a callback's arguments the first are a counter of slots, how many there are, and the address of the counter.
COUNT, COUNTER = 1, 2


@intrinsic  # type: ignore[untyped-decorator]
def next_slot(typing_context: Any, counter: Any) -> Any:
    """The slot that this thread is to do, and no other; past the last where none is left."""
    signature = types.int64(types.int64)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        integer = ir.IntType(64)
        pointer = builder.inttoptr(args[0], integer.as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(integer, 1), "monotonic")

    return signature, codegen


@intrinsic  # type: ignore[untyped-decorator]
def _address_of(typing_context: Any, pointer: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.ptrtoint(args[0], ir.IntType(64))

    return types.int64(pointer), codegen


@intrinsic  # type: ignore[untyped-decorator]
def _int64_at(typing_context: Any, address: Any) -> Any:
    """A pointer to int64 from an integer address, for `numba.carray`."""
    signature = types.CPointer(types.int64)(address)  # type: ignore[attr-defined]

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(sig.return_type))

    return signature, codegen


def integers_at(address: int, count: int) -> Any:
    """The int64 array [count] at an address."""
    raise NotImplementedError("called from kernels only")


@overload(integers_at, jit_options=INLINED, strict=False)  # type: ignore[untyped-decorator]
def _integers_at(address: Any, count: Any) -> Any:
    return lambda address, count: carray(_int64_at(address), (count,))


def arguments_at(pointer: Any, count: int) -> Any:
    """The `count` integers that a callback was given."""
    raise NotImplementedError("called from kernels only")


@overload(arguments_at, jit_options=INLINED, strict=False)  # type: ignore[untyped-decorator]
def _arguments_at(pointer: Any, count: Any) -> Any:
    return lambda pointer, count: carray(_int64_at(_address_of(pointer)), (count,))


def array_at(address: int, shape: tuple[int, ...], pointer: Any) -> Any:
    """The array at an address, of the dtype of the callback's pointer."""
    raise NotImplementedError("called from kernels only")


@overload(array_at, jit_options=INLINED, strict=False)  # type: ignore[untyped-decorator]
def _array_at(address: Any, shape: Any, pointer: Any) -> Any:
    if pointer.dtype == types.float32:
        return lambda address, shape, pointer: carray(float32_at(address), shape)
    return lambda address, shape, pointer: carray(float64_at(address), shape)


@functools.cache
def _compiled(function: Callable[[Any], None], dtype: Any) -> Any:
    pointer = types.CPointer(numba.from_dtype(np.dtype(dtype)))  # type: ignore[attr-defined]
    return c_function(function, types.void(pointer))


_Callback = TypeVar("_Callback", bound=Callable[[Any], None])


def callback(function: _Callback) -> _Callback:
    """Mark a function of one pointer as one that :func:`run` compiles and runs, for the cache on disk."""
    named_by_sources(function)
    return function


def run(function: Callable[[Any], None], dtype: Any, count: int, *arguments: int | np.ndarray[Any, Any]) -> None:
    """Run a callback on `count` slots. It finds its arguments, of arrays their addresses, from the fourth on."""
    numbers = [x if isinstance(x, int) else x.ctypes.data for x in arguments]
    given = np.array([0, count, 0, *numbers], np.int64)
    given[COUNTER] = given.ctypes.data
    run_compiled(_compiled(function, dtype).address, given.ctypes.data, count)
