"""Scores of pairs, a file each; this file is the list of them and says what a score is.

A score is a function of K inner products `c_k = q . b_jk` of row q and column j (its tiles), of S statistics of the
column, and of one statistic of the row. Its file has

- on the CPU, a row at a time, marked `cpu`:
  `row(tiles, squared_norm, statistics, scratch)` returns the scores [N'] of a row from its tiles [K, N'], the row's
  squared norm and the columns' statistics [S, N']: `tiles[0]` where `is_tile`, else `scratch[0]`. All of `scratch`
  [3 + K, N'] may be written.
  `grad_row(tiles, squared_norm, statistics, weights, factor, grad_statistics, scratch)`: `weights` is that array again,
  in which the reduction has replaced the scores, and `factor * weights` = dL/ds. It overwrites `tiles` with
  (dL/dtiles) / factor, adds dL/dstatistics to `grad_statistics` [S, N'], and returns dL/d(squared norm) / factor.
  `scratch[1:]` may be written.
- in Triton, a tile of pairs at a time, marked `gpu`:
  `value(tiles, row_statistic, column_statistics)` returns the scores, float32, from a tuple of K tiles [rows, columns];
  the row's statistic [rows, 1] and those of the column, a tuple of S of [1, columns], broadcast against them.
  `grad(tiles, row_statistic, column_statistics, weights)`: `weights` is dL/ds; returns a tuple of the K dL/dtile,
  dL/d(row statistic), and a tuple of the S dL/d(column statistic), tiles all, which the engine sums up. What it returns
  for a row statistic that there is not does not count. It may loop over K by `tl.static_range(len(tiles))`.
- `SCORE`, which names these four, and the formula of a score of two embeddings in plain PyTorch.

A score knows no temperature: the engine multiplies scores by its inverse and takes its gradient. NaN must come through.
To add one: write its file and list it in `SCORES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mibfast.kernels.halves import compiled


@dataclass(frozen=True, eq=False)
class Score:
    """What the engines ask a score for."""

    row: Callable[..., Any]
    grad_row: Callable[..., Any]
    # None for a score that only the CPU has.
    value: Callable[..., Any] | None
    grad: Callable[..., Any] | None
    # Scores [..., N, N'] of queries [..., N, d] and keys [..., N', d]: of a score of two embeddings, which public
    # functions take by name. It has one tile, q . k.
    formula: Callable[[Tensor, Tensor], Tensor] | None = None
    # Of two embeddings: whether |q|^2 and |k|^2 are its statistics.
    squared_norms: bool = False
    # Whether the scores are the tile, and need no memory of their own.
    is_tile: bool = False
    # Whether what scores high is alike; else, as of a distance that is no score yet, what scores low.
    large_is_alike: bool = True
    # Whether a row times a number has the score times that number.
    homogeneous: bool = False

    def scratch_rows(self, tiles: int) -> int:
        """How many rows of `scratch` a score of so many tiles takes."""
        return 1 if self.is_tile else 3 + tiles

    @property
    def triton(self) -> tuple[Any, Any]:
        """The two functions of the Triton engine."""
        assert self.value is not None
        assert self.grad is not None
        return compiled(self.value), compiled(self.grad)


# Behind the class, which the files take from here.
from mibfast.kernels.pairwise.scores import (  # noqa: E402
    gram_volume,
    inner_product,
    lorentz,
    projection,
    ridge_projection,
    squared_distance,
    squared_triangle_area,
    triangle_area,
)

SCORES: dict[str, Score] = {
    module.__name__.rpartition(".")[2]: module.SCORE
    for module in (
        inner_product,
        squared_distance,
        lorentz,
        projection,
        ridge_projection,
        gram_volume,
        triangle_area,
        squared_triangle_area,
    )
}
# Scores of two embeddings, which public functions take by name.
OF_EMBEDDINGS = tuple(name for name, score in SCORES.items() if score.formula is not None)
# What the CPU's kernels, and their cache on disk, know a score by: its place in this order.
NUMBERED = tuple(SCORES.values())


def named(name: str) -> Score:
    """Return a score by its name."""
    return SCORES[name]
