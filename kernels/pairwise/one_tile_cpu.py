"""The whole sweep of few pairs in one call: products, row passes, and gradients, without Python in between.

Of a batch of a hundred the three products take 40 microseconds and the row passes ten, and every step from Python takes
ten more: a sweep by `engine_cpu.py` has twenty. Here they are one kernel, for pairs that fit one tile and one thread.
The sums are the engine's own, in its order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from mibfast.kernels import blas
from mibfast.kernels.compilation import kernel
from mibfast.kernels.pairwise.flags import TOTALS, TWO_WAY
from mibfast.kernels.pairwise.reductions.log_sum_exp import COLUMN_SUM, COLUMN_WEIGHTS, GRAD_COLUMN_LSE, MAXIMUM
from mibfast.kernels.pairwise.row_pass_cpu import MERGED_GRADIENT, REDUCE, REDUCE_AND_GRADIENT, row_pass
from mibfast.kernels.pairwise.rows_cpu import Rows, add_gradient, load_rows
from mibfast.kernels.pairwise.scores import NUMBERED, Score
from mibfast.kernels.pairwise.tiles_cpu import Columns, Gradients, one_thread_serves


def serves(rows: Rows, columns: Any) -> bool:
    """Whether these pairs are few enough for one thread, and their products can be formed inside the kernel."""
    return isinstance(columns, Columns) and one_thread_serves(rows.n, columns) and bool(blas.address(rows.dtype))


def sweep(
    score: Score,
    rows: Rows,
    columns: Columns,
    reduction: int,
    asked: tuple[int, int, float, float, float, float],
    row_state: np.ndarray,
    gradients: Gradients,
    *,
    two_way: bool,
    wants_grad_scale: bool,
    deepest: float,
    log_of_weight_scale: float,
) -> tuple[bool, np.ndarray, float, float]:
    """Reduce all pairs and form gradients: whether these were formed, columns' state, their reference, dL/dscale.

    Both ways they are not, where a column lies further below the reference than `deepest`.
    """
    k, count, d = columns.operands.shape
    dtype = rows.numpy_dtype
    column_state = np.zeros((1, 2, count if asked[1] & (TWO_WAY | TOTALS) else 1), dtype)
    statistics = columns.statistics.numpy()
    grad_statistics = np.zeros_like(statistics)
    nothing = np.empty((0, d), dtype)
    kernel = one_tile_kernel(NUMBERED.index(score), reduction, score.is_tile, two_way)
    done, reference, grad_scale = kernel(
        blas.address(rows.dtype),
        rows.whole,
        asked,
        (columns.operands.numpy(), statistics, rows.positives, score.scratch_rows(k)),
        row_state,
        (column_state, deepest, log_of_weight_scale),
        (
            nothing if gradients.rows is None else gradients.rows.numpy(),
            np.empty((0, count, d), dtype) if gradients.columns is None else gradients.columns.numpy(),
            grad_statistics,
            rows.grad_positives,
            wants_grad_scale,
        ),
    )
    if gradients.statistics is not None:
        gradients.statistics.copy_(torch.from_numpy(grad_statistics))
    return done, column_state[0], reference, grad_scale


@functools.cache
def one_tile_kernel(
    score: int, reduction: int, is_tile: bool, two_way: bool
) -> Callable[..., tuple[bool, float, float]]:
    """The kernel of a score's number and a reduction's code; `is_tile` says whether the scores are the tile."""

    @kernel
    def one_tile(
        gemm: int,  # its address
        # address and stride of rows [N, d], their scale, whether they are made unit, have norms, and want their scale's
        # gradient
        rows: Any,
        asked: Any,  # as of a row pass
        operands: Any,  # [K, N', d], statistics [S, N'], scores of positives [P], rows of scratch
        row_state: Any,  # [R, N]
        # columns' state [1, 2, N'], written; the deepest log-sum-exp below the reference, and the scale of weights
        columns: Any,
        # gradients of rows [N or 0, d], operands [K or 0, N', d], statistics [S, N'], positives [P], and whether those
        # of the scale of scores are wanted
        gradients: Any,
    ) -> tuple[bool, float, float]:
        """Whether gradients were formed, the reference of columns, and the gradient of the scale."""
        address, stride, row_scale, unit, wants_norms, wants_row_scale = rows
        offset = asked[0]
        products, statistics, positives, scratch_rows = operands
        column_state, deepest, log_of_weight_scale = columns
        into, grad_operands, grad_statistics, grad_positives, wants_scale = gradients
        k, count, d = products.shape
        n = row_state.shape[1]
        dtype = products.dtype
        flat = products.reshape(k * count, d)
        block, inverse = np.empty((n, d), dtype), np.empty(n, dtype)
        squared_norms, grad_squared_norms = np.zeros(n, dtype), np.zeros(n, dtype)
        load_rows(address, stride, 0, n, row_scale, unit, block, inverse, wants_norms, squared_norms)
        tile = np.empty((n, k, count), dtype)
        flat_tile = tile.reshape(n, k * count)
        blas.rows_by_rows(gemm, block, flat, flat_tile)
        kept = np.empty((n, count) if two_way and not is_tile else (0, 0), dtype)
        factors, reference = np.ones(n, dtype), np.full(1, -np.inf, dtype)
        scratch = np.empty((scratch_rows, count if scratch_rows > 1 else 1), dtype)
        grad_scale = np.zeros(n if wants_scale else 0)
        unscaled = np.empty(count if wants_scale else 0, dtype)
        weights = np.zeros((COLUMN_WEIGHTS if two_way else 0, count if two_way else 0), dtype)
        taken = (tile, squared_norms, statistics, positives, scratch)
        state = (row_state, column_state[0], reference)
        given = (np.empty((0, 0)), weights)
        formed = (factors, grad_statistics, grad_squared_norms, grad_positives, grad_scale, unscaled)
        if two_way:
            for row in range(n):
                row_pass(REDUCE, score, reduction, row, row, asked, taken, state, given, kept, formed)
            common = reference[0]
            if not -np.inf < common < np.inf:
                return False, common, 0.0
            for j in range(offset, offset + n):
                # NaN, infinities and columns far below the others fail the comparison.
                total = np.float64(column_state[0, COLUMN_SUM, j])
                if not math.log(total) - log_of_weight_scale >= deepest:
                    return False, common, 0.0
                weights[GRAD_COLUMN_LSE, j] = 1.0 / total
            for row in range(n):
                row_state[MAXIMUM, row] -= common
            for row in range(n):
                row_pass(MERGED_GRADIENT, score, reduction, row, row, asked, taken, state, given, kept, formed)
        else:
            for row in range(n):
                row_pass(REDUCE_AND_GRADIENT, score, reduction, row, row, asked, taken, state, given, kept, formed)
        along_scale = grad_scale.sum()
        if grad_operands.size > 0:
            weighted = np.empty((n, d), dtype)
            for row in range(n):
                for j in range(d):
                    weighted[row, j] = block[row, j] * factors[row]
            blas.weighted_columns(gemm, flat_tile, weighted, grad_operands.reshape(k * count, d))
        if into.size > 0 or wants_row_scale:
            gradient = np.empty((n, d), dtype)
            blas.weighted_rows(gemm, flat_tile, flat, gradient)
            along_scale += (
                add_gradient(
                    block,
                    gradient,
                    factors,
                    inverse,
                    0,
                    n,
                    row_scale,
                    unit,
                    wants_row_scale,
                    wants_norms,
                    grad_squared_norms,
                    into,
                )
                / row_scale
            )
        return True, reference[0], along_scale

    return one_tile
