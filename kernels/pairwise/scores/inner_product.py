"""The inner product q . k."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

from typing import Any

from mibfast.kernels.halves import cpu, gpu
from mibfast.kernels.pairwise.reference import inner_product
from mibfast.kernels.pairwise.scores import Score


@cpu
def row(tiles: Any, squared_norm: Any, statistics: Any, scratch: Any) -> Any:
    """The tile."""
    return tiles[0]


@cpu
def grad_row(
    tiles: Any, squared_norm: Any, statistics: Any, weights: Any, factor: Any, grad_statistics: Any, scratch: Any
) -> Any:
    """The weights are in the tile already."""
    return tiles.dtype.type(0.0)


@gpu
def value(tiles, row_statistic, column_statistics):
    """The tile."""
    return tiles[0]


@gpu
def grad(tiles, row_statistic, column_statistics, weights):
    """The weights."""
    return (weights,), 0.0, ()


SCORE = Score(row, grad_row, value, grad, inner_product, is_tile=True, homogeneous=True)
