"""Matrix products inside CPU kernels, by the BLAS that PyTorch calls for its own.

A kernel that leaves its products to `torch.mm` must end before each and begin again after it. PyTorch brings a BLAS
along (MKL on x86-64, OpenBLAS on Arm), whose `sgemm_` and `dgemm_` are found by their names and called by their
addresses. They use the threads that `torch.set_num_threads` allows, as `torch.mm` does. Where they are not found, or do
not multiply as they should, :func:`address` is 0, and what needs them is done another way.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from mibfast.kernels.compilation import inline

_NO, _YES = ord("N"), ord("T")


@intrinsic  # type: ignore[untyped-decorator]
def _call(
    typing_context: Any,
    function: Any,
    transpose_a: Any,
    transpose_b: Any,
    sizes: Any,
    a: Any,
    b: Any,
    beta: Any,
    c: Any,
) -> Any:
    """Call gemm at an address: C [m, n] = op(A) op(B) + beta C, by columns.

    `sizes` are m, n and k, and a matrix is its address and the distance of its columns.
    """
    signature = types.void(function, transpose_a, transpose_b, sizes, a, b, beta, c)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        byte, pointer = ir.IntType(8), ir.IntType(8).as_pointer()

        def by_reference(value: Any) -> Any:
            return builder.bitcast(cgutils.alloca_once_value(builder, value), pointer)

        def matrix(value: Any) -> list[Any]:
            address, distance = cgutils.unpack_tuple(builder, value, 2)
            return [builder.inttoptr(address, pointer), by_reference(distance)]

        call, letter_a, letter_b, sizes_value, a_value, b_value, beta_value, c_value = args
        arguments = [
            *(by_reference(builder.trunc(letter, byte)) for letter in (letter_a, letter_b)),
            *map(by_reference, cgutils.unpack_tuple(builder, sizes_value, 3)),
            by_reference(ir.Constant(beta_value.type, 1.0)),
            *matrix(a_value),
            *matrix(b_value),
            by_reference(beta_value),
            *matrix(c_value),
        ]
        kind = ir.FunctionType(ir.VoidType(), [pointer] * len(arguments))
        builder.call(builder.inttoptr(call, kind.as_pointer()), arguments)
        return context.get_dummy_value()

    return signature, codegen


# Of contiguous matrices by rows, which to gemm are the transposed ones by columns.


@inline
def rows_by_rows(gemm: int, a: Any, b: Any, out: Any) -> None:
    """out [n, m] = a [n, d] b^T of b [m, d]."""
    (n, d), m = a.shape, b.shape[0]
    zero = out.dtype.type(0.0)
    _call(gemm, _YES, _NO, (m, n, d), (b.ctypes.data, d), (a.ctypes.data, d), zero, (out.ctypes.data, m))


@inline
def weighted_rows(gemm: int, g: Any, b: Any, out: Any) -> None:
    """out [n, d] = g [n, m] b of b [m, d]."""
    (n, m), d = g.shape, b.shape[1]
    zero = out.dtype.type(0.0)
    _call(gemm, _NO, _NO, (d, n, m), (b.ctypes.data, d), (g.ctypes.data, m), zero, (out.ctypes.data, d))


@inline
def weighted_columns(gemm: int, g: Any, a: Any, out: Any) -> None:
    """out [m, d] = g^T a of g [n, m] and a [n, d]."""
    (n, m), d = g.shape, a.shape[1]
    zero = out.dtype.type(0.0)
    _call(gemm, _NO, _YES, (d, m, n), (a.ctypes.data, d), (g.ctypes.data, m), zero, (out.ctypes.data, d))


def _multiplies(function: int, dtype: torch.dtype) -> bool:
    """Whether a function is gemm: C [4, 2] = B [4, 3] A^T of A [2, 3], by columns, with no compilation to find out."""
    gemm = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 13)(function)
    kind, number = (np.float64, ctypes.c_double) if dtype == torch.float64 else (np.float32, ctypes.c_float)
    a, b, c = (
        np.arange(6, dtype=kind).reshape(2, 3),
        np.arange(12, dtype=kind).reshape(4, 3) - 5,
        np.zeros((2, 4), kind),
    )
    c.fill(np.nan)
    letters = [ctypes.byref(ctypes.c_char(letter)) for letter in (_YES, _NO)]
    m, n, k = (ctypes.byref(ctypes.c_int64(size)) for size in (4, 2, 3))
    one, zero = (ctypes.byref(number(value)) for value in (1.0, 0.0))
    gemm(*letters, m, n, k, one, b.ctypes.data, k, a.ctypes.data, k, zero, c.ctypes.data, m)
    return np.array_equal(c, a @ b.T)


@functools.cache
def address(dtype: torch.dtype) -> int:
    """Return the address of gemm of a dtype, float32 or float64; 0 where there is none that multiplies as it should."""
    name = "dgemm_" if dtype == torch.float64 else "sgemm_"
    try:
        found = ctypes.cast(getattr(ctypes.CDLL(torch._C.__file__), name), ctypes.c_void_p).value
    except (AttributeError, OSError, TypeError):
        return 0
    if not found:
        return 0
    return found if _multiplies(found, dtype) else 0
