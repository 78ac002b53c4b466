"""q . P_j q / |P_j q| with P_j a ridge projector: the cosine of q and its projection on a span."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,assignment"
# ruff: noqa: RUF005 - jit functions build tuples by addition
from __future__ import annotations

import math
from typing import Any

import numpy as np

from mibfast.kernels.halves import cpu, gpu, tl
from mibfast.kernels.pairwise.scores import Score
from mibfast.kernels.pairwise.scores.distances import inverse_square_root, squared_norm_of, times


@cpu
def _ridge_terms(tiles: Any, statistics: Any, numerator: Any, squared_norm: Any) -> None:
    """w = c . c and v = c^T V c, where `statistics` holds the upper triangle of V_j, row by row."""
    squared_norm_of(tiles, numerator)
    zero, two = tiles.dtype.type(0.0), tiles.dtype.type(2.0)
    for j in range(numerator.size):
        squared_norm[j] = zero
    entry = 0
    for k in range(tiles.shape[0]):
        c = tiles[k]
        own = statistics[entry]
        entry += 1
        for j in range(numerator.size):
            squared_norm[j] += own[j] * c[j] * c[j]
        for other in range(k + 1, tiles.shape[0]):
            b = tiles[other]
            shared = statistics[entry]
            entry += 1
            for j in range(numerator.size):
                squared_norm[j] += two * shared[j] * c[j] * b[j]


@cpu
def row(tiles: Any, squared_norm: Any, statistics: Any, scratch: Any) -> Any:
    """q . P_j q / |P_j q| = w / sqrt(v): the cosine of a unit q and its ridge projection; zero where that is zero."""
    zero, smallest = tiles.dtype.type(0.0), np.finfo(tiles.dtype).tiny
    out, squares = scratch[0], scratch[1]
    _ridge_terms(tiles, statistics, out, squares)
    for j in range(out.size):
        # Vector units make zero of subnormal numbers; NaN fails the comparison and stays.
        v = squares[j]
        out[j] = zero if v < smallest else out[j] / math.sqrt(v)
    return out


@cpu
def grad_row(
    tiles: Any, squared_norm: Any, statistics: Any, weights: Any, factor: Any, grad_statistics: Any, scratch: Any
) -> Any:
    """With r = 1 / sqrt(v) and u = r c: ds/dc = 2 u - w r^2 V u; ds/dV_kl = -w r u_k u_l, halved on the diagonal.

    No power of r is higher than the second, which a cosine of 1e-19 still has in float32.
    """
    zero, half = tiles.dtype.type(0.0), tiles.dtype.type(0.5)
    one, two, smallest = tiles.dtype.type(1.0), tiles.dtype.type(2.0), np.finfo(tiles.dtype).tiny
    g, h = scratch[1], scratch[2]
    _ridge_terms(tiles, statistics, g, h)
    for j in range(g.size):
        r = zero if h[j] < smallest else one / math.sqrt(h[j])
        for k in range(tiles.shape[0]):
            tiles[k, j] *= r
        h[j] = weights[j] * (g[j] * r)
        g[j] = h[j] * r
    entry = 0
    for k in range(tiles.shape[0]):
        u, out = tiles[k], scratch[3 + k]
        for j in range(g.size):
            out[j] = two * weights[j] * u[j]
        for other in range(tiles.shape[0]):
            b = tiles[other]
            low, high = min(k, other), max(k, other)
            entries = statistics[low * tiles.shape[0] - (low * (low - 1)) // 2 + high - low]
            for j in range(g.size):
                out[j] -= g[j] * entries[j] * b[j]
            if other >= k:
                share = factor * (half if other == k else one)
                gradient = grad_statistics[entry]
                entry += 1
                for j in range(g.size):
                    gradient[j] -= share * h[j] * u[j] * b[j]
    for k in range(tiles.shape[0]):
        tiles[k, :] = scratch[3 + k]
    return zero


@gpu
def _ridge_terms_of_tiles(tiles, column_statistics):
    """w = c . c and v = c^T V c, where the statistics are the upper triangle of V_j, row by row."""
    w = tiles[0] * tiles[0]
    for k in tl.static_range(1, len(tiles)):
        w += tiles[k] * tiles[k]
    v = w * 0.0
    for k in tl.static_range(len(tiles)):
        for other in tl.static_range(k, len(tiles)):
            own = column_statistics[k * len(tiles) - k * (k - 1) // 2 + other - k]
            v += (1.0 if other == k else 2.0) * own * tiles[k] * tiles[other]
    return w, v


@gpu
def value(tiles, row_statistic, column_statistics):
    """The cosine of q and its ridge projection, zero where that is zero; the row's statistic is 1 / |q|.

    For a unit q, q . P_j q / |P_j q| = w / sqrt(v).
    """
    w, v = _ridge_terms_of_tiles(times(tiles, row_statistic), column_statistics)
    return w * inverse_square_root(v)


@gpu
def grad(tiles, row_statistic, column_statistics, weights):
    """With r = 1 / sqrt(v) and u = r c: ds/dc = 2 u - w r^2 V u; ds/dV_kl = -w r u_k u_l, halved on the diagonal."""
    c = times(tiles, row_statistic)
    w, v = _ridge_terms_of_tiles(c, column_statistics)
    r = inverse_square_root(v)
    u = times(c, r)
    h = weights * (w * r)
    g = h * r
    grad_tiles = ()
    grad_statistics = ()
    grad_row_statistic = 0.0
    for k in tl.static_range(len(tiles)):
        grad_c = 2.0 * weights * u[k]
        for other in tl.static_range(k):
            grad_c -= g * column_statistics[other * len(tiles) - other * (other - 1) // 2 + k - other] * u[other]
        for other in tl.static_range(k, len(tiles)):
            grad_c -= g * column_statistics[k * len(tiles) - k * (k - 1) // 2 + other - k] * u[other]
            grad_statistics = grad_statistics + ((-0.5 if other == k else -1.0) * h * u[k] * u[other],)
        grad_row_statistic += grad_c * tiles[k]
        grad_tiles = grad_tiles + (grad_c * row_statistic,)
    return grad_tiles, grad_row_statistic, grad_statistics


SCORE = Score(row, grad_row, value, grad, homogeneous=True)
