"""Gaussian terms in Triton: one pass over the inputs forward, one over inputs and gradients backward.

For inputs of B bytes each, the bytes that must move, which are the floor, against a handful of FLOPs a number:

    KL, two inputs (four with a prior)   forward reads 2 B (4 B); backward reads and writes 2 B (4 B)
    product of M experts                 forward reads 2 M B, writes 2 B; backward reads (2 M + 2) B, writes 2 M B
    minimality of M embeddings           forward reads M B; backward reads and writes M B

Arithmetic is float32, float64 for float64 inputs. Terms are halved, and a distance is multiplied with the square root
of a precision, before anything is summed or squared: a divergence overflows where it is beyond the dtype, not where
twice it or a part of it is. Sums over a row are taken as a tree over lanes; sums over samples in float64, in a fixed
order.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mibfast.kernels.launch_configuration import elementwise_tile, on_device_of
from mibfast.kernels.rows_triton import (
    accumulation_dtype,
    constants,
    half_expm1,
    half_expm1_minus_x,
    load,
    matrices_of,
    row_strides,
    rows_of_program,
    tile_of_program,
)


@triton.jit(do_not_specialize=["N"])
def _kl(
    tensors,  # 2 or 4 of [N, D]
    strides,
    out,  # [N]
    N,
    D: tl.constexpr,
    PRIOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """out [N] = KL of mean and logvar, and of prior mean and prior logvar if there is a prior."""
    row, there = rows_of_program(N, ROWS)
    total = tl.zeros([ROWS, COLUMNS], DTYPE)
    for start in range(0, D, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        inside = there & (column < D)
        mean = load(tensors[0], strides[0], row, column, inside, DTYPE)
        logvar = load(tensors[1], strides[1], row, column, inside, DTYPE)
        if PRIOR:
            distance = mean - load(tensors[2], strides[2], row, column, inside, DTYPE)
            prior_logvar = load(tensors[3], strides[3], row, column, inside, DTYPE)
            distance *= tl.exp(-0.5 * prior_logvar)
            total += 0.5 * distance * distance + half_expm1_minus_x(logvar - prior_logvar)
        else:
            total += 0.5 * mean * mean + half_expm1_minus_x(logvar)
    tl.store(out + row, tl.sum(total, 1, keep_dims=True), mask=there)


@triton.jit(do_not_specialize=["N"])
def _kl_backward(
    upstream,  # [N]
    tensors,  # 2 or 4 of [N, D]
    strides,
    gradients,  # 2 or 4 of [N, D]
    N,
    D: tl.constexpr,
    PRIOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    row, column, inside = tile_of_program(N, D, ROWS, COLUMNS)
    to = row * D + column
    g = tl.load(upstream + row, mask=row < N, other=0.0)
    mean = load(tensors[0], strides[0], row, column, inside, DTYPE)
    logvar = load(tensors[1], strides[1], row, column, inside, DTYPE)
    if PRIOR:
        prior_logvar = load(tensors[3], strides[3], row, column, inside, DTYPE)
        root = tl.exp(-0.5 * prior_logvar)
        distance = (mean - load(tensors[2], strides[2], row, column, inside, DTYPE)) * root
        scaled = g * distance
        grad_logvar = g * half_expm1(logvar - prior_logvar)
        tl.store(gradients[0] + to, scaled * root, mask=inside)
        tl.store(gradients[1] + to, grad_logvar, mask=inside)
        tl.store(gradients[2] + to, -(scaled * root), mask=inside)
        tl.store(gradients[3] + to, -grad_logvar - 0.5 * scaled * distance, mask=inside)
    else:
        tl.store(gradients[0] + to, g * mean, mask=inside)
        tl.store(gradients[1] + to, g * half_expm1(logvar), mask=inside)


@triton.jit
def _product_of(means, logvars, M: tl.constexpr):
    """Mean and log-variance of M experts; precisions relative to the largest of each component."""
    smallest = logvars[0]
    for k in tl.static_range(1, M):
        smallest = tl.where(smallest <= logvars[k], smallest, logvars[k])
    total = 0.0
    weighted = 0.0
    for k in tl.static_range(M):
        weight = tl.exp(smallest - logvars[k])
        # Of an infinite precision the difference is NaN: the sum is infinite, and the mean's weight unknown.
        total += tl.where(logvars[k] == smallest, 1.0, weight)
        weighted += weight * means[k]
    return weighted / total, smallest - tl.log(total)


@triton.jit
def _tiles(matrices, strides, row, column, inside, FIRST: tl.constexpr, LAST: tl.constexpr, DTYPE: tl.constexpr):
    """The same tile of matrices FIRST to LAST."""
    tiles = ()
    for k in tl.static_range(FIRST, LAST):
        tile = load(matrices[k], strides[k], row, column, inside, DTYPE)
        tiles = tiles + (tile,)  # type: ignore[assignment]  # noqa: RUF005 - Triton unpacks none
    return tiles


@triton.jit(do_not_specialize=["N"])
def _product(
    tensors,  # 2 M of [N, D]
    strides,
    mean,  # [N, D]
    logvar,  # [N, D]
    N,
    D: tl.constexpr,
    M: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Multiply M experts: M means, then M log-variances."""
    row, column, inside = tile_of_program(N, D, ROWS, COLUMNS)
    means = _tiles(tensors, strides, row, column, inside, 0, M, DTYPE)
    logvars = _tiles(tensors, strides, row, column, inside, M, 2 * M, DTYPE)
    product_mean, product_logvar = _product_of(means, logvars, M)
    tl.store(mean + row * D + column, product_mean, mask=inside)
    tl.store(logvar + row * D + column, product_logvar, mask=inside)


@triton.jit(do_not_specialize=["N"])
def _product_backward(
    upstream,  # 2 of [N, D]
    upstream_strides,
    tensors,  # 2 M of [N, D]
    strides,
    gradients,  # 2 M of [N, D]
    N,
    D: tl.constexpr,
    M: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """With w_m = precision_m / precision: dmu_m = w_m g, dlogvar_m = w_m (h - g (mu_m - mu))."""
    row, column, inside = tile_of_program(N, D, ROWS, COLUMNS)
    to = row * D + column
    means = _tiles(tensors, strides, row, column, inside, 0, M, DTYPE)
    logvars = _tiles(tensors, strides, row, column, inside, M, 2 * M, DTYPE)
    mean, logvar = _product_of(means, logvars, M)
    g = load(upstream[0], upstream_strides[0], row, column, inside, DTYPE)
    h = load(upstream[1], upstream_strides[1], row, column, inside, DTYPE)
    for k in tl.static_range(M):
        weight = tl.exp(logvar - logvars[k])
        tl.store(gradients[k] + to, weight * g, mask=inside)
        tl.store(gradients[M + k] + to, weight * (h - g * (means[k] - mean)), mask=inside)


@triton.jit
def _mean_of(tiles, M: tl.constexpr):
    total = tiles[0]
    for k in tl.static_range(1, M):
        total += tiles[k]
    return total * (1.0 / M)


@triton.jit(do_not_specialize=["N"])
def _minimality(
    z,  # M of [N, D]
    strides,
    partial,  # [programs], float64
    N,
    D: tl.constexpr,
    M: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """partial [programs] = sum over this program's samples and all modalities of |z_m - mean of all z|^2."""
    row, there = rows_of_program(N, ROWS)
    total = tl.zeros([ROWS, COLUMNS], DTYPE)
    for start in range(0, D, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        tiles = _tiles(z, strides, row, column, there & (column < D), 0, M, DTYPE)
        mean = _mean_of(tiles, M)
        for k in tl.static_range(M):
            difference = tiles[k] - mean
            total += difference * difference
    tl.store(partial + tl.program_id(0), tl.sum(tl.sum(total.to(tl.float64), 1), 0))


@triton.jit(do_not_specialize=["N"])
def _minimality_backward(
    upstream,  # []
    z,  # M of [N, D]
    strides,
    gradients,  # M of [N, D]
    N,
    D: tl.constexpr,
    M: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """dz_m = factor (z_m - mean of all z)."""
    row, column, inside = tile_of_program(N, D, ROWS, COLUMNS)
    tiles = _tiles(z, strides, row, column, inside, 0, M, DTYPE)
    mean = _mean_of(tiles, M)
    factor = tl.load(upstream).to(DTYPE) * (2.0 * M / ((M - 1) * (M - 1))) / N
    for k in tl.static_range(M):
        tl.store(gradients[k] + row * D + column, factor * (tiles[k] - mean), mask=inside)


def kl(tensors: Sequence[Tensor]) -> Tensor:
    """KL [...] of mean and logvar [..., d], or of mean, logvar, prior mean and prior logvar; float32 or float64."""
    matrices, dtype = matrices_of(tensors), accumulation_dtype(tensors[0])
    n, d = matrices[0].shape
    out = matrices[0].new_empty(n, dtype=dtype)
    tile = elementwise_tile(d, len(tensors), dtype)
    with on_device_of(out):
        _kl[(triton.cdiv(n, tile.rows),)](
            tensors=tuple(matrices),
            strides=row_strides(matrices),
            out=out,
            N=n,
            PRIOR=len(tensors) == 4,
            **constants(d, tile, dtype),
        )
    return out.view(tensors[0].shape[:-1])


def kl_backward(upstream: Tensor, tensors: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor]:
    """Gradients of `kl` for an upstream gradient [...]."""
    matrices, dtype = matrices_of(tensors), accumulation_dtype(tensors[0])
    n, d = matrices[0].shape
    gradients = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in tensors]
    tile = elementwise_tile(d, 2 * len(tensors), dtype)
    with on_device_of(upstream):
        _kl_backward[(triton.cdiv(n, tile.rows), triton.cdiv(d, tile.columns))](
            upstream=upstream.to(dtype).reshape(-1).contiguous(),
            tensors=tuple(matrices),
            strides=row_strides(matrices),
            gradients=tuple(gradients),
            N=n,
            PRIOR=len(tensors) == 4,
            **constants(d, tile, dtype),
        )
    return gradients


def product(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and log-variance [N, d] of the product of M experts: M means, then M log-variances."""
    matrices, dtype = matrices_of(tensors), accumulation_dtype(tensors[0])
    n, d = matrices[0].shape
    mean, logvar = (matrices[0].new_empty(n, d) for _ in range(2))
    tile = elementwise_tile(d, len(tensors), dtype)
    with on_device_of(mean):
        _product[(triton.cdiv(n, tile.rows), triton.cdiv(d, tile.columns))](
            tensors=tuple(matrices),
            strides=row_strides(matrices),
            mean=mean,
            logvar=logvar,
            N=n,
            M=len(tensors) // 2,
            **constants(d, tile, dtype),
        )
    return mean, logvar


def product_backward(
    mean_upstream: Tensor, logvar_upstream: Tensor, tensors: Sequence[Tensor], needed: Sequence[bool]
) -> list[Tensor]:
    """Gradients of `product` for upstream gradients of its mean and its log-variance."""
    matrices, above = matrices_of(tensors), matrices_of([mean_upstream, logvar_upstream])
    dtype = accumulation_dtype(tensors[0])
    n, d = matrices[0].shape
    gradients = [x.new_empty(n, d) for x in tensors]
    tile = elementwise_tile(d, len(tensors) + 2, dtype)
    with on_device_of(gradients[0]):
        _product_backward[(triton.cdiv(n, tile.rows), triton.cdiv(d, tile.columns))](
            upstream=tuple(above),
            upstream_strides=row_strides(above),
            tensors=tuple(matrices),
            strides=row_strides(matrices),
            gradients=tuple(gradients),
            N=n,
            M=len(tensors) // 2,
            **constants(d, tile, dtype),
        )
    return gradients


def minimality(z: Sequence[Tensor]) -> Tensor:
    """M / (M - 1)^2 times the mean over samples of sum_m |z_m - mean of all z|^2: OVA-IB's minimality."""
    matrices, dtype, m = matrices_of(z), accumulation_dtype(z[0]), len(z)
    n, d = matrices[0].shape
    tile = elementwise_tile(d, m, dtype)
    programs = triton.cdiv(n, tile.rows)
    partial = matrices[0].new_empty(programs, dtype=torch.float64)
    with on_device_of(partial):
        _minimality[(programs,)](
            z=tuple(matrices),
            strides=row_strides(matrices),
            partial=partial,
            N=n,
            M=m,
            **constants(d, tile, dtype),
        )
    return (partial.sum() * (m / ((m - 1) ** 2 * n))).to(dtype)


def minimality_backward(upstream: Tensor, z: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor]:
    """Gradients of `minimality`: 2 M / ((M - 1)^2 N) (z_m - mean of all z), times the upstream gradient."""
    matrices, dtype = matrices_of(z), accumulation_dtype(z[0])
    n, d = matrices[0].shape
    gradients = [x.new_empty(n, d) for x in z]
    tile = elementwise_tile(d, len(z), dtype)
    with on_device_of(upstream):
        _minimality_backward[(triton.cdiv(n, tile.rows), triton.cdiv(d, tile.columns))](
            upstream=upstream,
            z=tuple(matrices),
            strides=row_strides(matrices),
            gradients=tuple(gradients),
            N=n,
            M=len(z),
            **constants(d, tile, dtype),
        )
    return gradients
