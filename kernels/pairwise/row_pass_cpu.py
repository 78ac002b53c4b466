"""What the CPU engine does with a row of scores at each stage of a sweep."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba.core import types
from numba.extending import overload

from mibfast.kernels.compilation import INLINED, kernel
from mibfast.kernels.halves import compiled
from mibfast.kernels.pairwise.reductions import rows as row_functions
from mibfast.kernels.pairwise.rows_by_code_cpu import (
    add_row,
    grad_added_row,
    grad_merged_row,
    grad_row,
    grad_score_row,
    score_row,
)
from mibfast.kernels.vector_math import dot

# A row of scores is added to the reduction's state; its gradient is formed in the same pass; or from an earlier pass,
# or from what adding left, once all rows of the only tile are merged; the scores are kept; given gradients of scores
# are brought back; the columns' maxima are found, and sums relative to them.
REDUCE, REDUCE_AND_GRADIENT, GRADIENT, MERGED_GRADIENT, KEEP, KEPT_GRADIENT, MAXIMA, SUMS = range(8)
_clamp, _set_positive = compiled(row_functions.clamp), compiled(row_functions.set_positive)
_raise_maxima, _add_to_sums = compiled(row_functions.raise_maxima), compiled(row_functions.add_to_sums)


def row_pass(
    stage: int,
    score: int,
    reduction: int,
    row: int,  # of the embeddings
    local: int,  # of the tile
    asked: Any,  # offset, flags, scale; of gradients upstream and label smoothing, of columns' maxima the clip
    operands: Any,  # tile [B, K, N'], squared norms [B], statistics [S, N'], scores of positives [P], scratch
    state: Any,  # row_state [R, N], column_state [2, N'], reference [1]
    weights: Any,  # row_weights [W, N], column_weights [3, N']
    kept: Any,  # [B or 0, N']; [N, N'] at the stages of kept scores
    # factors [B]; gradients of statistics [S, N'], squared norms [B], positives [P], scale [B]; room [N' or 0]
    gradients: Any,
) -> None:
    """Do what a stage does with a row, of a score's number and a reduction's code: three constants."""
    raise NotImplementedError("called from kernels only")


@overload(row_pass, jit_options=INLINED, prefer_literal=True, strict=False)  # type: ignore[untyped-decorator]
def _row_pass(
    stage: Any,
    score: Any,
    reduction: Any,
    row: Any,
    local: Any,
    asked: Any,
    operands: Any,
    state: Any,
    weights: Any,
    kept: Any,
    gradients: Any,
) -> Any:
    if not all(isinstance(code, types.IntegerLiteral) for code in (stage, score, reduction)):
        return None
    return _row_pass_of(stage.literal_value, score.literal_value, reduction.literal_value)


@functools.cache
def _row_pass_of(at: int, scored: int, reduced: int) -> Callable[..., None]:
    def row_pass_at(
        stage: int,
        score: int,
        reduction: int,
        row: int,
        local: int,
        asked: Any,
        operands: Any,
        state: Any,
        weights: Any,
        kept: Any,
        gradients: Any,
    ) -> None:
        offset, flags, scale, upstream, label_smoothing, clip = asked
        tile, squared_norms, statistics, positives, scratch = operands
        row_state, column_state, reference = state
        row_weights, column_weights = weights
        factors, grad_statistics, grad_squared_norms, grad_positives, grad_scale, unscaled = gradients
        tiles, squared_norm = tile[local], squared_norms[local]
        positive = row + offset
        if at == MERGED_GRADIENT:
            s = kept[local] if kept.size > 0 else tiles[0]
        else:
            s = score_row(scored, tiles, squared_norm, statistics, scratch)
            # Of positives whose scores are known better than from the tiles.
            if row < positives.size:
                s[positive] = positives[row]
            if unscaled.size > 0:
                unscaled[:] = s
            if scale != 1.0:
                number = tile.dtype.type(scale)
                for j in range(s.size):
                    s[j] *= number
        if at == KEEP:
            kept[row, :] = s
        elif at >= MAXIMA:
            _clamp(s, tile.dtype.type(clip))
            if flags != 0:
                _set_positive(s, positive, -np.inf)
            if at == MAXIMA:
                _raise_maxima(s, column_state[0])
            else:
                _add_to_sums(s, column_state[0], column_state[1])
        elif at == REDUCE:
            add_row(reduced, s, row, positive, flags, row_state, column_state, reference)
            if kept.size > 0:
                kept[local, :] = s
        else:
            factor = 1.0
            if at == REDUCE_AND_GRADIENT:
                total = add_row(reduced, s, row, positive, flags, row_state, column_state, reference)
                factor = grad_added_row(reduced, s, positive, flags, total, upstream, label_smoothing)
            elif at == GRADIENT:
                factor = grad_row(reduced, s, row, positive, flags, row_weights, column_weights)
            elif at == MERGED_GRADIENT:
                factor = grad_merged_row(
                    reduced, s, row, positive, flags, row_state, column_weights, upstream, label_smoothing
                )
                if unscaled.size > 0:
                    unscaled[:] = score_row(scored, tiles, squared_norm, statistics, scratch)
                    if row < positives.size:
                        unscaled[positive] = positives[row]
            else:
                s[:] = kept[row]
            if unscaled.size > 0:
                grad_scale[local] = factor * dot(s, unscaled)
            factor *= scale
            factors[local] = factor
            if row < grad_positives.size:
                grad_positives[row] = factor * s[positive]
                s[positive] = 0.0
            grad_squared_norms[local] = grad_score_row(
                scored, tiles, squared_norm, statistics, s, tile.dtype.type(factor), grad_statistics, scratch
            )

    return row_pass_at


@functools.cache
def row_kernel(stage: int, score: int, reduction: int) -> Callable[..., None]:
    """The kernel of a block's rows, from `begin` to `end` of the tile whose first is row `first` of the embeddings."""

    @kernel
    def row_kernel(
        first: int,
        begin: int,
        end: int,
        asked: Any,
        operands: Any,
        state: Any,
        weights: Any,
        kept: Any,
        gradients: Any,
    ) -> None:
        for local in range(begin, end):
            row_pass(stage, score, reduction, first + local, local, asked, operands, state, weights, kept, gradients)

    return row_kernel
