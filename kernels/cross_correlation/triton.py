"""Barlow Twins on the GPU: products by cuBLAS, element-wise passes by Triton; `cpu.py` has the formula.

Products are those of `cpu.py`: with N < d 4 of 2 N^2 d FLOPs and no d x d matrix, with N >= d 3 of 2 N d^2. bf16 and
float16 views are standardised in float64 and rounded to their dtype, which tensor cores multiply, accumulating float32;
float32 is multiplied as torch multiplies it. What is kept for the backward is in the views' dtype too, C or Z Z^T / d,
which float16 holds.

Bytes, for w a number's and both views: standardising reads views twice and writes them once, 6 N d w; the sum of
squares reads C or both Z Z^T once in float32 and writes them once as they are kept; each gradient is read twice, with Z
of both views, and written once, (8 + 5 w) N d. Sums over the batch are cut into ranges of rows where d alone gives too
few programs, and joined in a fixed order, moments by Chan, Golub and LeVeque's formula, so that results repeat.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mibfast.kernels.cross_correlation.reference import EPS
from mibfast.kernels.matrix_product import matrix_product

# Rows and columns that a program holds at once; a row's piece is 64 bytes or more.
_ROWS, _COLUMNS = 64, 32
# Ranges of rows, at most and no shorter than this; programs that fill the device.
_MOST_RANGES, _LEAST_RANGE, _PROGRAMS = 64, 128, 528
# A constant: a float argument of a kernel would be float32.
_EPS = tl.constexpr(EPS)
# Elements of a matrix that a program of `_sum_products` takes: rows of it, and columns at once.
_MATRIX_ROWS, _MATRIX_COLUMNS = 16, 256


@triton.jit
def _to_float64(x):
    if x.dtype != tl.float64:
        x = x.to(tl.float32)
    return x.to(tl.float64)


@triton.jit
def _from_float64(x, dtype: tl.constexpr):
    if dtype != tl.float64:
        x = x.to(tl.float32)
    return x.to(dtype)


@triton.jit
def _tile(x, stride, row, column, n, d):
    """Load a tile of x in float64, zeros outside; and the mask of what is inside."""
    inside = (row < n)[:, None] & (column < d)[None, :]
    values = tl.load(x + row[:, None].to(tl.int64) * stride + column[None, :], mask=inside, other=0.0)
    return _to_float64(values), inside


@triton.jit
def _moments(x, stride, partial, n, d, range_size, ranges, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Mean and sum of squared differences from it, of a range of rows of each column: [2, ranges, d]."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    begin = tl.program_id(1) * range_size
    end = tl.minimum(begin + range_size, n)
    total = tl.zeros((COLUMNS,), tl.float64)
    for first in range(begin, end, ROWS):
        values, _ = _tile(x, stride, first + tl.arange(0, ROWS), column, end, d)
        total += tl.sum(values, 0)
    mean = total / (end - begin)
    squares = tl.zeros((COLUMNS,), tl.float64)
    for first in range(begin, end, ROWS):
        values, inside = _tile(x, stride, first + tl.arange(0, ROWS), column, end, d)
        difference = tl.where(inside, values - mean[None, :], 0.0)
        squares += tl.sum(difference * difference, 0)
    place = partial + tl.program_id(1) * d + column
    tl.store(place, mean, mask=column < d)
    tl.store(place + ranges * d, squares, mask=column < d)


@triton.jit
def _standardise(
    x,  # [n, d]
    stride,
    partial,  # [2, ranges, d]
    z,  # [n, d]
    inverse,  # [d]
    other,  # [n, d], or None
    correlation,  # [ranges, d], or None
    n,
    d,
    range_size,
    ranges,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write a range of rows of z and, with another view's, that range's sums of z times it: [ranges, d]."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    begin = tl.program_id(1) * range_size
    end = tl.minimum(begin + range_size, n)
    mean = tl.zeros((COLUMNS,), tl.float64)
    squares = tl.zeros((COLUMNS,), tl.float64)
    for part in range(ranges):
        place = partial + part * d + column
        part_mean = tl.load(place, mask=column < d, other=0.0)
        before = (part * range_size).to(tl.float64)
        size = tl.minimum(range_size, n - part * range_size).to(tl.float64)
        share = size / (before + size)
        difference = part_mean - mean
        squares += tl.load(place + ranges * d, mask=column < d, other=0.0) + difference * difference * before * share
        mean += difference * share
    factor = 1.0 / tl.sqrt(squares / n + _EPS)
    tl.store(inverse + column, factor, mask=(column < d) & (tl.program_id(1) == 0))
    along = tl.zeros((COLUMNS,), tl.float64)
    for first in range(begin, end, ROWS):
        row = first + tl.arange(0, ROWS)
        values, inside = _tile(x, stride, row, column, end, d)
        standardised = _from_float64((values - mean[None, :]) * factor[None, :], z.dtype.element_ty)
        tl.store(z + row[:, None].to(tl.int64) * d + column[None, :], standardised, mask=inside)
        if other is not None:
            against, _ = _tile(other, d, row, column, end, d)
            along += tl.sum(tl.where(inside, _to_float64(standardised) * against, 0.0), 0)
    if other is not None:
        tl.store(correlation + tl.program_id(1) * d + column, along, mask=column < d)


@triton.jit
def _sum_products(
    x,  # [n, n]
    y,  # [n, n], or None
    x_kept,  # [n, n]
    y_kept,  # [n, n], or None
    partial,  # [programs]
    n,
    divisor,
    WITHOUT_DIAGONAL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sums of x y / divisor^2 over rows of matrices [n, n], a number a program; keep them over the divisor.

    Where y is None it is x. x may be x_kept, and y y_kept.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros((ROWS,), tl.float64)
    for first in range(0, n, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        inside = (row < n)[:, None] & (column < n)[None, :]
        counted = inside & (row[:, None] != column[None, :]) if WITHOUT_DIAGONAL else inside
        place = row[:, None].to(tl.int64) * n + column[None, :]
        # The diagonal is not read: it becomes zero, whatever the product holds there.
        left = tl.load(x + place, mask=counted, other=0.0) / divisor
        tl.store(x_kept + place, left.to(x_kept.dtype.element_ty), mask=inside)
        if y is None:
            right = left
        else:
            right = tl.load(y + place, mask=counted, other=0.0) / divisor
            tl.store(y_kept + place, right.to(y_kept.dtype.element_ty), mask=inside)
        total += tl.sum(left * right, 1).to(tl.float64)
    tl.store(partial + tl.program_id(0), tl.sum(total, 0))


@triton.jit
def _grad_standardised(gradient, other, factor, along, row, column, end, d):
    """dL/dZ = factor gradient + along other, float64."""
    place = row[:, None].to(tl.int64) * d + column[None, :]
    inside = (row < end)[:, None] & (column < d)[None, :]
    product = _to_float64(tl.load(gradient + place, mask=inside, other=0.0))
    against = _to_float64(tl.load(other + place, mask=inside, other=0.0))
    return factor * product + along[None, :] * against, inside, place


@triton.jit
def _mean_gradients(
    gradient,  # [n, d]
    z,  # [n, d]
    other,  # [n, d]
    factor,  # []
    along,  # [d]
    partial,  # [2, ranges, d]
    n,
    d,
    range_size,
    ranges,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sums over a range of rows of dL/dZ and of Z dL/dZ: [2, ranges, d]."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    begin = tl.program_id(1) * range_size
    end = tl.minimum(begin + range_size, n)
    multiple = tl.load(factor)
    t = tl.load(along + column, mask=column < d, other=0.0)
    total = tl.zeros((COLUMNS,), tl.float64)
    total_along = tl.zeros((COLUMNS,), tl.float64)
    for first in range(begin, end, ROWS):
        row = first + tl.arange(0, ROWS)
        g, inside, place = _grad_standardised(gradient, other, multiple, t, row, column, end, d)
        g = tl.where(inside, g, 0.0)
        total += tl.sum(g, 0)
        total_along += tl.sum(g * _to_float64(tl.load(z + place, mask=inside, other=0.0)), 0)
    place = partial + tl.program_id(1) * d + column
    tl.store(place, total, mask=column < d)
    tl.store(place + ranges * d, total_along, mask=column < d)


@triton.jit
def _standardise_backward(
    gradient,  # [n, d]
    z,  # [n, d]
    other,  # [n, d]
    factor,  # []
    along,  # [d]
    partial,  # [2, ranges, d]
    inverse,  # [d]
    into,  # [n, d]
    n,
    d,
    range_size,
    ranges,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    begin = tl.program_id(1) * range_size
    end = tl.minimum(begin + range_size, n)
    multiple = tl.load(factor)
    t = tl.load(along + column, mask=column < d, other=0.0)
    scale = tl.load(inverse + column, mask=column < d, other=0.0)
    mean = tl.zeros((COLUMNS,), tl.float64)
    mean_along = tl.zeros((COLUMNS,), tl.float64)
    for part in range(ranges):
        place = partial + part * d + column
        mean += tl.load(place, mask=column < d, other=0.0)
        mean_along += tl.load(place + ranges * d, mask=column < d, other=0.0)
    mean, mean_along = mean / n, mean_along / n
    for first in range(begin, end, ROWS):
        row = first + tl.arange(0, ROWS)
        g, inside, place = _grad_standardised(gradient, other, multiple, t, row, column, end, d)
        x = _to_float64(tl.load(z + place, mask=inside, other=0.0))
        result = (g - mean[None, :] - x * mean_along[None, :]) * scale[None, :]
        tl.store(into + place, _from_float64(result, into.dtype.element_ty), mask=inside)


def _ranges(n: int, d: int) -> tuple[int, int, dict[str, int]]:
    """Blocks of columns, ranges of rows, and arguments that say how long a range is."""
    blocks = triton.cdiv(d, _COLUMNS)
    wanted = max(1, min(_MOST_RANGES, _PROGRAMS // blocks, n // _LEAST_RANGE))
    size = triton.cdiv(n, wanted * _ROWS) * _ROWS
    count = triton.cdiv(n, size)
    tiles = {"ROWS": _ROWS, "COLUMNS": _COLUMNS, "num_warps": 4}
    return blocks, count, {"n": n, "d": d, "range_size": size, "ranges": count, **tiles}


def _standardised(x: Tensor, other: Tensor | None, inverse: Tensor) -> tuple[Tensor, Tensor | None]:
    """Standardised x, and the mean over samples of its products with `other`, float64 [d]; fills `inverse` [d]."""
    x = x.detach()
    x = x if x.stride(1) == 1 else x.contiguous()
    n, d = x.shape
    wide: dict[str, Any] = {"dtype": torch.float64, "device": x.device}
    blocks, count, arguments = _ranges(n, d)
    z, partial = torch.empty((n, d), dtype=x.dtype, device=x.device), torch.empty(2, count, d, **wide)
    correlation = None if other is None else torch.empty(count, d, **wide)
    _moments[(blocks, count)](x=x, stride=x.stride(0), partial=partial, **arguments)
    _standardise[(blocks, count)](
        x=x,
        stride=x.stride(0),
        partial=partial,
        z=z,
        inverse=inverse,
        other=other,
        correlation=correlation,
        **arguments,
    )
    return z, None if correlation is None else correlation.sum(0) / n


def _kept(first: Tensor, second: Tensor | None, divisor: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The matrices over the divisor, in place where they are of the dtype, and the sum of their products.

    Without a second, the sum of the first's squares, whose diagonal becomes zero.
    """
    side, device = first.shape[0], first.device
    partial = torch.empty(triton.cdiv(side, _MATRIX_ROWS), dtype=torch.float64, device=device)
    kept = [x if x is None or x.dtype == dtype else torch.empty_like(x, dtype=dtype) for x in (first, second)]
    _sum_products[(len(partial),)](
        x=first,
        y=second,
        x_kept=kept[0],
        y_kept=kept[1],
        partial=partial,
        n=side,
        divisor=divisor,
        WITHOUT_DIAGONAL=second is None,
        ROWS=_MATRIX_ROWS,
        COLUMNS=_MATRIX_COLUMNS,
        num_warps=4,
    )
    assert kept[0] is not None
    return kept[0], first.new_empty(0, dtype=dtype) if kept[1] is None else kept[1], partial.sum()


def barlow_twins(a: Tensor, b: Tensor) -> list[Tensor]:
    """Invariance and redundancy [2], and what the backward needs: Za, Zb, inverse deviations, C_ii, and the products'.

    Those are Za Za^T / d and Zb Zb^T / d where N < d; else C with zeros on its diagonal, and nothing.
    """
    n, d = a.shape
    with torch.cuda.device_of(a), torch.autocast(a.device.type, enabled=False):
        inverses = torch.empty(2, d, dtype=torch.float64, device=a.device)
        za, _ = _standardised(a, None, inverses[0])
        zb, diagonal = _standardised(b, za, inverses[1])
        assert diagonal is not None
        if n < d:
            first, second, total = _kept(matrix_product(za, za.T), matrix_product(zb, zb.T), d, za.dtype)
            # Rounding may take a sum of squares that is zero below it.
            squares = total * (d / n) ** 2 - diagonal.square().sum()
            redundancy = torch.where(squares < 0.0, 0.0, squares)
        else:
            first, second, redundancy = _kept(matrix_product(za.T, zb), None, n, za.dtype)
        values = torch.stack([(diagonal - 1.0).square().sum(), redundancy])
    dtype = torch.float64 if a.dtype == torch.float64 else torch.float32
    return [values.to(dtype), za, zb, inverses, diagonal, first, second]


def barlow_twins_backward(
    upstream: Tensor,
    za: Tensor,
    zb: Tensor,
    inverses: Tensor,
    diagonal: Tensor,
    first: Tensor,
    second: Tensor,
    needed: Sequence[bool],
) -> list[Tensor]:
    """Gradients of `barlow_twins` for an upstream gradient [2], in the dtype of Za; empty where not needed."""
    n, d = za.shape
    results = []
    with torch.cuda.device_of(za), torch.autocast(za.device.type, enabled=False):
        grad_invariance, grad_redundancy = upstream.double().unbind()
        along = grad_invariance * (2.0 / n) * (diagonal - 1.0)
        if n < d:
            # The inner products hold the diagonal too.
            along = along - grad_redundancy * (2.0 / n) * diagonal
        factor = grad_redundancy * (2.0 * d / n**2 if n < d else 2.0 / n)
        blocks, count, arguments = _ranges(n, d)
        for side, (z, other) in enumerate(((za, zb), (zb, za))):
            if not needed[side]:
                results.append(torch.empty_like(z))
                continue
            if n < d:
                product = matrix_product(second if side == 0 else first, z)
            else:
                product = matrix_product(other, first.T if side == 0 else first)
            into = product if product.dtype == z.dtype else torch.empty_like(z)
            partial = torch.empty(2, count, d, dtype=torch.float64, device=z.device)
            shared = {"gradient": product, "z": z, "other": other, "factor": factor, "along": along, "partial": partial}
            _mean_gradients[(blocks, count)](**shared, **arguments)
            _standardise_backward[(blocks, count)](**shared, inverse=inverses[side], into=into, **arguments)
            results.append(into)
    return results
