"""Scores of the Triton engine, one tile of pairs at a time.

A score is a function of K inner products `c_k = q . b_jk`, of a statistic of its row and of S statistics of its column;
the temperature is not in it: the engine multiplies scores by it, and takes its gradient. A score is a pair of jit
functions, which the engine's kernels take as `constexpr`:

- `value(tiles, row_statistic, column_statistics)`: the scores, float32, from the K tiles [rows, columns]; the row's
  statistic [rows, 1] and the S of the column, each [1, columns], stand in shapes that broadcast against them;
- `gradient(tiles, row_statistic, column_statistics, weights)`: `weights` is dL/dscore; returns a tuple of the K
  dL/dtile, dL/d(row statistic) and a tuple of the S dL/d(column statistic), tiles all, which the engine sums up.

A score without a row statistic gets 0.0 for it, and may return anything in its place; one without column statistics
gets and returns the empty tuple. NaN must come through. To add a score: write the two functions and name the pair here;
nothing else knows them. The functions may loop over K by `tl.static_range(len(tiles))`.
"""

# ruff: noqa: RUF005 - jit functions build tuples by addition
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,assignment"
from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Score(NamedTuple):
    """The two jit functions of a score."""

    value: Any
    gradient: Any


@triton.jit
def _inner_product(tiles, row_statistic, column_statistics):
    return tiles[0]


@triton.jit
def _inner_product_gradient(tiles, row_statistic, column_statistics, weights):
    return (weights,), 0.0, ()


INNER_PRODUCT = Score(_inner_product, _inner_product_gradient)


@triton.jit
def _times(tiles, factor):
    scaled = ()
    for k in tl.static_range(len(tiles)):
        scaled = scaled + (factor * tiles[k],)
    return scaled


@triton.jit
def _ridge_terms(tiles, column_statistics):
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


@triton.jit
def _inverse_square_root(x):
    """1 / sqrt(x), 0 where x <= 0; NaN fails the comparison and stays."""
    low = x <= 0.0
    return tl.where(low, 0.0, 1.0 / tl.sqrt(tl.where(low, 1.0, x)))


@triton.jit
def _ridge_projection(tiles, row_statistic, column_statistics):
    """The cosine of q and its ridge projection, zero where that is zero; the row's statistic is 1 / |q|.

    For a unit q, q . P_j q / |P_j q| = w / sqrt(v).
    """
    w, v = _ridge_terms(_times(tiles, row_statistic), column_statistics)
    return w * _inverse_square_root(v)


@triton.jit
def _ridge_projection_gradient(tiles, row_statistic, column_statistics, weights):
    """With r = 1 / sqrt(v), g = w r^3: ds/dc = 2 r c - g V c; ds/dV_kl = -g c_k c_l, halved on the diagonal."""
    c = _times(tiles, row_statistic)
    w, v = _ridge_terms(c, column_statistics)
    r = _inverse_square_root(v)
    g = weights * w * r * r * r
    of_tiles = ()
    of_statistics = ()
    of_row = 0.0
    for k in tl.static_range(len(tiles)):
        of_c = 2.0 * weights * r * c[k]
        for other in tl.static_range(k):
            of_c -= g * column_statistics[other * len(tiles) - other * (other - 1) // 2 + k - other] * c[other]
        for other in tl.static_range(k, len(tiles)):
            of_c -= g * column_statistics[k * len(tiles) - k * (k - 1) // 2 + other - k] * c[other]
            of_statistics = of_statistics + ((-0.5 if other == k else -1.0) * g * c[k] * c[other],)
        of_row += of_c * tiles[k]
        of_tiles = of_tiles + (of_c * row_statistic,)
    return of_tiles, of_row, of_statistics


@triton.jit
def _not_negative(x):
    """Rounding takes squared distances below zero; NaN fails the comparison and stays."""
    return tl.where(x < 0.0, 0.0, x)


@triton.jit
def _squared_distance_to_span(tiles, squared_norm):
    """r = |q|^2 - sum_k c_k^2, q's squared distance to the span of orthonormal b_j; the row's statistic is |q|^2."""
    r = squared_norm - tiles[0] * tiles[0]
    for k in tl.static_range(1, len(tiles)):
        r -= tiles[k] * tiles[k]
    return r


@triton.jit
def _gram_volume(tiles, row_statistic, column_statistics):
    """t_j sqrt(r): the volume that q spans with the vectors of column j, where t_j is the volume of those alone."""
    return column_statistics[0] * tl.sqrt(_not_negative(_squared_distance_to_span(tiles, row_statistic)))


@triton.jit
def _gram_volume_gradient(tiles, row_statistic, column_statistics, weights):
    """h = weights t / (2 sqrt(r)), zero at r = 0; dr/dc_k = -2 c_k, dr/d|q|^2 = 1."""
    r = _squared_distance_to_span(tiles, row_statistic)
    h = weights * column_statistics[0] * 0.5 * _inverse_square_root(r)
    return _times(tiles, -2.0 * h), h, (weights * tl.sqrt(_not_negative(r)),)


@triton.jit
def _squared_distance_to_line(tiles, squared_norm, column_statistics):
    """r = |q - p_j|^2 - c^2 with c = q . w_j: q's squared distance to the line through p_j along the unit w_j.

    p_j is the line's point nearest to the origin. The tiles are q . w_j and q . p_j, the second statistic is |p_j|^2.
    """
    return (squared_norm - 2.0 * tiles[1] + column_statistics[1]) - tiles[0] * tiles[0]


@triton.jit
def _triangle_area(tiles, row_statistic, column_statistics):
    """t_j sqrt(r): an area, where t_j is half the length of the side across from q."""
    r = _squared_distance_to_line(tiles, row_statistic, column_statistics)
    return column_statistics[0] * tl.sqrt(_not_negative(r))


@triton.jit
def _triangle_area_gradient(tiles, row_statistic, column_statistics, weights):
    """h as for volumes; dr/dc = -2 c, dr/d(q . p) = -2, dr/d|p|^2 = dr/d|q|^2 = 1."""
    r = _squared_distance_to_line(tiles, row_statistic, column_statistics)
    h = weights * column_statistics[0] * 0.5 * _inverse_square_root(r)
    return (-2.0 * h * tiles[0], -2.0 * h), h, (weights * tl.sqrt(_not_negative(r)), h)


@triton.jit
def _squared_triangle_area(tiles, row_statistic, column_statistics):
    """t_j r: twice a squared area, where t_j is half the squared length of the side across from q."""
    return column_statistics[0] * _not_negative(_squared_distance_to_line(tiles, row_statistic, column_statistics))


@triton.jit
def _squared_triangle_area_gradient(tiles, row_statistic, column_statistics, weights):
    r = _not_negative(_squared_distance_to_line(tiles, row_statistic, column_statistics))
    # At r = 0 its own gradient is zero, and below there is only rounding.
    h = tl.where(r == 0.0, 0.0, weights * column_statistics[0])
    return (-2.0 * h * tiles[0], -2.0 * h), h, (weights * r, h)


RIDGE_PROJECTION = Score(_ridge_projection, _ridge_projection_gradient)
GRAM_VOLUME = Score(_gram_volume, _gram_volume_gradient)
TRIANGLE_AREA = Score(_triangle_area, _triangle_area_gradient)
SQUARED_TRIANGLE_AREA = Score(_squared_triangle_area, _squared_triangle_area_gradient)
