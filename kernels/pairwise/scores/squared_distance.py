"""-|q - k|^2 / 2: minus half the squared Euclidean distance, the logarithm of a Gaussian kernel."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

from typing import Any

from torch import Tensor

from mibfast.kernels.halves import cpu, gpu, vm
from mibfast.kernels.pairwise.reference import inner_product, squared_norms
from mibfast.kernels.pairwise.scores import Score


def formula(query: Tensor, key: Tensor) -> Tensor:
    """q . k - |q|^2 / 2 - |k|^2 / 2."""
    return inner_product(query, key) - 0.5 * squared_norms(query)[..., None] - 0.5 * squared_norms(key)[..., None, :]


@cpu
def row(tiles: Any, squared_norm: Any, statistics: Any, scratch: Any) -> Any:
    """As the formula, of the tile q . k and the statistic |k|^2."""
    out, c, other, half = scratch[0], tiles[0], statistics[0], tiles.dtype.type(0.5)
    for j in range(out.size):
        out[j] = c[j] - half * (squared_norm + other[j])
    return out


@cpu
def grad_row(
    tiles: Any, squared_norm: Any, statistics: Any, weights: Any, factor: Any, grad_statistics: Any, scratch: Any
) -> Any:
    """1 for the tile, -1 / 2 for both squared norms."""
    c, grad_other, half = tiles[0], grad_statistics[0], tiles.dtype.type(0.5)
    for j in range(weights.size):
        c[j] = weights[j]
        grad_other[j] -= half * factor * weights[j]
    return -half * tiles.dtype.type(vm.sum_of(weights))


@gpu
def value(tiles, row_statistic, column_statistics):
    """As the formula, of the tile q . k and the statistics |q|^2 and |k|^2."""
    return tiles[0] - 0.5 * (row_statistic + column_statistics[0])


@gpu
def grad(tiles, row_statistic, column_statistics, weights):
    """1 for the tile, -1 / 2 for both squared norms."""
    return (weights,), -0.5 * weights, (-0.5 * weights,)


SCORE = Score(row, grad_row, value, grad, formula, squared_norms=True)
