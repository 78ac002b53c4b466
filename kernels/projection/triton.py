"""Ridge projections in Triton: a program takes one sample, in float64, and its M vectors from memory once.

The formulae are those of `cpu.py`: all M leave-one-out projections of a sample share H = (Z^T Z + lambda I)^-1, with
coefficients c_m = -H[:, m] / H[m, m] of z_m on the others, and each gradient is a combination of the z's and the
upstream gradients with M x M coefficients. The small matrices are tiles of float64, one row and column for each vector
and zeros to a power of two: W = L^-1 comes from M steps of elimination on [Z^T Z + lambda I | I], the ridge raised as
in `reference.py`, and H = W^T W. Gram matrices and combinations are products of tiles [M, piece of d], by vectors: a
tile of float64 is no operand of the tensor cores that every Triton from 3.6 on compiles.

Cost for N samples, M vectors of d numbers, B bytes a number:

    leave-one-out        forward reads and writes M d B; backward reads 2 M d B and writes M d B; H is 8 M^2 bytes
    unit queries, keys   forward reads M d B and writes 2 M d B; backward reads 3 M d B and writes M d B
    FLOPs                forward 4 M^2 d, backward 6 M^2 d, unit 6 M^2 d and 10 M^2 d; float64

d is walked twice (products, then combinations; unit keys thrice, for their norms), the second time from the cache that
the first filled: M d B is 4 KiB at M = 8, d = 256 in bfloat16. So the bytes above are what must move. On an H200 (4.8
TB/s, 34 TFLOP/s float64, by datasheet) N = 65536, M = 4, d = 256 in bfloat16 moves 268 MB forward, 56 us, beside 32 us
of arithmetic. Predicted: 100 us, bound by the latency of M eliminations in a warp. Measured: not run.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mibfast.kernels.launch_configuration import Tile, on_device_of, sample_tile
from mibfast.kernels.projection.reference import RELATIVE_FLOOR, SMALLEST_RIDGE

_RELATIVE_FLOOR = tl.constexpr(RELATIVE_FLOOR)


@triton.jit
def _pointers(matrices, strides, sample, M: tl.constexpr, ROWS: tl.constexpr):
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
def _load(begin, start, M: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    addresses, inside = _piece(begin, start, M, D, ROWS, COLUMNS)
    return tl.load(addresses, mask=inside, other=0.0).to(tl.float64)


@triton.jit
def _store(begin, start, tile, M: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
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
def _inner_products(x, y, M: tl.constexpr, ROWS: tl.constexpr):
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
def _product(a, x, M: tl.constexpr, ROWS: tl.constexpr):
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
def _diagonal(a, ROWS: tl.constexpr):
    """The diagonal as a row [1, ROWS]."""
    index = tl.arange(0, ROWS)
    return tl.sum(tl.where(index[:, None] == index[None, :], a, 0.0), 0, keep_dims=True)


@triton.jit
def _inverse_square_root(x):
    """1 / sqrt(x), 0 where x is 0."""
    zero = x == 0.0
    return tl.where(zero, 0.0, 1.0 / tl.sqrt(tl.where(zero, 1.0, x)))


@triton.jit
def _inverse_cholesky(gram, M: tl.constexpr, RIDGE: tl.constexpr, ROWS: tl.constexpr):
    """W = L^-1 where L L^T = gram + the ridge in effect, and that ridge [1, ROWS].

    The ridge is raised to the rounding of each row of the Gram matrix.
    """
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, ROWS)[None, :]
    # Comparisons that a NaN fails, so that it stays.
    in_effect = _diagonal(gram, ROWS) * _RELATIVE_FLOOR
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
def _gram(begin, M: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    gram = tl.zeros([ROWS, ROWS], tl.float64)
    for start in range(0, D, COLUMNS):
        z = _load(begin, start, M, D, ROWS, COLUMNS)
        gram += _inner_products(z, z, M, ROWS)
    return gram


@triton.jit
def _inverse(gram, M: tl.constexpr, RIDGE: tl.constexpr, ROWS: tl.constexpr):
    """(gram + the ridge in effect)^-1."""
    w, _ = _inverse_cholesky(gram, M, RIDGE, ROWS)
    return _product(tl.trans(w), w, M, ROWS)


@triton.jit
def _solution(w, products):
    """W^T (W products) [ROWS, 1]: W^T W itself, rounded, would move duplicates by a part in 10^4."""
    whitened = tl.sum(w * products[None, :], 1)
    return tl.sum(w * whitened[:, None], 0)[:, None]


@triton.jit
def _leave_one_out_coefficients(h, M: tl.constexpr, ROWS: tl.constexpr):
    """[ROWS, ROWS]: column m holds the coefficients of z_m on the others; and the diagonal of H, ones beyond M."""
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, ROWS)[None, :]
    diagonal = tl.where(column < M, _diagonal(h, ROWS), 1.0)
    return tl.where((row == column) | (row >= M) | (column >= M), 0.0, -h / diagonal), diagonal


@triton.jit
def _small_matrix(pointer, sample, M: tl.constexpr, ROWS: tl.constexpr):
    """Addresses of the matrix [M, M] of a sample, and which there are."""
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, ROWS)[None, :]
    return pointer + sample * (M * M) + row * M + column, (row < M) & (column < M)


@triton.jit(do_not_specialize=["N"])
def _leave_one_out(
    z,
    strides,
    projections,
    projection_strides,
    inverse,
    units,
    unit_strides,
    key_scales,
    N,
    M: tl.constexpr,
    D: tl.constexpr,
    RIDGE: tl.constexpr,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Projections and H [N, M, M]. UNIT: the projections divided by their norms, the inverse norms in `key_scales`
    [M, N], and the embeddings divided by theirs in `units`."""
    sample = tl.program_id(0).to(tl.int64)
    begin = _pointers(z, strides, sample, M, ROWS)
    gram = _gram(begin, M, D, ROWS, COLUMNS)
    h = _inverse(gram, M, RIDGE, ROWS)
    to, inside = _small_matrix(inverse, sample, M, ROWS)
    tl.store(to, h, mask=inside)
    c, _ = _leave_one_out_coefficients(h, M, ROWS)
    # Row m: the coefficients of z_m.
    c = tl.trans(c)
    results = _pointers(projections, projection_strides, sample, M, ROWS)
    if UNIT:
        squares = tl.zeros([ROWS, 1], tl.float64)
        for start in range(0, D, COLUMNS):
            projection = _product(c, _load(begin, start, M, D, ROWS, COLUMNS), M, ROWS)
            squares += tl.sum(projection * projection, 1, keep_dims=True)
        scale = _inverse_square_root(squares)
        index = tl.arange(0, ROWS)[:, None]
        tl.store(key_scales + index.to(tl.int64) * N + sample, scale, mask=index < M)
        c *= scale
        row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, ROWS)[None, :]
        norms = _inverse_square_root(tl.sum(tl.where(row == column, gram, 0.0), 1, keep_dims=True))
        unit_results = _pointers(units, unit_strides, sample, M, ROWS)
    for start in range(0, D, COLUMNS):
        x = _load(begin, start, M, D, ROWS, COLUMNS)
        _store(results, start, _product(c, x, M, ROWS), M, D, ROWS, COLUMNS)
        if UNIT:
            _store(unit_results, start, x * norms, M, D, ROWS, COLUMNS)


@triton.jit(do_not_specialize=["N"])
def _leave_one_out_backward(
    upstream,
    upstream_strides,
    z,
    strides,
    inverse,
    unit_upstream,
    unit_upstream_strides,
    key_scales,
    gradients,
    N,
    M: tl.constexpr,
    D: tl.constexpr,
    WEIGHT: tl.constexpr,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """dz [N, d] each, as P z + Q g with M x M coefficients, times a weight.

    UNIT: for the gradients of unit keys and of unit queries.

    The gradient of zbar / |zbar| is that across zbar over its norm, so with s = 1 / |zbar_m| it takes (g_m - s^2
    (zbar_m . g_m) zbar_m) s in place of g_m: another combination of g and the z's.
    """
    sample = tl.program_id(0).to(tl.int64)
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, ROWS)[None, :]
    begin = _pointers(z, strides, sample, M, ROWS)
    above = _pointers(upstream, upstream_strides, sample, M, ROWS)
    products = tl.zeros([ROWS, ROWS], tl.float64)
    if UNIT:
        unit_above = _pointers(unit_upstream, unit_upstream_strides, sample, M, ROWS)
        gram = tl.zeros([ROWS, ROWS], tl.float64)
        along_query = tl.zeros([ROWS, 1], tl.float64)
    for start in range(0, D, COLUMNS):
        x = _load(begin, start, M, D, ROWS, COLUMNS)
        products += _inner_products(x, _load(above, start, M, D, ROWS, COLUMNS), M, ROWS)
        if UNIT:
            gram += _inner_products(x, x, M, ROWS)
            along_query += tl.sum(x * _load(unit_above, start, M, D, ROWS, COLUMNS), 1, keep_dims=True)
    at, inside = _small_matrix(inverse, sample, M, ROWS)
    h = tl.load(at, mask=inside, other=0.0)
    c, diagonal = _leave_one_out_coefficients(h, M, ROWS)
    if UNIT:
        scale = tl.load(key_scales + column.to(tl.int64) * N + sample, mask=column < M, other=0.0)
        along = tl.sum(c * products, 0, keep_dims=True) * scale * scale
        products = scale * (products - along * _product(gram, c, M, ROWS))
    e = _product(h, products, M, ROWS)
    e -= h * (_diagonal(e, ROWS) / diagonal)
    e = tl.where((row == column) | ~inside, 0.0, e)
    shared = _product(c, tl.trans(e), M, ROWS)
    p = e + tl.trans(e) - shared - tl.trans(shared)
    if UNIT:
        p -= _product(c * (scale * along), tl.trans(c), M, ROWS)
        c *= scale
        norms = _inverse_square_root(tl.sum(tl.where(row == column, gram, 0.0), 1, keep_dims=True))
        p -= tl.where(row == column, along_query * norms * norms * norms, 0.0)
        norms *= WEIGHT
    p *= WEIGHT
    c *= WEIGHT
    results = _pointers(gradients, (D,) * M, sample, M, ROWS)
    for start in range(0, D, COLUMNS):
        result = _product(p, _load(begin, start, M, D, ROWS, COLUMNS), M, ROWS)
        result += _product(c, _load(above, start, M, D, ROWS, COLUMNS), M, ROWS)
        if UNIT:
            result += norms * _load(unit_above, start, M, D, ROWS, COLUMNS)
        _store(results, start, result, M, D, ROWS, COLUMNS)


@triton.jit
def _load_vector(begin, start, D: tl.constexpr, COLUMNS: tl.constexpr):
    """A piece of one vector, as a row [1, COLUMNS]."""
    column = start + tl.arange(0, COLUMNS)[None, :]
    return tl.load(begin + column, mask=column < D, other=0.0).to(tl.float64)


@triton.jit
def _ridge_projection(
    target,
    target_stride,
    basis,
    basis_stride,
    vector_stride,
    out,
    K: tl.constexpr,
    D: tl.constexpr,
    RIDGE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """out [N, d] = A c, c = (A^T A + ridge I)^-1 A^T z, for the K vectors of each sample of the basis."""
    sample = tl.program_id(0).to(tl.int64)
    begin = basis + sample * basis_stride + tl.arange(0, ROWS).to(tl.int64) * vector_stride
    z_begin = target + sample * target_stride
    gram, products = tl.zeros([ROWS, ROWS], tl.float64), tl.zeros([ROWS], tl.float64)
    for start in range(0, D, COLUMNS):
        a = _load(begin, start, K, D, ROWS, COLUMNS)
        gram += _inner_products(a, a, K, ROWS)
        products += tl.sum(a * _load_vector(z_begin, start, D, COLUMNS), 1)
    w, _ = _inverse_cholesky(gram, K, RIDGE, ROWS)
    c = _solution(w, products)
    for start in range(0, D, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        result = tl.sum(c * _load(begin, start, K, D, ROWS, COLUMNS), 0)
        tl.store(out + sample * D + column, result.to(out.dtype.element_ty), mask=column < D)


@triton.jit
def _ridge_projection_backward(
    upstream,
    upstream_stride,
    target,
    target_stride,
    basis,
    basis_stride,
    vector_stride,
    d_target,
    d_basis,
    K: tl.constexpr,
    D: tl.constexpr,
    RIDGE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """dz = A e, dA = (g - A e) c^T + (z - A c) e^T with e = (A^T A + ridge I)^-1 A^T g."""
    sample = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, ROWS).to(tl.int64)
    begin = basis + sample * basis_stride + index * vector_stride
    z_begin, g_begin = target + sample * target_stride, upstream + sample * upstream_stride
    gram = tl.zeros([ROWS, ROWS], tl.float64)
    with_z, with_g = tl.zeros([ROWS], tl.float64), tl.zeros([ROWS], tl.float64)
    for start in range(0, D, COLUMNS):
        a = _load(begin, start, K, D, ROWS, COLUMNS)
        gram += _inner_products(a, a, K, ROWS)
        with_z += tl.sum(a * _load_vector(z_begin, start, D, COLUMNS), 1)
        with_g += tl.sum(a * _load_vector(g_begin, start, D, COLUMNS), 1)
    w, _ = _inverse_cholesky(gram, K, RIDGE, ROWS)
    c, e = _solution(w, with_z), _solution(w, with_g)
    results = d_basis + sample * (K * D) + index * D
    for start in range(0, D, COLUMNS):
        a = _load(begin, start, K, D, ROWS, COLUMNS)
        of_g = tl.sum(e * a, 0, keep_dims=True)
        column = start + tl.arange(0, COLUMNS)[None, :]
        tl.store(d_target + sample * D + column, of_g.to(d_target.dtype.element_ty), mask=column < D)
        g_rest = _load_vector(g_begin, start, D, COLUMNS) - of_g
        z_rest = _load_vector(z_begin, start, D, COLUMNS) - tl.sum(c * a, 0, keep_dims=True)
        _store(results, start, c * g_rest + e * z_rest, K, D, ROWS, COLUMNS)


@triton.jit
def _triangle(pointer, sample, N, K: tl.constexpr, ROWS: tl.constexpr):
    """Addresses in [K (K + 1) / 2, N], upper triangles row by row, of a sample's symmetric matrix; and which there are.

    Below the diagonal stands the number above it.
    """
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, ROWS)[None, :]
    low, high = tl.minimum(row, column), tl.maximum(row, column)
    entry = low * K - low * (low - 1) // 2 + high - low
    return pointer + entry.to(tl.int64) * N + sample, (row < K) & (column < K)


@triton.jit(do_not_specialize=["N"])
def _whiten(
    contexts,
    strides,
    bases,
    grams,
    N,
    K: tl.constexpr,
    D: tl.constexpr,
    RIDGE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """With W = L^-1, L L^T = A A^T + ridge I for the K rows of A: bases [K, N, d] = W A, grams = their own."""
    sample = tl.program_id(0).to(tl.int64)
    begin = _pointers(contexts, strides, sample, K, ROWS)
    gram = _gram(begin, K, D, ROWS, COLUMNS)
    w, _ = _inverse_cholesky(gram, K, RIDGE, ROWS)
    to, inside = _triangle(grams, sample, N, K, ROWS)
    v = _product(_product(w, gram, K, ROWS), tl.trans(w), K, ROWS)
    upper = tl.arange(0, ROWS)[:, None] <= tl.arange(0, ROWS)[None, :]
    tl.store(to, v.to(grams.dtype.element_ty), mask=inside & upper)
    results = bases + tl.arange(0, ROWS).to(tl.int64) * N * D + sample * D
    for start in range(0, D, COLUMNS):
        x = _load(begin, start, K, D, ROWS, COLUMNS)
        _store(results, start, _product(w, x, K, ROWS), K, D, ROWS, COLUMNS)


@triton.jit(do_not_specialize=["N"])
def _whiten_backward(
    d_bases,
    d_grams,
    contexts,
    strides,
    gradients,
    N,
    K: tl.constexpr,
    D: tl.constexpr,
    RIDGE: tl.constexpr,
    GRAMS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Add to dA the gradient of what `_whiten` gives, the ridge in effect held constant.

    With V = I - W ridge W^T: dW = dB A^T - 2 dV W ridge; X = W^T phi(-tril(dW) W^T) W with phi the lower triangle, its
    diagonal halved (the Cholesky factor's backward); dA = W^T dB + (X + X^T) A.
    """
    sample = tl.program_id(0).to(tl.int64)
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, ROWS)[None, :]
    begin = _pointers(contexts, strides, sample, K, ROWS)
    above = d_bases + tl.arange(0, ROWS).to(tl.int64) * N * D + sample * D
    gram, dw = tl.zeros([ROWS, ROWS], tl.float64), tl.zeros([ROWS, ROWS], tl.float64)
    for start in range(0, D, COLUMNS):
        x = _load(begin, start, K, D, ROWS, COLUMNS)
        gram += _inner_products(x, x, K, ROWS)
        dw += _inner_products(_load(above, start, K, D, ROWS, COLUMNS), x, K, ROWS)
    w, in_effect = _inverse_cholesky(gram, K, RIDGE, ROWS)
    if GRAMS:
        at, inside = _triangle(d_grams, sample, N, K, ROWS)
        dv = tl.load(at, mask=inside, other=0.0).to(tl.float64)
        dv = tl.where(row == column, dv, 0.5 * dv)
        dw -= 2.0 * _product(dv, w * in_effect, K, ROWS)
    dw = tl.where(column <= row, dw, 0.0)
    phi = -_product(dw, tl.trans(w), K, ROWS)
    phi = tl.where(column < row, phi, tl.where(column == row, 0.5 * phi, 0.0))
    x = _product(tl.trans(w), _product(phi, w, K, ROWS), K, ROWS)
    p, q = x + tl.trans(x), tl.trans(w)
    results = _pointers(gradients, (D,) * K, sample, K, ROWS)
    for start in range(0, D, COLUMNS):
        result = _product(p, _load(begin, start, K, D, ROWS, COLUMNS), K, ROWS)
        result += _product(q, _load(above, start, K, D, ROWS, COLUMNS), K, ROWS)
        result += _load(results, start, K, D, ROWS, COLUMNS)
        _store(results, start, result, K, D, ROWS, COLUMNS)


def _ridge(ridge: float) -> float:
    """A constant of the kernels, which would otherwise be float32."""
    return max(ridge, SMALLEST_RIDGE)


def _matrices(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Tensors whose last dimension has no gaps."""
    return tuple(x.detach() if x.stride(-1) == 1 or x.shape[-1] == 1 else x.detach().contiguous() for x in tensors)


def _strides(matrices: Sequence[Tensor]) -> tuple[int, ...]:
    return tuple(x.stride(0) for x in matrices)


def _accumulation_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def leave_one_out(z: Sequence[Tensor], ridge: float) -> tuple[Tensor, Tensor]:
    """All M projections [M, N, d] in the dtype of the embeddings, and H of each sample [N, M, M], float64."""
    m, (n, d) = len(z), z[0].shape
    projections, inverse = z[0].new_empty(m, n, d), z[0].new_empty((n, m, m), dtype=torch.float64)
    _run_leave_one_out(z, projections.unbind(0), inverse, ridge, None)
    return projections, inverse


def unit_queries_and_keys(z: Sequence[Tensor], ridge: float) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """Embeddings and leave-one-out projections, each divided by its norm: M times [N, d], in the embeddings' dtype.

    And what the backward needs: H [N, M, M] and the inverse norms of the projections [M, N], float64.
    """
    m, (n, d) = len(z), z[0].shape
    queries, keys = ([x.new_empty(n, d) for x in z] for _ in range(2))
    inverse, key_scales = z[0].new_empty((n, m, m), dtype=torch.float64), z[0].new_empty((m, n), dtype=torch.float64)
    _run_leave_one_out(z, keys, inverse, ridge, (queries, key_scales))
    return queries, keys, inverse, key_scales


def _run_leave_one_out(
    z: Sequence[Tensor],
    projections: Sequence[Tensor],
    inverse: Tensor,
    ridge: float,
    unit: tuple[Sequence[Tensor], Tensor] | None,
) -> None:
    matrices, m, (n, d) = _matrices(z), len(z), z[0].shape
    # Where nothing is to be made unit, any tensors stand in for the arguments that the kernel leaves out.
    units, key_scales = unit or (projections, inverse)
    tile = sample_tile(d, m)
    with on_device_of(inverse):
        _leave_one_out[(n,)](
            matrices,
            _strides(matrices),
            tuple(projections),
            _strides(projections),
            inverse,
            tuple(units),
            _strides(units),
            key_scales,
            n,
            M=m,
            D=d,
            RIDGE=_ridge(ridge),
            UNIT=unit is not None,
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            num_warps=tile.warps,
        )


def leave_one_out_backward(
    upstream: Tensor, z: Sequence[Tensor], inverse: Tensor, needed: Sequence[bool], ridge: float
) -> list[Tensor]:
    """Gradients of `leave_one_out` for an upstream gradient [M, N, d]."""
    return _run_leave_one_out_backward(upstream.unbind(0), z, inverse)


def unit_queries_and_keys_backward(
    query_upstream: Sequence[Tensor],
    key_upstream: Sequence[Tensor],
    z: Sequence[Tensor],
    inverse: Tensor,
    key_scales: Tensor,
    weight: float = 1.0,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """Gradients of `unit_queries_and_keys` by the embeddings, times a weight, in their dtype or another."""
    return _run_leave_one_out_backward(key_upstream, z, inverse, (query_upstream, key_scales), weight, dtype)


def _run_leave_one_out_backward(
    upstream: Sequence[Tensor],
    z: Sequence[Tensor],
    inverse: Tensor,
    unit: tuple[Sequence[Tensor], Tensor] | None = None,
    weight: float = 1.0,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    matrices, above, m, (n, d) = _matrices(z), _matrices(upstream), len(z), z[0].shape
    units, key_scales = (_matrices(unit[0]), unit[1]) if unit else (above, inverse)
    gradients = [x.new_empty(n, d, dtype=dtype or x.dtype) for x in z]
    tile = sample_tile(d, m)
    with on_device_of(inverse):
        _leave_one_out_backward[(n,)](
            above,
            _strides(above),
            matrices,
            _strides(matrices),
            inverse,
            units,
            _strides(units),
            key_scales,
            tuple(gradients),
            n,
            M=m,
            D=d,
            WEIGHT=weight,
            UNIT=unit is not None,
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            num_warps=tile.warps,
        )
    return gradients


def _target_and_basis(target: Tensor, basis: Tensor) -> tuple[Tensor, Tensor, Tile]:
    """[N, d] and [N, K, d]."""
    k, d = basis.shape[-2:]
    flat_target, flat_basis = _matrices([target.reshape(-1, d), basis.reshape(-1, k, d)])
    return flat_target, flat_basis, sample_tile(d, k)


def ridge_projection(target: Tensor, basis: Tensor, ridge: float) -> Tensor:
    """Project target [..., d] on basis [..., K, d], in the dtype of the target."""
    z, a, tile = _target_and_basis(target, basis)
    out = z.new_empty(z.shape)
    with on_device_of(out):
        _ridge_projection[(len(z),)](
            z,
            z.stride(0),
            a,
            a.stride(0),
            a.stride(1),
            out,
            K=a.shape[1],
            D=a.shape[2],
            RIDGE=_ridge(ridge),
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            num_warps=tile.warps,
        )
    return out.view(target.shape)


def ridge_projection_backward(
    upstream: Tensor, target: Tensor, basis: Tensor, needed: Sequence[bool], ridge: float
) -> tuple[Tensor, Tensor]:
    """Gradients of `ridge_projection` with respect to target and basis."""
    z, a, tile = _target_and_basis(target, basis)
    (g,) = _matrices([upstream.reshape(-1, upstream.shape[-1])])
    d_target, d_basis = z.new_empty(z.shape), a.new_empty(a.shape)
    with on_device_of(d_target):
        _ridge_projection_backward[(len(z),)](
            g,
            g.stride(0),
            z,
            z.stride(0),
            a,
            a.stride(0),
            a.stride(1),
            d_target,
            d_basis,
            K=a.shape[1],
            D=a.shape[2],
            RIDGE=_ridge(ridge),
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            num_warps=tile.warps,
        )
    return d_target.view(target.shape), d_basis.view(basis.shape)


def whitened_bases(contexts: Sequence[Tensor], ridge: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Whiten K context embeddings [N, d] of each sample: B [K, N, d] and V [K (K + 1) / 2, N].

    With L L^T = A^T A + ridge I: B = A L^-T, and V = B^T B, its upper triangle row by row. B is of the dtype given, V
    float64 for float64 contexts, else float32. The largest of I - V, which the CPU's launcher adds, is left out: it
    would have to be read back.
    """
    matrices, k, (n, d) = _matrices(contexts), len(contexts), contexts[0].shape
    bases = contexts[0].new_empty((k, n, d), dtype=dtype)
    grams = contexts[0].new_empty((k * (k + 1) // 2, n), dtype=_accumulation_dtype(contexts[0]))
    tile = sample_tile(d, k)
    with on_device_of(bases):
        _whiten[(n,)](
            matrices,
            _strides(matrices),
            bases,
            grams,
            n,
            K=k,
            D=d,
            RIDGE=_ridge(ridge),
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            num_warps=tile.warps,
        )
    return bases, grams


def whitened_bases_backward(
    bases_gradient: Tensor,
    grams_gradient: Tensor | None,
    contexts: Sequence[Tensor],
    ridge: float,
    gradients: Sequence[Tensor],
) -> None:
    """Add the gradients of `whitened_bases` to `gradients`, K contiguous tensors [N, d] of its dtype."""
    matrices, k, (n, d) = _matrices(contexts), len(contexts), contexts[0].shape
    d_bases = bases_gradient.contiguous()
    tile = sample_tile(d, k)
    with on_device_of(d_bases):
        _whiten_backward[(n,)](
            d_bases,
            d_bases if grams_gradient is None else grams_gradient.contiguous(),
            matrices,
            _strides(matrices),
            tuple(gradients),
            n,
            K=k,
            D=d,
            RIDGE=_ridge(ridge),
            GRAMS=grams_gradient is not None,
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            num_warps=tile.warps,
        )
