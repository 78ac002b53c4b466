"""Ridge projections in Triton: a program takes one sample, in float64, and its M vectors from memory once.

The formulae are those of `cpu.py`: all M leave-one-out projections of a sample share H = (Z^T Z + lambda I)^-1, with
coefficients c_m = -H[:, m] / H[m, m] of z_m on the others, and each gradient is a combination of the z's and the
upstream gradients with M x M coefficients. W = L^-1 comes from M steps of elimination on [Z^T Z + lambda I | I], the
ridge raised as in `reference.py`, and H = W^T W.

Cost for N samples, M vectors of d numbers, B bytes a number:

    leave-one-out        forward reads and writes M d B; backward reads 2 M d B and writes M d B; H is 8 M^2 bytes
    unit queries, keys   forward reads M d B and writes 2 M d B; backward reads 3 M d B and writes M d B
    FLOPs                forward 4 M^2 d, backward 6 M^2 d, unit 6 M^2 d and 10 M^2 d; float64

d is walked twice (products, then combinations; unit keys thrice, for their norms), the second time from the cache that
the first filled: M d B is 4 KiB at M = 8, d = 256 in bfloat16. So the bytes above are what must move.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mibfast.kernels.launch_configuration import on_device_of
from mibfast.kernels.projection.samples_triton import (
    constants,
    diagonal_of,
    effective_ridge,
    gram_matrix,
    inner_products,
    inverse_cholesky,
    inverse_square_root,
    load_tile,
    product,
    sample_pointers,
    store_tile,
)
from mibfast.kernels.rows_triton import matrices_of, row_strides


@triton.jit
def _inverse(gram, M: tl.constexpr, RIDGE: tl.constexpr, ROWS: tl.constexpr):
    """(gram + the ridge in effect)^-1."""
    w, _ = inverse_cholesky(gram, M, RIDGE, ROWS)
    return product(tl.trans(w), w, M, ROWS)


@triton.jit
def _leave_one_out_coefficients(h, M: tl.constexpr, ROWS: tl.constexpr):
    """[ROWS, ROWS]: column m holds the coefficients of z_m on the others; and the diagonal of H, ones beyond M."""
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, ROWS)[None, :]
    diagonal = tl.where(column < M, diagonal_of(h, ROWS), 1.0)
    return tl.where((row == column) | (row >= M) | (column >= M), 0.0, -h / diagonal), diagonal


@triton.jit
def _small_matrix(pointer, sample, M: tl.constexpr, ROWS: tl.constexpr):
    """Addresses of the matrix [M, M] of a sample, and which there are."""
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, ROWS)[None, :]
    return pointer + sample * (M * M) + row * M + column, (row < M) & (column < M)


@triton.jit(do_not_specialize=["N"])
def _leave_one_out(
    z,  # M of [N, D]
    strides,
    projections,  # M of [N, D]
    projection_strides,
    inverse,  # [N, M, M]
    units,  # M of [N, D]
    unit_strides,
    key_scales,  # [M, N]
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
    begin = sample_pointers(z, strides, sample, M, ROWS)
    gram = gram_matrix(begin, M, D, ROWS, COLUMNS)
    h = _inverse(gram, M, RIDGE, ROWS)
    to, inside = _small_matrix(inverse, sample, M, ROWS)
    tl.store(to, h, mask=inside)
    c, _ = _leave_one_out_coefficients(h, M, ROWS)
    # Row m: the coefficients of z_m.
    c = tl.trans(c)
    results = sample_pointers(projections, projection_strides, sample, M, ROWS)
    if UNIT:
        squares = tl.zeros([ROWS, 1], tl.float64)
        for start in range(0, D, COLUMNS):
            projection = product(c, load_tile(begin, start, M, D, ROWS, COLUMNS), M, ROWS)
            squares += tl.sum(projection * projection, 1, keep_dims=True)
        scale = inverse_square_root(squares)
        index = tl.arange(0, ROWS)[:, None]
        tl.store(key_scales + index.to(tl.int64) * N + sample, scale, mask=index < M)
        c *= scale
        row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, ROWS)[None, :]
        norms = inverse_square_root(tl.sum(tl.where(row == column, gram, 0.0), 1, keep_dims=True))
        unit_results = sample_pointers(units, unit_strides, sample, M, ROWS)
    for start in range(0, D, COLUMNS):
        x = load_tile(begin, start, M, D, ROWS, COLUMNS)
        store_tile(results, start, product(c, x, M, ROWS), M, D, ROWS, COLUMNS)
        if UNIT:
            store_tile(unit_results, start, x * norms, M, D, ROWS, COLUMNS)


@triton.jit(do_not_specialize=["N"])
def _leave_one_out_backward(
    upstream,  # M of [N, D]
    upstream_strides,
    z,  # M of [N, D]
    strides,
    inverse,  # [N, M, M]
    unit_upstream,  # M of [N, D]
    unit_upstream_strides,
    key_scales,  # [M, N]
    gradients,  # M of [N, D]
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
    begin = sample_pointers(z, strides, sample, M, ROWS)
    above = sample_pointers(upstream, upstream_strides, sample, M, ROWS)
    products = tl.zeros([ROWS, ROWS], tl.float64)
    if UNIT:
        unit_above = sample_pointers(unit_upstream, unit_upstream_strides, sample, M, ROWS)
        gram = tl.zeros([ROWS, ROWS], tl.float64)
        along_query = tl.zeros([ROWS, 1], tl.float64)
    for start in range(0, D, COLUMNS):
        x = load_tile(begin, start, M, D, ROWS, COLUMNS)
        products += inner_products(x, load_tile(above, start, M, D, ROWS, COLUMNS), M, ROWS)
        if UNIT:
            gram += inner_products(x, x, M, ROWS)
            along_query += tl.sum(x * load_tile(unit_above, start, M, D, ROWS, COLUMNS), 1, keep_dims=True)
    at, inside = _small_matrix(inverse, sample, M, ROWS)
    h = tl.load(at, mask=inside, other=0.0)
    c, diagonal = _leave_one_out_coefficients(h, M, ROWS)
    if UNIT:
        scale = tl.load(key_scales + column.to(tl.int64) * N + sample, mask=column < M, other=0.0)
        along = tl.sum(c * products, 0, keep_dims=True) * scale * scale
        products = scale * (products - along * product(gram, c, M, ROWS))
    e = product(h, products, M, ROWS)
    e -= h * (diagonal_of(e, ROWS) / diagonal)
    e = tl.where((row == column) | ~inside, 0.0, e)
    shared = product(c, tl.trans(e), M, ROWS)
    p = e + tl.trans(e) - shared - tl.trans(shared)
    if UNIT:
        p -= product(c * (scale * along), tl.trans(c), M, ROWS)
        c *= scale
        norms = inverse_square_root(tl.sum(tl.where(row == column, gram, 0.0), 1, keep_dims=True))
        p -= tl.where(row == column, along_query * norms * norms * norms, 0.0)
        norms *= WEIGHT
    p *= WEIGHT
    c *= WEIGHT
    results = sample_pointers(gradients, (D,) * M, sample, M, ROWS)
    for start in range(0, D, COLUMNS):
        result = product(p, load_tile(begin, start, M, D, ROWS, COLUMNS), M, ROWS)
        result += product(c, load_tile(above, start, M, D, ROWS, COLUMNS), M, ROWS)
        if UNIT:
            result += norms * load_tile(unit_above, start, M, D, ROWS, COLUMNS)
        store_tile(results, start, result, M, D, ROWS, COLUMNS)


@triton.jit
def _solution(w, products):
    """W^T (W products) [ROWS, 1]: W^T W itself, rounded, would move duplicates by a part in 10^4."""
    whitened = tl.sum(w * products[None, :], 1)
    return tl.sum(w * whitened[:, None], 0)[:, None]


@triton.jit
def _load_vector(begin, start, D: tl.constexpr, COLUMNS: tl.constexpr):
    """A piece of one vector, as a row [1, COLUMNS]."""
    column = start + tl.arange(0, COLUMNS)[None, :]
    return tl.load(begin + column, mask=column < D, other=0.0).to(tl.float64)


@triton.jit
def _ridge_projection(
    target,  # [N, D]
    target_stride,
    basis,  # [N, K, D]
    basis_stride,
    vector_stride,
    out,  # [N, D]
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
        a = load_tile(begin, start, K, D, ROWS, COLUMNS)
        gram += inner_products(a, a, K, ROWS)
        products += tl.sum(a * _load_vector(z_begin, start, D, COLUMNS), 1)
    w, _ = inverse_cholesky(gram, K, RIDGE, ROWS)
    c = _solution(w, products)
    for start in range(0, D, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        result = tl.sum(c * load_tile(begin, start, K, D, ROWS, COLUMNS), 0)
        tl.store(out + sample * D + column, result.to(out.dtype.element_ty), mask=column < D)


@triton.jit
def _ridge_projection_backward(
    upstream,  # [N, D]
    upstream_stride,
    target,  # [N, D]
    target_stride,
    basis,  # [N, K, D]
    basis_stride,
    vector_stride,
    grad_target,  # [N, D]
    grad_basis,  # [N, K, D]
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
        a = load_tile(begin, start, K, D, ROWS, COLUMNS)
        gram += inner_products(a, a, K, ROWS)
        with_z += tl.sum(a * _load_vector(z_begin, start, D, COLUMNS), 1)
        with_g += tl.sum(a * _load_vector(g_begin, start, D, COLUMNS), 1)
    w, _ = inverse_cholesky(gram, K, RIDGE, ROWS)
    c, e = _solution(w, with_z), _solution(w, with_g)
    results = grad_basis + sample * (K * D) + index * D
    for start in range(0, D, COLUMNS):
        a = load_tile(begin, start, K, D, ROWS, COLUMNS)
        grad_part = tl.sum(e * a, 0, keep_dims=True)
        column = start + tl.arange(0, COLUMNS)[None, :]
        tl.store(grad_target + sample * D + column, grad_part.to(grad_target.dtype.element_ty), mask=column < D)
        g_rest = _load_vector(g_begin, start, D, COLUMNS) - grad_part
        z_rest = _load_vector(z_begin, start, D, COLUMNS) - tl.sum(c * a, 0, keep_dims=True)
        store_tile(results, start, c * g_rest + e * z_rest, K, D, ROWS, COLUMNS)


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
    matrices, (n, d) = matrices_of(z), z[0].shape
    # Where nothing is to be made unit, any tensors stand in for the arguments that the kernel leaves out.
    units, key_scales = unit or (projections, inverse)
    with on_device_of(inverse):
        _leave_one_out[(n,)](
            z=tuple(matrices),
            strides=row_strides(matrices),
            projections=tuple(projections),
            projection_strides=row_strides(projections),
            inverse=inverse,
            units=tuple(units),
            unit_strides=row_strides(units),
            key_scales=key_scales,
            N=n,
            M=len(z),
            RIDGE=effective_ridge(ridge),
            UNIT=unit is not None,
            **constants(d, len(z)),
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
    matrices, above, (n, d) = matrices_of(z), matrices_of(upstream), z[0].shape
    units, key_scales = (matrices_of(unit[0]), unit[1]) if unit else (above, inverse)
    gradients = [x.new_empty(n, d, dtype=dtype or x.dtype) for x in z]
    with on_device_of(inverse):
        _leave_one_out_backward[(n,)](
            upstream=tuple(above),
            upstream_strides=row_strides(above),
            z=tuple(matrices),
            strides=row_strides(matrices),
            inverse=inverse,
            unit_upstream=tuple(units),
            unit_upstream_strides=row_strides(units),
            key_scales=key_scales,
            gradients=tuple(gradients),
            N=n,
            M=len(z),
            WEIGHT=weight,
            UNIT=unit is not None,
            **constants(d, len(z)),
        )
    return gradients


def _flat_basis(basis: Tensor) -> Tensor:
    """A basis [..., K, d] as [N, K, d] without gaps between the numbers of a vector."""
    flat = basis.detach().reshape(-1, *basis.shape[-2:])
    return flat if flat.stride(-1) == 1 or flat.shape[-1] == 1 else flat.contiguous()


def _basis_arguments(target: Tensor, basis: Tensor, ridge: float) -> dict[str, Any]:
    """Arguments that both kernels of a basis take."""
    return {
        "target": target,
        "target_stride": target.stride(0),
        "basis": basis,
        "basis_stride": basis.stride(0),
        "vector_stride": basis.stride(1),
        "K": basis.shape[1],
        "RIDGE": effective_ridge(ridge),
        **constants(basis.shape[2], basis.shape[1]),
    }


def ridge_projection(target: Tensor, basis: Tensor, ridge: float) -> Tensor:
    """Project target [..., d] on basis [..., K, d], in the dtype of the target."""
    (z,), a = matrices_of([target]), _flat_basis(basis)
    out = z.new_empty(z.shape)
    with on_device_of(out):
        _ridge_projection[(len(z),)](out=out, **_basis_arguments(z, a, ridge))
    return out.view(target.shape)


def ridge_projection_backward(
    upstream: Tensor, target: Tensor, basis: Tensor, needed: Sequence[bool], ridge: float
) -> tuple[Tensor, Tensor]:
    """Gradients of `ridge_projection` with respect to target and basis."""
    (z, g), a = matrices_of([target, upstream]), _flat_basis(basis)
    grad_target, grad_basis = z.new_empty(z.shape), a.new_empty(a.shape)
    with on_device_of(grad_target):
        _ridge_projection_backward[(len(z),)](
            upstream=g,
            upstream_stride=g.stride(0),
            grad_target=grad_target,
            grad_basis=grad_basis,
            **_basis_arguments(z, a, ridge),
        )
    return grad_target.view(target.shape), grad_basis.view(basis.shape)
