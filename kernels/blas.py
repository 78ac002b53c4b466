"""Matrix products inside CPU kernels, by the BLAS that PyTorch calls for its own.

A product of small matrices takes a microsecond, and leaving a kernel for `torch.mm` and coming back takes ten. PyTorch
brings a BLAS along (MKL on x86-64, OpenBLAS on Arm), whose `sgemm_` and `dgemm_` are found by their names and called by
their addresses. They use the threads that `torch.set_num_threads` allows, as `torch.mm` does. Where they are not found,
or do not multiply as they should, :func:`address` is 0, and what needs them is done another way.
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

from mibfast.kernels.compilation import inline, kernel

_NO, _YES = ord("N"), ord("T")


@intrinsic  # type: ignore[untyped-decorator]
def _call(
    typing_context: Any,
    function: Any,
    transpose_a: Any,
    transpose_b: Any,
    m: Any,
    n: Any,
    k: Any,
    a: Any,
    a_stride: Any,
    b: Any,
    b_stride: Any,
    beta: Any,
    c: Any,
    c_stride: Any,
) -> Any:
    """Call gemm at an address: C = op(A) op(B) + beta C, by columns; matrices are addresses."""
    numbers = (function, transpose_a, transpose_b, m, n, k, a, a_stride, b, b_stride, beta, c, c_stride)
    signature = types.void(*(beta if x is beta else types.int64 for x in numbers))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        byte, pointer = ir.IntType(8), ir.IntType(8).as_pointer()

        def by_reference(value: Any) -> Any:
            return builder.bitcast(cgutils.alloca_once_value(builder, value), pointer)

        def address(value: Any) -> Any:
            return builder.inttoptr(value, pointer)

        call, letter_a, letter_b, *sizes = args[:6]
        a_data, a_stride, b_data, b_stride, beta_value, c_data, c_stride = args[6:]
        arguments = [
            by_reference(builder.trunc(letter_a, byte)),
            by_reference(builder.trunc(letter_b, byte)),
            *map(by_reference, sizes),
            by_reference(ir.Constant(beta_value.type, 1.0)),
            address(a_data),
            by_reference(a_stride),
            address(b_data),
            by_reference(b_stride),
            by_reference(beta_value),
            address(c_data),
            by_reference(c_stride),
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
    _call(gemm, _YES, _NO, m, n, d, b.ctypes.data, d, a.ctypes.data, d, zero, out.ctypes.data, m)


@inline
def weighted_rows(gemm: int, g: Any, b: Any, out: Any) -> None:
    """out [n, d] = g [n, m] b of b [m, d]."""
    (n, m), d = g.shape, b.shape[1]
    zero = out.dtype.type(0.0)
    _call(gemm, _NO, _NO, d, n, m, b.ctypes.data, d, g.ctypes.data, m, zero, out.ctypes.data, d)


@inline
def weighted_columns(gemm: int, g: Any, a: Any, out: Any) -> None:
    """out [m, d] = g^T a of g [n, m] and a [n, d]."""
    (n, m), d = g.shape, a.shape[1]
    zero = out.dtype.type(0.0)
    _call(gemm, _NO, _YES, d, m, n, a.ctypes.data, d, g.ctypes.data, m, zero, out.ctypes.data, d)


@kernel
def _products(gemm: int, a: Any, b: Any, g: Any, rows: Any, columns: Any, products: Any) -> None:
    """All three products, for the check of a function that was found."""
    rows_by_rows(gemm, a, b, products)
    weighted_rows(gemm, g, b, rows)
    weighted_columns(gemm, g, a, columns)


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
    numbers = torch.arange(12, dtype=dtype)
    a, b, g = (x.numpy().copy() for x in (numbers[:6].view(2, 3), numbers.view(4, 3) - 5, numbers[4:].view(2, 4)))
    results = [np.full(shape, np.nan, a.dtype) for shape in ((2, 3), (4, 3), (2, 4))]
    _products(found, a, b, g, *results)
    right = all(np.array_equal(x, y) for x, y in zip(results, (g @ b, g.T @ a, a @ b.T), strict=True))
    return found if right else 0
