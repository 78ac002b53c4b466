"""The whole sweep of few pairs in one call: products, row passes, and gradients, without Python in between.

Of a small batch the steps from Python, of which a sweep by `engine_cpu.py` has twenty, take more time than the work.
Here they are one kernel, for pairs that fit one tile and one thread. The sums are the engine's own, in its order.
Measurements: `benches/notes/cpu-measurements.md`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numba.core import types
from numba.extending import overload
from torch import Tensor

from mibfast.kernels import blas
from mibfast.kernels.compilation import INLINED, kernel
from mibfast.kernels.pairwise.flags import TOTALS, TWO_WAY
from mibfast.kernels.pairwise.reductions.log_sum_exp import COLUMN_SUM, COLUMN_WEIGHTS, GRAD_COLUMN_LSE, MAXIMUM
from mibfast.kernels.pairwise.row_pass_cpu import MERGED_GRADIENT, REDUCE, REDUCE_AND_GRADIENT, row_pass
from mibfast.kernels.pairwise.rows_cpu import Rows, add_gradient, load_rows
from mibfast.kernels.pairwise.scores import NUMBERED, Score
from mibfast.kernels.pairwise.tiles_cpu import Columns, Gradients, one_thread_serves
from mibfast.kernels.row_addresses import matrix_at

_DTYPES = {torch.float32: np.float32, torch.float64: np.float64}


def serves(rows: Rows, columns: Any) -> bool:
    """Whether these pairs are few enough for one thread, and their products can be formed inside the kernel."""
    if not isinstance(columns, Columns):
        return False
    k, count, _ = columns.operands.shape
    few = one_thread_serves(rows.n, k * count, rows.dtype.itemsize)
    return few and bool(blas.address(rows.dtype))


def serves_embeddings(query: Tensor, key: Tensor) -> bool:
    """The same of two embeddings, which must be read where they lie."""
    (n, d), count, dtype = query.shape, key.shape[0], query.dtype
    as_they_lie = d == 1 or (query.stride(1) == 1 and key.stride(1) == 1)
    if not (as_they_lie and dtype in _DTYPES and key.dtype == dtype):
        return False
    return one_thread_serves(n, count, dtype.itemsize) and bool(blas.address(dtype))


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
    kernel = one_tile_kernel(NUMBERED.index(score), reduction, int(two_way))
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


def sweep_tile(
    score: int,
    reduction: int,
    two_way: int,
    gemm: int,  # its address
    rows: Any,  # as they are multiplied [N, d], the inverses that they were multiplied by [N], squared norms [N]
    made: Any,  # their scale, whether they were made unit, have norms, and want their scale's gradient
    asked: Any,  # as of a row pass
    operands: Any,  # [K, N', d], statistics [S, N'], scores of positives [P], rows of scratch
    row_state: Any,  # [R, N]
    columns: Any,  # state [1, 2, N'], written; the deepest log-sum-exp below the reference; the scale of weights
    # gradients of rows [N or 0, d], operands [K or 0, N', d], statistics [S, N'], positives [P], and whether those of
    # the scale of scores are wanted
    gradients: Any,
) -> tuple[bool, float, float]:
    """Sweep a tile of all pairs, of a score's number and a reduction's code, constants as `two_way`, 0 or 1, is.

    Returns whether gradients were formed, the reference of columns, and the gradient of the scale.
    """
    raise NotImplementedError("called from kernels only")


@overload(sweep_tile, jit_options=INLINED, prefer_literal=True, strict=False)  # type: ignore[untyped-decorator]
def _sweep_tile(
    score: Any,
    reduction: Any,
    two_way: Any,
    gemm: Any,
    rows: Any,
    made: Any,
    asked: Any,
    operands: Any,
    row_state: Any,
    columns: Any,
    gradients: Any,
) -> Any:
    codes = (score, reduction, two_way)
    if not all(isinstance(code, types.IntegerLiteral) for code in codes):
        return None
    return _sweep_tile_of(*(code.literal_value for code in codes))


@functools.cache
def _sweep_tile_of(scored: int, reduced: int, both_ways: int) -> Callable[..., Any]:
    is_score = NUMBERED[scored].is_tile

    def sweep_tile_of(
        score: int,
        reduction: int,
        two_way: int,
        gemm: int,
        rows: Any,
        made: Any,
        asked: Any,
        operands: Any,
        row_state: Any,
        columns: Any,
        gradients: Any,
    ) -> tuple[bool, float, float]:
        block, inverse, squared_norms = rows
        row_scale, unit, wants_norms, wants_row_scale = made
        offset = asked[0]
        products, statistics, positives, scratch_rows = operands
        column_state, deepest, log_of_weight_scale = columns
        into, grad_operands, grad_statistics, grad_positives, wants_scale = gradients
        k, count, d = products.shape
        n = row_state.shape[1]
        dtype = products.dtype
        flat = products.reshape(k * count, d)
        grad_squared_norms = np.zeros(n, dtype)
        tile = np.empty((n, k, count), dtype)
        flat_tile = tile.reshape(n, k * count)
        blas.rows_by_rows(gemm, block, flat, flat_tile)
        kept = np.empty((n, count) if both_ways and not is_score else (0, 0), dtype)
        factors, reference = np.ones(n, dtype), np.full(1, -np.inf, dtype)
        scratch = np.empty((scratch_rows, count if scratch_rows > 1 else 1), dtype)
        grad_scale = np.zeros(n if wants_scale else 0)
        unscaled = np.empty(count if wants_scale else 0, dtype)
        weights = np.zeros((COLUMN_WEIGHTS if both_ways else 0, count if both_ways else 0), dtype)
        taken = (tile, squared_norms, statistics, positives, scratch)
        state = (row_state, column_state[0], reference)
        given = (np.empty((0, 0)), weights)
        formed = (factors, grad_statistics, grad_squared_norms, grad_positives, grad_scale, unscaled)
        if both_ways:
            for row in range(n):
                row_pass(REDUCE, scored, reduced, row, row, asked, taken, state, given, kept, formed)
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
                row_pass(MERGED_GRADIENT, scored, reduced, row, row, asked, taken, state, given, kept, formed)
        else:
            for row in range(n):
                row_pass(REDUCE_AND_GRADIENT, scored, reduced, row, row, asked, taken, state, given, kept, formed)
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
            along = add_gradient(
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
            if wants_row_scale:
                along_scale += along / row_scale
        return True, reference[0], along_scale

    return sweep_tile_of


class FewEmbeddings(NamedTuple):
    """What a sweep of a few pairs of embeddings gives: states, gradients, None where not wanted, and dL/dscale."""

    row_state: np.ndarray
    column_state: np.ndarray
    reference: float
    grad_query: Tensor | None
    grad_key: Tensor | None
    grad_scale: float


def sweep_embeddings(
    score: Score,
    reduction: int,
    flags: int,
    query: Tensor,
    key: Tensor,
    row_state: np.ndarray,
    needed: Sequence[bool],
    *,
    normalize: bool,
    offset: int,
    upstream: float,
    scale: float = 1.0,
    label_smoothing: float = 0.0,
    deepest: float | None = None,
    log_of_weight_scale: float = 0.0,
) -> FewEmbeddings | None:
    """Reduce all pairs and form gradients, as :func:`sweep` does; None where these could not be formed."""
    d = query.shape[1]
    column_state = np.zeros((1, 2, key.shape[0]), _DTYPES[query.dtype])
    grad_query, grad_key = (
        torch.empty(x.shape, dtype=x.dtype) if need else None for x, need in zip((query, key), needed, strict=False)
    )
    kernel = few_embeddings_kernel(NUMBERED.index(score), reduction, int(deepest is not None))
    done, reference, grad_scale = kernel(
        blas.address(query.dtype),
        (query.data_ptr(), query.stride(0)),
        (key.data_ptr(), key.stride(0)),
        d,
        (normalize, scale, bool(needed[2:]) and needed[2]),
        (offset, flags, upstream, label_smoothing),
        row_state,
        (column_state, 0.0 if deepest is None else deepest, log_of_weight_scale),
        (0 if grad_query is None else grad_query.data_ptr(), 0 if grad_key is None else grad_key.data_ptr()),
    )
    if not done:
        return None
    return FewEmbeddings(row_state, column_state[0], reference, grad_query, grad_key, grad_scale)


@functools.cache
def one_tile_kernel(score: int, reduction: int, two_way: int) -> Callable[..., tuple[bool, float, float]]:
    """The kernel of any columns; see :func:`sweep_tile`."""

    @kernel
    def one_tile(
        gemm: int,
        rows: Any,  # address, stride, scale, whether they are made unit, have norms, and want their scale's gradient
        asked: Any,
        operands: Any,
        row_state: Any,
        columns: Any,
        gradients: Any,
    ) -> tuple[bool, float, float]:
        address, stride, row_scale, unit, wants_norms, wants_row_scale = rows
        n, d, dtype = row_state.shape[1], operands[0].shape[2], operands[0].dtype
        block, inverse, squared_norms = np.empty((n, d), dtype), np.empty(n, dtype), np.zeros(n, dtype)
        load_rows(address, stride, 0, n, row_scale, unit, block, inverse, wants_norms, squared_norms)
        return sweep_tile(
            score,
            reduction,
            two_way,
            gemm,
            (block, inverse, squared_norms),
            (row_scale, unit, wants_norms, wants_row_scale),
            asked,
            operands,
            row_state,
            columns,
            gradients,
        )

    return one_tile


@functools.cache
def few_embeddings_kernel(score: int, reduction: int, two_way: int) -> Callable[..., tuple[bool, float, float]]:
    """The kernel of two embeddings, which it reads and whose gradients it writes where they lie."""
    wants_norms, homogeneous = NUMBERED[score].squared_norms, NUMBERED[score].homogeneous
    scratch_rows = NUMBERED[score].scratch_rows(1)

    @kernel
    def few_embeddings(
        gemm: int,
        query: Any,  # the address of [N, d], and the distance of rows
        key: Any,  # the same of [N', d]
        d: int,
        made: Any,  # whether embeddings are made unit, the scale of scores, and whether its gradient is wanted
        asked: Any,  # offset, flags, upstream and label smoothing
        row_state: Any,  # [R, N]
        columns: Any,  # as of `sweep_tile`
        gradients: Any,  # the addresses of [N, d] and [N', d], written; 0 where one is not wanted
    ) -> tuple[bool, float, float]:
        """Whether gradients were formed, the reference of columns, and the gradient of the scale."""
        normalize, scale, wants_grad_scale = made
        offset, flags, upstream, label_smoothing = asked
        column_state, grad_query, grad_key = columns[0], gradients[0], gradients[1]
        n, count, dtype = row_state.shape[1], column_state.shape[2], column_state.dtype
        zero, like = dtype.type(0.0), column_state[0]
        row_scale = scale if homogeneous else 1.0
        block, inverse, squared_norms = np.empty((n, d), dtype), np.empty(n, dtype), np.zeros(n, dtype)
        load_rows(query[0], query[1], 0, n, row_scale, normalize, block, inverse, wants_norms, squared_norms)
        products, inverse_norms = np.empty((1, count, d), dtype), np.empty(count, dtype)
        statistics = np.zeros((1 if wants_norms else 0, count), dtype)
        norms = statistics[0] if wants_norms else inverse_norms
        load_rows(key[0], key[1], 0, count, 1.0, normalize, products[0], inverse_norms, wants_norms, norms)
        into = matrix_at(grad_query, n if grad_query else 0, d, like)
        for i in range(into.shape[0]):
            for j in range(d):
                into[i, j] = zero
        into_key = matrix_at(grad_key, count if grad_key else 0, d, like)
        grad_operands = into_key.reshape(1 if grad_key else 0, count, d)
        if grad_key and normalize:
            grad_operands = np.empty((1, count, d), dtype)
        grad_statistics = np.zeros(statistics.shape, dtype)
        done, reference, grad_scale = sweep_tile(
            score,
            reduction,
            two_way,
            gemm,
            (block, inverse, squared_norms),
            (row_scale, normalize, wants_norms, wants_grad_scale and homogeneous),
            (offset, flags, 1.0 if homogeneous else scale, upstream, label_smoothing, np.inf),
            (products, statistics, np.empty(0), scratch_rows),
            row_state,
            columns,
            (into, grad_operands, grad_statistics, np.empty(0), wants_grad_scale and not homogeneous),
        )
        if not (done and grad_key):
            return done, reference, grad_scale
        if wants_norms:
            for i in range(count):
                twice = dtype.type(2.0) * grad_statistics[0, i]
                for j in range(d):
                    grad_operands[0, i, j] += twice * products[0, i, j]
        if normalize:
            for i in range(count):
                for j in range(d):
                    into_key[i, j] = zero
            ones = np.ones(count, dtype)
            add_gradient(
                products[0], grad_operands[0], ones, inverse_norms, 0, count, 1.0, True, False, False, norms, into_key
            )
        return done, reference, grad_scale

    return few_embeddings
