"""t_j sqrt(r): the volume that q spans with the vectors of column j, where t_j is the volume of those alone.

r = |q|^2 - sum_k c_k^2 is q's squared distance to the span of orthonormal b_j.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,assignment"
from __future__ import annotations

from typing import Any

from mibfast.kernels.halves import cpu, gpu, tl, vm
from mibfast.kernels.pairwise.scores import Score
from mibfast.kernels.pairwise.scores.distances import (
    grad_times_distance,
    inverse_square_root,
    not_negative,
    squared_norm_of,
    times,
    times_distance,
)


@cpu
def _squared_distance_to_span(tiles: Any, squared_norm: Any, out: Any) -> None:
    """r = |q|^2 - sum_k c_k^2, q's squared distance to the span of orthonormal b_j."""
    squared_norm_of(tiles, out)
    for j in range(out.size):
        out[j] = squared_norm - out[j]


@cpu
def row(tiles: Any, squared_norm: Any, statistics: Any, scratch: Any) -> Any:
    """t_j sqrt(r): the volume that q spans with the vectors of column j, where t_j is the volume of those alone."""
    out = scratch[0]
    _squared_distance_to_span(tiles, squared_norm, out)
    times_distance(out, statistics[0])
    return out


@cpu
def grad_row(
    tiles: Any, squared_norm: Any, statistics: Any, weights: Any, factor: Any, grad_statistics: Any, scratch: Any
) -> Any:
    """dr/dc_k = -2 c_k, dr/d|q|^2 = 1."""
    h, two = scratch[1], tiles.dtype.type(2.0)
    _squared_distance_to_span(tiles, squared_norm, h)
    grad_times_distance(h, statistics[0], weights, factor, grad_statistics[0])
    for k in range(tiles.shape[0]):
        c = tiles[k]
        for j in range(h.size):
            c[j] *= -two * h[j]
    return tiles.dtype.type(vm.sum_of(h))


@gpu
def _squared_distance_to_span_of_tiles(tiles, squared_norm):
    """r = |q|^2 - sum_k c_k^2, q's squared distance to the span of orthonormal b_j; the row's statistic is |q|^2."""
    r = squared_norm - tiles[0] * tiles[0]
    for k in tl.static_range(1, len(tiles)):
        r -= tiles[k] * tiles[k]
    return r


@gpu
def value(tiles, row_statistic, column_statistics):
    """t_j sqrt(r): the volume that q spans with the vectors of column j, where t_j is the volume of those alone."""
    return column_statistics[0] * tl.sqrt(not_negative(_squared_distance_to_span_of_tiles(tiles, row_statistic)))


@gpu
def grad(tiles, row_statistic, column_statistics, weights):
    """h = weights t / (2 sqrt(r)), zero at r = 0; dr/dc_k = -2 c_k, dr/d|q|^2 = 1."""
    r = _squared_distance_to_span_of_tiles(tiles, row_statistic)
    h = weights * column_statistics[0] * 0.5 * inverse_square_root(r)
    return times(tiles, -2.0 * h), h, (weights * tl.sqrt(not_negative(r)),)


SCORE = Score(row, grad_row, value, grad, large_is_alike=False)
