"""t_j r: twice a squared area, where t_j is half the squared side across from q, r the squared distance to its line."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,assignment"
from __future__ import annotations

from typing import Any

from mibfast.kernels.halves import cpu, gpu, tl
from mibfast.kernels.pairwise.scores import Score
from mibfast.kernels.pairwise.scores.distances import (
    grad_distance_to_line,
    not_negative,
    squared_distance_to_line,
    squared_distance_to_line_of_tiles,
)


@cpu
def row(tiles: Any, squared_norm: Any, statistics: Any, scratch: Any) -> Any:
    """t_j r: twice a squared area, where t_j is half the squared length of the side across from q."""
    out, t, zero = scratch[0], statistics[0], tiles.dtype.type(0.0)
    squared_distance_to_line(tiles, squared_norm, statistics, out)
    for j in range(out.size):
        r = out[j]
        out[j] = t[j] * (zero if r < zero else r)
    return out


@cpu
def grad_row(
    tiles: Any, squared_norm: Any, statistics: Any, weights: Any, factor: Any, grad_statistics: Any, scratch: Any
) -> Any:
    """With h = dL/dr = weights t, see `grad_distance_to_line`."""
    h, t, gradient, zero = scratch[1], statistics[0], grad_statistics[0], tiles.dtype.type(0.0)
    squared_distance_to_line(tiles, squared_norm, statistics, h)
    for j in range(h.size):
        r = h[j]
        r = zero if r < zero else r
        gradient[j] += factor * weights[j] * r
        # At r = 0 its own gradient is zero, and below there is only rounding.
        h[j] = zero if r == zero else weights[j] * t[j]
    return grad_distance_to_line(tiles, h, factor, grad_statistics)


@gpu
def value(tiles, row_statistic, column_statistics):
    """t_j r: twice a squared area, where t_j is half the squared length of the side across from q."""
    return column_statistics[0] * not_negative(
        squared_distance_to_line_of_tiles(tiles, row_statistic, column_statistics)
    )


@gpu
def grad(tiles, row_statistic, column_statistics, weights):
    """h as on the CPU; dr/dc = -2 c, dr/d(q . p) = -2, dr/d|p|^2 = dr/d|q|^2 = 1."""
    r = not_negative(squared_distance_to_line_of_tiles(tiles, row_statistic, column_statistics))
    # At r = 0 its own gradient is zero, and below there is only rounding.
    h = tl.where(r == 0.0, 0.0, weights * column_statistics[0])
    return (-2.0 * h * tiles[0], -2.0 * h), h, (weights * r, h)


SCORE = Score(row, grad_row, value, grad, large_is_alike=False)
