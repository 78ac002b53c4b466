"""What scores share: squared norms of tiles, roots of squared distances, and the line of a triangle's side."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,assignment"
# ruff: noqa: RUF005 - jit functions build tuples by addition
from __future__ import annotations

import math
from typing import Any

import numpy as np

from mibfast.kernels.halves import cpu, gpu, tl, vm

# Float32's smallest normal number: of those below, processors may make zero, and divide by it.
SMALLEST = 2.0**-126


@cpu
def squared_norm_of(tiles: Any, out: Any) -> None:
    """sum_k c_k^2."""
    first = tiles[0]
    for j in range(out.size):
        out[j] = first[j] * first[j]
    for k in range(1, tiles.shape[0]):
        c = tiles[k]
        for j in range(out.size):
            out[j] += c[j] * c[j]


@cpu
def times_distance(squared_distance: Any, factors: Any) -> None:
    """t sqrt(r) in place of r, which rounding can take below zero."""
    zero = squared_distance.dtype.type(0.0)
    for j in range(squared_distance.size):
        r = squared_distance[j]
        # Not max(r, 0): NaN fails the comparison and stays.
        squared_distance[j] = factors[j] * math.sqrt(zero if r < zero else r)


@cpu
def grad_times_distance(squared_distance: Any, factors: Any, weights: Any, factor: Any, grad_factors: Any) -> None:
    """h = weights ds/dr = weights t / (2 sqrt(r)) in place of r; adds dL/dt.

    Zero where r is subnormal: vector units take it as zero, and divide by its root.
    """
    zero, half = squared_distance.dtype.type(0.0), squared_distance.dtype.type(0.5)
    smallest = np.finfo(squared_distance.dtype).tiny
    for j in range(squared_distance.size):
        r = squared_distance[j]
        distance = math.sqrt(zero if r < zero else r)
        grad_factors[j] += factor * weights[j] * distance
        squared_distance[j] = zero if r < smallest else weights[j] * factors[j] * (half / distance)


@cpu
def squared_distance_to_line(tiles: Any, squared_norm: Any, statistics: Any, out: Any) -> None:
    """r = |q - p_j|^2 - c^2 with c = q . w_j: q's squared distance to the line through p_j along the unit w_j.

    p_j is the line's point nearest to the origin, so p_j . w_j = 0. The tiles are q . w_j and q . p_j, and the second
    statistic is |p_j|^2.
    """
    two = tiles.dtype.type(2.0)
    c, along_point, point = tiles[0], tiles[1], statistics[1]
    for j in range(out.size):
        out[j] = (squared_norm - two * along_point[j] + point[j]) - c[j] * c[j]


@cpu
def grad_distance_to_line(tiles: Any, h: Any, factor: Any, grad_statistics: Any) -> Any:
    """Of a score with the gradient h in r: dr/dc = -2 c, dr/d(q . p) = -2, dr/d|p|^2 = dr/d|q|^2 = 1."""
    two = tiles.dtype.type(2.0)
    c, along_point, point = tiles[0], tiles[1], grad_statistics[1]
    for j in range(h.size):
        c[j] *= -two * h[j]
    for j in range(h.size):
        along_point[j] = -two * h[j]
        point[j] += factor * h[j]
    return tiles.dtype.type(vm.sum_of(h))


@gpu
def times(tiles, factor):
    """A tuple of tiles, each times a factor."""
    scaled = ()
    for k in tl.static_range(len(tiles)):
        scaled = scaled + (factor * tiles[k],)
    return scaled


@gpu
def inverse_square_root(x):
    """1 / sqrt(x), 0 where x is below float32's normal numbers; NaN fails the comparison and stays."""
    low = x < SMALLEST
    return tl.where(low, 0.0, 1.0 / tl.sqrt(tl.where(low, 1.0, x)))


@gpu
def not_negative(x):
    """Rounding takes squared distances below zero; NaN fails the comparison and stays."""
    return tl.where(x < 0.0, 0.0, x)


@gpu
def squared_distance_to_line_of_tiles(tiles, squared_norm, column_statistics):
    """r = |q - p_j|^2 - c^2 with c = q . w_j: q's squared distance to the line through p_j along the unit w_j.

    p_j is the line's point nearest to the origin. The tiles are q . w_j and q . p_j, the second statistic is |p_j|^2.
    """
    return (squared_norm - 2.0 * tiles[1] + column_statistics[1]) - tiles[0] * tiles[0]
