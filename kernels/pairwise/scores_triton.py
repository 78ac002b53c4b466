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

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl  # noqa: F401 - the interpreter looks for it beside a jit function


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
