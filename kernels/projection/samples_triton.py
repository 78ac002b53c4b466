"""What Triton kernels of projections share, whose program takes one sample: its vectors, and their small matrices.

All is float64. Vectors are rows of tiles [ROWS, COLUMNS], a piece of d at a time; small matrices are tiles, one row and
column for each vector and zeros to a power of two. Gram matrices and combinations are products by vectors: a tile of
float64 is no operand of the tensor cores that every Triton from 3.6 on compiles.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

from mibfast.kernels.launch_configuration import sample_tile
from mibfast.kernels.projection.reference import RELATIVE_FLOOR, SMALLEST_RIDGE

_RELATIVE_FLOOR = tl.constexpr(RELATIVE_FLOOR)


@triton.jit
def sample_pointers(matrices, strides, sample, M: tl.constexpr, ROWS: tl.constexpr):
    """Where this sample begins in each of M matrices [N, d]: [ROWS], the first again beyond M."""
    index = tl.arange(0, ROWS)
    begin = matrices[0] + sample * strides[0] + tl.zeros([ROWS], tl.int64)
    for k in tl.static_range(1, M):
        begin = tl.where(index == k, matrices[k] + sample * strides[k], begin)
    return begin


@triton.jit
def _piece(begin, start, M: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Addresses of columns start to start + COLUMNS of each vector, and which there are."""
    row = tl.arange(0, ROWS)[:, None]
    column = start + tl.arange(0, COLUMNS)[None, :]
    return begin[:, None] + column, (row < M) & (column < D)


@triton.jit
def load_tile(begin, start, M: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    addresses, inside = _piece(begin, start, M, D, ROWS, COLUMNS)
    return tl.load(addresses, mask=inside, other=0.0).to(tl.float64)


@triton.jit
def store_tile(begin, start, tile, M: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    addresses, inside = _piece(begin, start, M, D, ROWS, COLUMNS)
    tl.store(addresses, tile.to(begin.dtype.element_ty), mask=inside)


@triton.jit
def _row(x, k, ROWS: tl.constexpr):
    """Row k of a tile, as [1, columns]."""
    return tl.sum(tl.where(tl.arange(0, ROWS)[:, None] == k, x, 0.0), 0, keep_dims=True)


@triton.jit
def _column(x, k, COLUMNS: tl.constexpr):
    """Column k of a tile, as [rows, 1]."""
    return tl.sum(tl.where(tl.arange(0, COLUMNS)[None, :] == k, x, 0.0), 1, keep_dims=True)


@triton.jit
def _add_inner_products(products, x, y, k, ROWS: tl.constexpr):
    inner = tl.sum(x * _row(y, k, ROWS), 1, keep_dims=True)
    return products + tl.where(tl.arange(0, ROWS)[None, :] == k, inner, 0.0)


@triton.jit
def inner_products(x, y, M: tl.constexpr, ROWS: tl.constexpr):
    """x y^T [ROWS, ROWS] of tiles [ROWS, COLUMNS]."""
    products = tl.zeros([ROWS, ROWS], tl.float64)
    # Few rows stand in one thread each: written out, picking one costs nothing.
    if ROWS <= 4:
        for k in tl.static_range(M):
            products = _add_inner_products(products, x, y, k, ROWS)
    else:
        for k in range(M):
            products = _add_inner_products(products, x, y, k, ROWS)
    return products


@triton.jit
def product(a, x, M: tl.constexpr, ROWS: tl.constexpr):
    """A small matrix [ROWS, ROWS] times a tile [ROWS, COLUMNS]."""
    product = x * 0.0
    if ROWS <= 4:
        for k in tl.static_range(M):
            product += _column(a, k, ROWS) * _row(x, k, ROWS)
    else:
        for k in range(M):
            product += _column(a, k, ROWS) * _row(x, k, ROWS)
    return product


@triton.jit
def diagonal_of(a, ROWS: tl.constexpr):
    """The diagonal as a row [1, ROWS]."""
    index = tl.arange(0, ROWS)
    return tl.sum(tl.where(index[:, None] == index[None, :], a, 0.0), 0, keep_dims=True)


@triton.jit
def inverse_square_root(x):
    """1 / sqrt(x), 0 where x is 0."""
    zero = x == 0.0
    return tl.where(zero, 0.0, 1.0 / tl.sqrt(tl.where(zero, 1.0, x)))


@triton.jit
def inverse_cholesky(gram, M: tl.constexpr, RIDGE: tl.constexpr, ROWS: tl.constexpr):
    """W = L^-1 where L L^T = gram + the ridge in effect, and that ridge [1, ROWS].

    The ridge is raised to the rounding of each row of the Gram matrix.
    """
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, ROWS)[None, :]
    # Comparisons that a NaN fails, so that it stays.
    in_effect = diagonal_of(gram, ROWS) * _RELATIVE_FLOOR
    in_effect = tl.where(in_effect < RIDGE, RIDGE, in_effect)
    left = gram + tl.where(row == column, in_effect, 0.0)
    w = tl.where(row == column, 1.0, gram * 0.0)
    for k in range(M):
        pivot_row = _row(left, k, ROWS)
        pivot = _column(pivot_row, k, ROWS)
        # Rounding alone can take a pivot below the ridge.
        lowest = _column(in_effect, k, ROWS)
        pivot = tl.where(pivot < lowest, lowest, pivot)
        factors = tl.where(row > k, _column(left, k, ROWS) / pivot, 0.0)
        w_row = _row(w, k, ROWS)
        left -= factors * pivot_row
        # Row k is complete: what follows takes it as it is.
        w = tl.where(row == k, w / tl.sqrt(pivot), w - factors * w_row)
    return tl.where((column <= row) & (row < M), w, 0.0), in_effect


@triton.jit
def gram_matrix(begin, M: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    gram = tl.zeros([ROWS, ROWS], tl.float64)
    for start in range(0, D, COLUMNS):
        z = load_tile(begin, start, M, D, ROWS, COLUMNS)
        gram += inner_products(z, z, M, ROWS)
    return gram


def constants(d: int, vectors: int) -> dict[str, int]:
    """Constants of a kernel of so many vectors [d]."""
    return {"D": d, **sample_tile(d, vectors).arguments()}


def effective_ridge(ridge: float) -> float:
    """The ridge, a constant of kernels: an argument would be float32."""
    return max(ridge, SMALLEST_RIDGE)
