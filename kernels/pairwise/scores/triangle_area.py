"""t_j sqrt(r): an area, where t_j is half the side across from q and r its squared distance to that side's line."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,assignment"
from __future__ import annotations

from typing import Any

from mibfast.kernels.halves import cpu, gpu, tl
from mibfast.kernels.pairwise.scores import Score
from mibfast.kernels.pairwise.scores.distances import (
    grad_distance_to_line,
    grad_times_distance,
    inverse_square_root,
    not_negative,
    squared_distance_to_line,
    squared_distance_to_line_of_tiles,
    times_distance,
)


@cpu
def row(tiles: Any, squared_norm: Any, statistics: Any, scratch: Any) -> Any:
    """t_j sqrt(r): an area, where t_j is half the length of the side across from q."""
    out = scratch[0]
    squared_distance_to_line(tiles, squared_norm, statistics, out)
    times_distance(out, statistics[0])
    return out


@cpu
def grad_row(
    tiles: Any, squared_norm: Any, statistics: Any, weights: Any, factor: Any, grad_statistics: Any, scratch: Any
) -> Any:
    """With h = dL/dr, see `grad_distance_to_line`."""
    h = scratch[1]
    squared_distance_to_line(tiles, squared_norm, statistics, h)
    grad_times_distance(h, statistics[0], weights, factor, grad_statistics[0])
    return grad_distance_to_line(tiles, h, factor, grad_statistics)


@gpu
def value(tiles, row_statistic, column_statistics):
    """t_j sqrt(r): an area, where t_j is half the length of the side across from q."""
    r = squared_distance_to_line_of_tiles(tiles, row_statistic, column_statistics)
    return column_statistics[0] * tl.sqrt(not_negative(r))


@gpu
def grad(tiles, row_statistic, column_statistics, weights):
    """h as for volumes; dr/dc = -2 c, dr/d(q . p) = -2, dr/d|p|^2 = dr/d|q|^2 = 1."""
    r = squared_distance_to_line_of_tiles(tiles, row_statistic, column_statistics)
    h = weights * column_statistics[0] * 0.5 * inverse_square_root(r)
    return (-2.0 * h * tiles[0], -2.0 * h), h, (weights * tl.sqrt(not_negative(r)), h)


SCORE = Score(row, grad_row, value, grad, large_is_alike=False)
