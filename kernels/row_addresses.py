"""Any number of matrices for one compiled kernel: addresses and strides in place of arrays.

Numba compiles a kernel again for every number, layout and order of its array arguments. A kernel over M modalities
takes two integer arrays instead and compiles once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numba import carray
from numba.core import types
from numba.extending import overload
from torch import Tensor

from mibfast import _buffers
from mibfast.kernels.compilation import INLINED
from mibfast.kernels.vector_math import float32_at, float64_at


def row_at(address: int, row: int, stride: int, d: int, like: Any) -> Any:
    """Row `row` [d] of the matrix at an address whose rows lie `stride` numbers apart, of the dtype of `like`."""
    raise NotImplementedError("called from kernels only")


@overload(row_at, jit_options=INLINED, strict=False)  # type: ignore[untyped-decorator]
def _row_at(address: Any, row: Any, stride: Any, d: Any, like: Any) -> Any:
    if like.dtype == types.float32:
        return lambda address, row, stride, d, like: carray(float32_at(address + 4 * row * stride), (d,))
    return lambda address, row, stride, d, like: carray(float64_at(address + 8 * row * stride), (d,))


def matrix_at(address: int, n: int, d: int, like: Any) -> Any:
    """The contiguous matrix [n, d] at an address, of the dtype of `like`."""
    raise NotImplementedError("called from kernels only")


@overload(matrix_at, jit_options=INLINED, strict=False)  # type: ignore[untyped-decorator]
def _matrix_at(address: Any, n: Any, d: Any, like: Any) -> Any:
    if like.dtype == types.float32:
        return lambda address, n, d, like: carray(float32_at(address), (n, d))
    return lambda address, n, d, like: carray(float64_at(address), (n, d))


class RowAddresses:
    """M matrices [N, d]: float64 ones as float64, all others as float32, with unit stride within a row.

    Converted copies, where any are needed, live as long as this object.
    """

    def __init__(self, matrices: Sequence[Tensor]) -> None:
        self.torch_dtype = torch.float64 if matrices[0].dtype == torch.float64 else torch.float32
        self.dtype = np.float64 if self.torch_dtype == torch.float64 else np.float32
        converted = [x.detach().to(self.torch_dtype) for x in matrices]
        self._kept = [x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous() for x in converted]
        self.m, (self.n, self.d) = len(matrices), matrices[0].shape
        self.addresses = np.array([x.data_ptr() for x in self._kept], np.int64)
        self.strides = np.array([x.stride(0) for x in self._kept], np.int64)

    def contiguous(self, m: int) -> np.ndarray | None:
        """Matrix m as an array, None where its rows do not follow each other without gaps."""
        matrix = self._kept[m]
        return matrix.numpy() if matrix.is_contiguous() else None

    def empty(self, *shape: int) -> np.ndarray:
        """An uninitialised array of this dtype."""
        return _buffers.empty(shape, self.dtype)
