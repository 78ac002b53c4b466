"""Scores of the CPU engine, one row at a time.

A score is a function of K inner products `c_k = q . b_jk`, of statistics of its column and, where it asks for it, of
the squared norm of its row q. Of degree 1 in q, whoever calls the engine multiplies rows by 1 / temperature and the
scores follow; others take the temperature in their columns' statistics. A score consists of

- `score_row(tiles, column_statistics, scratch)`: the scores of a row from its tiles [K, N'] and the columns' statistics
  [S, N']; returns the array [N'] that holds them, `tiles[0]` or `scratch[0]`. All of `scratch`
  [3 + K, N'] may be written;
- `score_gradient_row(tiles, column_statistics, weights, factor, column_gradient, scratch)`: `weights` is that array
  again, in which the reduction has replaced the scores, and `factor * weights` = dL/ds. Overwrites `tiles` with
  (dL/dtiles) / factor and adds dL/dstatistics to `column_gradient` [S, N']. `scratch[1:]` may be written.

To add a score: write the two functions, give them a code here, and list them in `_ROWS` and `_GRADIENT_ROWS`. Those of
a score that is listed in `_OF_ROW_NORMS` too take the row's squared norm after the tiles, and the second returns the
gradient with respect to it, divided by factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from numba.core import types
from numba.extending import overload

from mibfast.kernels.compilation import INLINED, inline
from mibfast.kernels.pairwise.reductions_cpu import sum_of

INNER_PRODUCT = 0
PROJECTION = 1
RIDGE_PROJECTION = 2
GRAM_VOLUME = 3
TRIANGLE_AREA = 4
SQUARED_TRIANGLE_AREA = 5


@inline
def _inner_product(tiles: Any, column_statistics: Any, scratch: Any) -> Any:
    return tiles[0]


@inline
def _inner_product_gradient(
    tiles: Any, column_statistics: Any, weights: Any, factor: Any, column_gradient: Any, scratch: Any
) -> None:
    # The scores are the tile, so the weights that replaced them are the tile's gradient.
    pass


@inline
def _projection(tiles: Any, column_statistics: Any, scratch: Any) -> Any:
    """|P_j q| = sqrt(sum_k c_k^2): the cosine of a unit q and its projection on orthonormal b_j."""
    out = scratch[0]
    _squared_norm(tiles, out)
    for j in range(out.size):
        out[j] = math.sqrt(out[j])
    return out


@inline
def _squared_norm(tiles: Any, out: Any) -> None:
    first = tiles[0]
    for j in range(out.size):
        out[j] = first[j] * first[j]
    for k in range(1, tiles.shape[0]):
        c = tiles[k]
        for j in range(out.size):
            out[j] += c[j] * c[j]


@inline
def _projection_gradient(
    tiles: Any, column_statistics: Any, weights: Any, factor: Any, column_gradient: Any, scratch: Any
) -> None:
    zero, one = tiles.dtype.type(0.0), tiles.dtype.type(1.0)
    ratio = scratch[1]
    _squared_norm(tiles, ratio)
    for j in range(ratio.size):
        # At zero the gradient is zero; NaN is not equal to zero and stays.
        ratio[j] = zero if ratio[j] == zero else weights[j] * (one / math.sqrt(ratio[j]))
    for k in range(tiles.shape[0]):
        c = tiles[k]
        for j in range(ratio.size):
            c[j] *= ratio[j]


@inline
def _ridge_terms(tiles: Any, column_statistics: Any, numerator: Any, squared_norm: Any) -> None:
    """w = c . c and v = c^T V c, where `column_statistics` holds the upper triangle of V_j, row by row."""
    _squared_norm(tiles, numerator)
    zero, two = tiles.dtype.type(0.0), tiles.dtype.type(2.0)
    for j in range(numerator.size):
        squared_norm[j] = zero
    entry = 0
    for k in range(tiles.shape[0]):
        c = tiles[k]
        own = column_statistics[entry]
        entry += 1
        for j in range(numerator.size):
            squared_norm[j] += own[j] * c[j] * c[j]
        for other in range(k + 1, tiles.shape[0]):
            b = tiles[other]
            shared = column_statistics[entry]
            entry += 1
            for j in range(numerator.size):
                squared_norm[j] += two * shared[j] * c[j] * b[j]


@inline
def _ridge_projection(tiles: Any, column_statistics: Any, scratch: Any) -> Any:
    """q . P_j q / |P_j q| = w / sqrt(v): the cosine of a unit q and its ridge projection; zero where that is zero."""
    zero = tiles.dtype.type(0.0)
    out, squared_norm = scratch[0], scratch[1]
    _ridge_terms(tiles, column_statistics, out, squared_norm)
    for j in range(out.size):
        v = squared_norm[j]
        out[j] = zero if v <= zero else out[j] / math.sqrt(v)
    return out


@inline
def _ridge_projection_gradient(
    tiles: Any, column_statistics: Any, weights: Any, factor: Any, column_gradient: Any, scratch: Any
) -> None:
    """With r = 1 / sqrt(v), g = w r^3: ds/dc = 2 r c - g V c; ds/dV_kl = -g c_k c_l, halved on the diagonal."""
    zero, half = tiles.dtype.type(0.0), tiles.dtype.type(0.5)
    one, two = tiles.dtype.type(1.0), tiles.dtype.type(2.0)
    g, own = scratch[1], scratch[2]
    _ridge_terms(tiles, column_statistics, g, own)
    for j in range(g.size):
        squared_norm = own[j]
        r = zero if squared_norm <= zero else one / math.sqrt(squared_norm)
        cubed = g[j] * r * r * r
        own[j] = weights[j] * two * r
        g[j] = weights[j] * cubed
    entry = 0
    for k in range(tiles.shape[0]):
        c, out = tiles[k], scratch[3 + k]
        for j in range(g.size):
            out[j] = own[j] * c[j]
        for other in range(tiles.shape[0]):
            b = tiles[other]
            low, high = min(k, other), max(k, other)
            v = column_statistics[low * tiles.shape[0] - (low * (low - 1)) // 2 + high - low]
            for j in range(g.size):
                out[j] -= g[j] * v[j] * b[j]
            if other >= k:
                share = factor * (half if other == k else one)
                gradient = column_gradient[entry]
                entry += 1
                for j in range(g.size):
                    gradient[j] -= share * g[j] * c[j] * b[j]
    for k in range(tiles.shape[0]):
        tiles[k, :] = scratch[3 + k]


@inline
def _times_distance(squared_distance: Any, factors: Any) -> None:
    """t sqrt(r) in place of r, which rounding can take below zero."""
    zero = squared_distance.dtype.type(0.0)
    for j in range(squared_distance.size):
        r = squared_distance[j]
        # Not max(r, 0): NaN fails the comparison and stays.
        squared_distance[j] = factors[j] * math.sqrt(zero if r < zero else r)


@inline
def _times_distance_gradient(
    squared_distance: Any, factors: Any, weights: Any, factor: Any, factor_gradient: Any
) -> None:
    """h = weights ds/dr = weights t / (2 sqrt(r)) in place of r, zero at r = 0; adds dL/dt."""
    zero, half = squared_distance.dtype.type(0.0), squared_distance.dtype.type(0.5)
    for j in range(squared_distance.size):
        r = squared_distance[j]
        distance = math.sqrt(zero if r < zero else r)
        factor_gradient[j] += factor * weights[j] * distance
        squared_distance[j] = zero if r <= zero else weights[j] * factors[j] * (half / distance)


@inline
def _squared_distance_to_span(tiles: Any, squared_norm: Any, out: Any) -> None:
    """r = |q|^2 - sum_k c_k^2, q's squared distance to the span of orthonormal b_j."""
    _squared_norm(tiles, out)
    for j in range(out.size):
        out[j] = squared_norm - out[j]


@inline
def _gram_volume(tiles: Any, squared_norm: Any, column_statistics: Any, scratch: Any) -> Any:
    """t_j sqrt(r): the volume that q spans with the vectors of column j, where t_j is the volume of those alone."""
    out = scratch[0]
    _squared_distance_to_span(tiles, squared_norm, out)
    _times_distance(out, column_statistics[0])
    return out


@inline
def _gram_volume_gradient(
    tiles: Any,
    squared_norm: Any,
    column_statistics: Any,
    weights: Any,
    factor: Any,
    column_gradient: Any,
    scratch: Any,
) -> Any:
    """dr/dc_k = -2 c_k, dr/d|q|^2 = 1."""
    h, two = scratch[1], tiles.dtype.type(2.0)
    _squared_distance_to_span(tiles, squared_norm, h)
    _times_distance_gradient(h, column_statistics[0], weights, factor, column_gradient[0])
    for k in range(tiles.shape[0]):
        c = tiles[k]
        for j in range(h.size):
            c[j] *= -two * h[j]
    return tiles.dtype.type(sum_of(h))


@inline
def _squared_distance_to_line(tiles: Any, squared_norm: Any, column_statistics: Any, out: Any) -> None:
    """r = |q - p_j|^2 - c^2 with c = q . w_j: q's squared distance to the line through p_j along the unit w_j.

    p_j is the line's point nearest to the origin, so p_j . w_j = 0. The tiles are q . w_j and q . p_j, and the second
    statistic is |p_j|^2.
    """
    two = tiles.dtype.type(2.0)
    c, along_point, point = tiles[0], tiles[1], column_statistics[1]
    for j in range(out.size):
        out[j] = (squared_norm - two * along_point[j] + point[j]) - c[j] * c[j]


@inline
def _distance_to_line_gradient(tiles: Any, h: Any, factor: Any, column_gradient: Any) -> Any:
    """Of a score with the gradient h in r: dr/dc = -2 c, dr/d(q . p) = -2, dr/d|p|^2 = dr/d|q|^2 = 1."""
    two = tiles.dtype.type(2.0)
    c, along_point, point = tiles[0], tiles[1], column_gradient[1]
    for j in range(h.size):
        c[j] *= -two * h[j]
    for j in range(h.size):
        along_point[j] = -two * h[j]
        point[j] += factor * h[j]
    return tiles.dtype.type(sum_of(h))


@inline
def _triangle_area(tiles: Any, squared_norm: Any, column_statistics: Any, scratch: Any) -> Any:
    """t_j sqrt(r): an area, where t_j is half the length of the side across from q."""
    out = scratch[0]
    _squared_distance_to_line(tiles, squared_norm, column_statistics, out)
    _times_distance(out, column_statistics[0])
    return out


@inline
def _triangle_area_gradient(
    tiles: Any,
    squared_norm: Any,
    column_statistics: Any,
    weights: Any,
    factor: Any,
    column_gradient: Any,
    scratch: Any,
) -> Any:
    h = scratch[1]
    _squared_distance_to_line(tiles, squared_norm, column_statistics, h)
    _times_distance_gradient(h, column_statistics[0], weights, factor, column_gradient[0])
    return _distance_to_line_gradient(tiles, h, factor, column_gradient)


@inline
def _squared_triangle_area(tiles: Any, squared_norm: Any, column_statistics: Any, scratch: Any) -> Any:
    """t_j r: twice a squared area, where t_j is half the squared length of the side across from q."""
    out, t, zero = scratch[0], column_statistics[0], tiles.dtype.type(0.0)
    _squared_distance_to_line(tiles, squared_norm, column_statistics, out)
    for j in range(out.size):
        r = out[j]
        out[j] = t[j] * (zero if r < zero else r)
    return out


@inline
def _squared_triangle_area_gradient(
    tiles: Any,
    squared_norm: Any,
    column_statistics: Any,
    weights: Any,
    factor: Any,
    column_gradient: Any,
    scratch: Any,
) -> Any:
    h, t, gradient, zero = scratch[1], column_statistics[0], column_gradient[0], tiles.dtype.type(0.0)
    _squared_distance_to_line(tiles, squared_norm, column_statistics, h)
    for j in range(h.size):
        r = h[j]
        r = zero if r < zero else r
        gradient[j] += factor * weights[j] * r
        # At r = 0 its own gradient is zero, and below there is only rounding.
        h[j] = zero if r == zero else weights[j] * t[j]
    return _distance_to_line_gradient(tiles, h, factor, column_gradient)


_ROWS: dict[int, Callable[..., Any]] = {
    INNER_PRODUCT: _inner_product,
    PROJECTION: _projection,
    RIDGE_PROJECTION: _ridge_projection,
    GRAM_VOLUME: _gram_volume,
    TRIANGLE_AREA: _triangle_area,
    SQUARED_TRIANGLE_AREA: _squared_triangle_area,
}
_GRADIENT_ROWS: dict[int, Callable[..., Any]] = {
    INNER_PRODUCT: _inner_product_gradient,
    PROJECTION: _projection_gradient,
    RIDGE_PROJECTION: _ridge_projection_gradient,
    GRAM_VOLUME: _gram_volume_gradient,
    TRIANGLE_AREA: _triangle_area_gradient,
    SQUARED_TRIANGLE_AREA: _squared_triangle_area_gradient,
}
# Scores that depend on the squared norm of the row as well.
_OF_ROW_NORMS = {GRAM_VOLUME, TRIANGLE_AREA, SQUARED_TRIANGLE_AREA}


def is_tile(score: int) -> bool:
    """Whether the scores are the tile itself, and need no memory of their own."""
    return score == INNER_PRODUCT


def scratch_rows(score: int, tiles: int) -> int:
    """Rows of `scratch` for a score of this many tiles."""
    return 1 if is_tile(score) else 3 + tiles


def score_row(score: int, tiles: Any, squared_norm: Any, column_statistics: Any, scratch: Any) -> Any:
    """The scores of a row, by the score's code."""
    raise NotImplementedError("called from kernels only")


@overload(score_row, jit_options=INLINED, prefer_literal=True, strict=False)  # type: ignore[untyped-decorator]
def _score_row(score: Any, tiles: Any, squared_norm: Any, column_statistics: Any, scratch: Any) -> Any:
    if not isinstance(score, types.IntegerLiteral):
        return None  # the engine gives a constant; Numba also tries without
    row = _ROWS[score.literal_value]

    def of_row_norms(score: Any, tiles: Any, squared_norm: Any, column_statistics: Any, scratch: Any) -> Any:
        return row(tiles, squared_norm, column_statistics, scratch)

    def of_tiles(score: Any, tiles: Any, squared_norm: Any, column_statistics: Any, scratch: Any) -> Any:
        return row(tiles, column_statistics, scratch)

    return of_row_norms if score.literal_value in _OF_ROW_NORMS else of_tiles


def score_gradient_row(
    score: int,
    tiles: Any,
    squared_norm: Any,
    column_statistics: Any,
    weights: Any,
    factor: Any,
    column_gradient: Any,
    scratch: Any,
) -> Any:
    """The gradient of a row's tiles and of the columns' statistics, by the score's code; returns that of its norm."""
    raise NotImplementedError("called from kernels only")


@overload(score_gradient_row, jit_options=INLINED, prefer_literal=True, strict=False)  # type: ignore[untyped-decorator]
def _score_gradient_row(
    score: Any,
    tiles: Any,
    squared_norm: Any,
    column_statistics: Any,
    weights: Any,
    factor: Any,
    column_gradient: Any,
    scratch: Any,
) -> Any:
    if not isinstance(score, types.IntegerLiteral):
        return None  # the engine gives a constant; Numba also tries without
    row = _GRADIENT_ROWS[score.literal_value]

    def of_row_norms(
        score: Any,
        tiles: Any,
        squared_norm: Any,
        column_statistics: Any,
        weights: Any,
        factor: Any,
        column_gradient: Any,
        scratch: Any,
    ) -> Any:
        return row(tiles, squared_norm, column_statistics, weights, factor, column_gradient, scratch)

    def of_tiles(
        score: Any,
        tiles: Any,
        squared_norm: Any,
        column_statistics: Any,
        weights: Any,
        factor: Any,
        column_gradient: Any,
        scratch: Any,
    ) -> Any:
        row(tiles, column_statistics, weights, factor, column_gradient, scratch)
        return tiles.dtype.type(0.0)

    return of_row_norms if score.literal_value in _OF_ROW_NORMS else of_tiles
