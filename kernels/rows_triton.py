"""Addresses, loads and exponentials of Triton kernels of rows that read every number once.

A kernel takes matrices [N, D] whose rows have no gaps between numbers, each with the stride of its rows; a program has
ROWS rows and COLUMNS columns of them, and computes in DTYPE.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mibfast.kernels.launch_configuration import Tile


@triton.jit
def _series(x):
    """(e^x - 1 - x) / x^2 for |x| < 1: its Taylor series, to 2.5e-8 in float32 and 8e-18 in float64."""
    terms: tl.constexpr = 18 if x.dtype == tl.float64 else 10
    total = x * 0.0 + 1.0
    for k in tl.static_range(terms, 2, -1):
        total = 1.0 + total * x * (1.0 / k)
    return 0.5 * total


@triton.jit
def half_expm1(x):
    """(e^x - 1) / 2; relative error 3e-7 in float32; inf only where that is beyond the dtype, though e^x be it."""
    root = tl.exp(0.5 * x)
    return tl.where(tl.abs(x) < 1.0, 0.5 * (x + x * x * _series(x)), 0.5 * root * root - 0.5)


@triton.jit
def half_expm1_minus_x(x):
    """(e^x - 1 - x) / 2, never negative, of the range of `half_expm1`: what a log-variance x adds to a KL divergence.

    Relative error 1e-6.
    """
    root = tl.exp(0.5 * x)
    return tl.where(tl.abs(x) < 1.0, 0.5 * x * x * _series(x), 0.5 * root * root - 0.5 - 0.5 * x)


@triton.jit
def load(matrix, stride, row, column, inside, DTYPE: tl.constexpr):
    return tl.load(matrix + row * stride + column, mask=inside, other=0.0).to(DTYPE)


@triton.jit
def rows_of_program(N, ROWS: tl.constexpr):
    """The rows of this program [ROWS, 1], int64, and the mask of those in range."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    return row, row < N


@triton.jit
def tile_of_program(N, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows and columns of this program's tile, and the mask of what is in range."""
    row, there = rows_of_program(N, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return row, column, there & (column < D)


def accumulation_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def constants(d: int, tile: Tile, dtype: torch.dtype) -> dict[str, Any]:
    wide = tl.float64 if dtype == torch.float64 else tl.float32
    return {"D": d, "DTYPE": wide, **tile.arguments()}


def matrices_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors as matrices [N, d] whose rows have no gaps between numbers."""
    flat = [x.detach().reshape(-1, x.shape[-1]) for x in tensors]
    return [x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous() for x in flat]


def row_strides(matrices: Sequence[Tensor]) -> tuple[int, ...]:
    return tuple(x.stride(0) for x in matrices)
