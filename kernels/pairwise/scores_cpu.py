"""Scores of the CPU engine, one row at a time.

A score is a function of K inner products `c_k = q . b_jk` and of statistics of its row and its column, of degree 1 in
the row q: whoever calls the engine multiplies rows by 1 / temperature and the scores follow. It consists of

- `score_row(tiles, column_statistics, scratch)`: the scores of a row from its tiles [K, N'] and the columns' statistics
  [S, N']; returns the array [N'] that holds them, `tiles[0]` or `scratch[0]`. All of `scratch`
  [3 + K, N'] may be written;
- `score_gradient_row(tiles, column_statistics, weights, factor, column_gradient, scratch)`: `weights` is that array
  again, in which the reduction has replaced the scores, and `factor * weights` = dL/ds. Overwrites `tiles` with
  (dL/dtiles) / factor and adds dL/dstatistics to `column_gradient` [S, N']. `scratch[1:]` may be written.

To add a score: write the two functions, give them a code here, and list them in `_ROWS` and `_GRADIENT_ROWS`.
"""

from __future__ import annotations

import math
from typing import Any

from numba.core import types
from numba.extending import overload

from mibfast.kernels.compilation import inline

INNER_PRODUCT = 0
PROJECTION = 1
RIDGE_PROJECTION = 2


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
    """w = c . c and v = w - c^T U c, where `column_statistics` holds the upper triangle of U_j, row by row."""
    _squared_norm(tiles, numerator)
    two = tiles.dtype.type(2.0)
    for j in range(numerator.size):
        squared_norm[j] = numerator[j]
    entry = 0
    for k in range(tiles.shape[0]):
        c = tiles[k]
        u = column_statistics[entry]
        entry += 1
        for j in range(numerator.size):
            squared_norm[j] -= u[j] * c[j] * c[j]
        for other in range(k + 1, tiles.shape[0]):
            b = tiles[other]
            u = column_statistics[entry]
            entry += 1
            for j in range(numerator.size):
                squared_norm[j] -= two * u[j] * c[j] * b[j]


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
    """With r = 1 / sqrt(v), g = w r^3: ds/dc = (2 r - g) c + g U c; ds/dU_kl = g c_k c_l, halved on the diagonal."""
    zero, half = tiles.dtype.type(0.0), tiles.dtype.type(0.5)
    one, two = tiles.dtype.type(1.0), tiles.dtype.type(2.0)
    g, own = scratch[1], scratch[2]
    _ridge_terms(tiles, column_statistics, g, own)
    for j in range(g.size):
        v = own[j]
        r = zero if v <= zero else one / math.sqrt(v)
        cubed = g[j] * r * r * r
        own[j] = weights[j] * (two * r - cubed)
        g[j] = weights[j] * cubed
    entry = 0
    for k in range(tiles.shape[0]):
        c, out = tiles[k], scratch[3 + k]
        for j in range(g.size):
            out[j] = own[j] * c[j]
        for other in range(tiles.shape[0]):
            b = tiles[other]
            low, high = min(k, other), max(k, other)
            u = column_statistics[low * tiles.shape[0] - (low * (low - 1)) // 2 + high - low]
            for j in range(g.size):
                out[j] += g[j] * u[j] * b[j]
            if other >= k:
                share = factor * (half if other == k else one)
                gradient = column_gradient[entry]
                entry += 1
                for j in range(g.size):
                    gradient[j] += share * g[j] * c[j] * b[j]
    for k in range(tiles.shape[0]):
        tiles[k, :] = scratch[3 + k]


_ROWS = {INNER_PRODUCT: _inner_product, PROJECTION: _projection, RIDGE_PROJECTION: _ridge_projection}
_GRADIENT_ROWS = {
    INNER_PRODUCT: _inner_product_gradient,
    PROJECTION: _projection_gradient,
    RIDGE_PROJECTION: _ridge_projection_gradient,
}


def scratch_rows(score: int, tiles: int) -> int:
    """Rows of `scratch` for a score of this many tiles."""
    return 1 if score == INNER_PRODUCT else 3 + tiles


def score_row(score: int, tiles: Any, column_statistics: Any, scratch: Any) -> Any:
    """The scores of a row, by the score's code."""
    raise NotImplementedError("called from kernels only")


@overload(score_row, prefer_literal=True, strict=False)  # type: ignore[untyped-decorator]
def _score_row(score: Any, tiles: Any, column_statistics: Any, scratch: Any) -> Any:
    if not isinstance(score, types.IntegerLiteral):
        return None  # the engine gives a constant; Numba also tries without
    row = _ROWS[score.literal_value]
    return lambda score, tiles, column_statistics, scratch: row(tiles, column_statistics, scratch)


def score_gradient_row(
    score: int, tiles: Any, column_statistics: Any, weights: Any, factor: Any, column_gradient: Any, scratch: Any
) -> None:
    """The gradient of a row's tiles and of the columns' statistics, by the score's code."""
    raise NotImplementedError("called from kernels only")


@overload(score_gradient_row, prefer_literal=True, strict=False)  # type: ignore[untyped-decorator]
def _score_gradient_row(
    score: Any, tiles: Any, column_statistics: Any, weights: Any, factor: Any, column_gradient: Any, scratch: Any
) -> Any:
    if not isinstance(score, types.IntegerLiteral):
        return None  # the engine gives a constant; Numba also tries without
    row = _GRADIENT_ROWS[score.literal_value]

    def implementation(
        score: Any, tiles: Any, column_statistics: Any, weights: Any, factor: Any, column_gradient: Any, scratch: Any
    ) -> None:
        row(tiles, column_statistics, weights, factor, column_gradient, scratch)

    return implementation
