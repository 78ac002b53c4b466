"""|P_j q| for orthonormal bases b_j: the cosine of a unit q and its projection on a span, without a ridge."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,assignment"
from __future__ import annotations

import math
from typing import Any

import numpy as np

from mibfast.kernels.halves import cpu
from mibfast.kernels.pairwise.scores import Score
from mibfast.kernels.pairwise.scores.distances import squared_norm_of


@cpu
def row(tiles: Any, squared_norm: Any, statistics: Any, scratch: Any) -> Any:
    """|P_j q| = sqrt(sum_k c_k^2): the cosine of a unit q and its projection on orthonormal b_j."""
    out = scratch[0]
    squared_norm_of(tiles, out)
    for j in range(out.size):
        out[j] = math.sqrt(out[j])
    return out


@cpu
def grad_row(
    tiles: Any, squared_norm: Any, statistics: Any, weights: Any, factor: Any, grad_statistics: Any, scratch: Any
) -> Any:
    """ds/dc_k = c_k / s, and 0 where s = 0."""
    zero, one, smallest = tiles.dtype.type(0.0), tiles.dtype.type(1.0), np.finfo(tiles.dtype).tiny
    ratio = scratch[1]
    squared_norm_of(tiles, ratio)
    for j in range(ratio.size):
        # Zero at zero, which vector units make of subnormal numbers; NaN fails the comparison and stays.
        ratio[j] = zero if ratio[j] < smallest else weights[j] * (one / math.sqrt(ratio[j]))
    for k in range(tiles.shape[0]):
        c = tiles[k]
        for j in range(ratio.size):
            c[j] *= ratio[j]
    return zero


# In Triton the ridge is always there.
SCORE = Score(row, grad_row, None, None, homogeneous=True)
