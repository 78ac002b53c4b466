"""Minus the geodesic distance in the hyperbolic space of curvature -1, Lorentz model: MERU's score.

An embedding x in R^d is the space part of the point (x, t) of the hyperboloid, t = sqrt(1 + |x|^2), so that

    s = -arcosh(z),    z = t_q t_k - q . k.

Source: Desai et al. (ICML 2023), arXiv 2304.09172, Eq. 2-5, after the exponential map, which is the encoder's matter
(Eq. 6: x = sinh(|v|) v / |v|). At curvature -c the distance is that of sqrt(c) q and sqrt(c) k, divided by sqrt(c): so
scale embeddings, and take sqrt(c) tau for the temperature, where c is learned too.

With delta = z - 1 the distance is log(1 + delta + sqrt(delta (delta + 2))). In float32 delta is known to some 1e-7 t_q
t_k: of points nearer than 4e-4 to each other a distance is noise. Where delta is no more than zero the distance is 0,
and so is its gradient, which has no limit there.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mibfast.kernels.halves import cpu, gpu, tl, vm
from mibfast.kernels.pairwise.reference import inner_product, squared_norms
from mibfast.kernels.pairwise.scores import Score


def formula(query: Tensor, key: Tensor) -> Tensor:
    """-log(1 + delta + sqrt(delta (delta + 2)))."""
    times = torch.sqrt(1 + squared_norms(query))[..., None] * torch.sqrt(1 + squared_norms(key))[..., None, :]
    delta = times - inner_product(query, key) - 1
    near = delta <= 0
    delta = delta.masked_fill(near, 1.0)
    return -torch.log1p(delta + torch.sqrt(delta * (delta + 2))).masked_fill(near, 0.0)


@cpu
def _excess(tiles: Any, squared_norm: Any, statistics: Any, out: Any) -> None:
    """delta = t_q t_k - q . k - 1, of the tile q . k and the statistic |k|^2."""
    one, c, other = tiles.dtype.type(1.0), tiles[0], statistics[0]
    time = math.sqrt(one + squared_norm)
    for j in range(out.size):
        out[j] = time * math.sqrt(one + other[j]) - c[j] - one


@cpu
def row(tiles: Any, squared_norm: Any, statistics: Any, scratch: Any) -> Any:
    """As the formula."""
    out, zero, two = scratch[0], tiles.dtype.type(0.0), tiles.dtype.type(2.0)
    _excess(tiles, squared_norm, statistics, out)
    for j in range(out.size):
        delta = out[j]
        # NaN fails the comparison and stays.
        delta = zero if delta <= zero else delta
        out[j] = -math.log1p(delta + math.sqrt(delta * (delta + two)))
    return out


@cpu
def grad_row(
    tiles: Any, squared_norm: Any, statistics: Any, weights: Any, factor: Any, grad_statistics: Any, scratch: Any
) -> Any:
    """With g = dL/ddelta = -weights / sqrt(delta (delta + 2)): -g for the tile, g t_k / (2 t_q) for |q|^2, and back."""
    zero, half = tiles.dtype.type(0.0), tiles.dtype.type(0.5)
    one, two = tiles.dtype.type(1.0), tiles.dtype.type(2.0)
    g, along, c, other, grad_other = scratch[1], scratch[2], tiles[0], statistics[0], grad_statistics[0]
    _excess(tiles, squared_norm, statistics, g)
    time = math.sqrt(one + squared_norm)
    for j in range(g.size):
        delta = g[j]
        g[j] = zero if delta <= zero else -weights[j] / math.sqrt(delta * (delta + two))
        other_time = math.sqrt(one + other[j])
        along[j] = g[j] * other_time
        grad_other[j] += factor * half * g[j] * time / other_time
    for j in range(g.size):
        c[j] = -g[j]
    return half / time * tiles.dtype.type(vm.sum_of(along))


@gpu
def _excess_of_tile(tiles, row_statistic, column_statistics):
    return tl.sqrt(1.0 + row_statistic) * tl.sqrt(1.0 + column_statistics[0]) - tiles[0] - 1.0


@gpu
def value(tiles, row_statistic, column_statistics):
    """As the formula; log(1 + x) with the digits of a small x."""
    delta = _excess_of_tile(tiles, row_statistic, column_statistics)
    delta = tl.where(delta <= 0.0, 0.0, delta)
    x = delta + tl.sqrt(delta * (delta + 2.0))
    above = 1.0 + x
    return -tl.where(above == 1.0, x, tl.log(above) * (x / tl.where(above == 1.0, 1.0, above - 1.0)))


@gpu
def grad(tiles, row_statistic, column_statistics, weights):
    """With g = dL/ddelta = -weights / sqrt(delta (delta + 2)): -g for the tile, g t_k / (2 t_q) for |q|^2, and back."""
    delta = _excess_of_tile(tiles, row_statistic, column_statistics)
    near = delta <= 0.0
    g = tl.where(near, 0.0, -weights / tl.sqrt(tl.where(near, 1.0, delta * (delta + 2.0))))
    time, other_time = tl.sqrt(1.0 + row_statistic), tl.sqrt(1.0 + column_statistics[0])
    return (-g,), 0.5 * g * other_time / time, (0.5 * g * time / other_time,)


SCORE = Score(row, grad_row, value, grad, formula, squared_norms=True)
