"""Symile on the CPU: one sweep over all N^M combinations of samples feeds the log-sum-exps of all M anchors.

    T[i, j, .., l] = sum_d x_id y_jd .. w_ld        s = scale T        R_m[n] = log sum of e^s over all with i_m = n
    loss = mean over m, n of R_m[n] - mean over n of s[n, .., n]

T is the same for every anchor. Its rows are products of the first M - 1 modalities, N^(M-1) of them, its columns the
last modality: a block of rows is one `torch.mm` into a tile that stays in cache. One exponential of each score
serves all anchors, in both passes: with e = e^(s - largest of the row), a row's sum goes to its M - 1 anchors, and e
to its column. Weights of all anchors together, dL/ds = (sum_m e^(s - R_m)) / (M N), replace the tile for the backward.

Cost in GEMMs of 2 N^M d FLOPs: the loss 1; with gradients 4 (tile, tile again, columns, rows), and 3 where all scores
fit 32 MiB and are kept. Forming products and bringing their gradients back adds 4 N^(M-1) d numbers read and written:
1 / N of a GEMM's FLOPs each. Memory beyond operands and results: the tile, its products and a few vectors. The
released code forms T once for each anchor, with N^(M-1) d products and N^M logits in memory: M times the FLOPs.

`negatives_log_sum_exp`, for shuffled negatives, is a sweep of the pairwise engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mibfast._threads import parallel, slots
from mibfast.kernels.compilation import inline, kernel
from mibfast.kernels.halves import compiled
from mibfast.kernels.pairwise import cpu as pairwise
from mibfast.kernels.pairwise import engine_cpu as engine
from mibfast.kernels.pairwise import reductions
from mibfast.kernels.pairwise.engine_cpu import log_of_weight_scale
from mibfast.kernels.pairwise.flags import POSITIVE_EXCLUDED, SEPARATE_EXPONENTIALS, TWO_WAY
from mibfast.kernels.pairwise.reductions import rows as row_functions
from mibfast.kernels.pairwise.reductions.log_sum_exp import (
    COLUMN_LSE,
    COLUMN_SUM,
    COLUMN_WEIGHTS,
    FACTOR,
    GRAD_COLUMN_LSE,
    GRAD_LSE,
    GRAD_POSITIVE,
    LSE,
    MAXIMUM,
    POSITIVE,
    ROW_LSE,
    ROW_STATES,
    ROW_WEIGHTS,
    merge_columns,
)
from mibfast.kernels.pairwise.rows_by_code_cpu import add_row, grad_row
from mibfast.kernels.row_addresses import RowAddresses, row_at
from mibfast.kernels.vector_math import WEIGHT_EXPONENT, exp, weight_scale

_BOTH_WAYS = reductions.code(pairwise.LOG_SUM_EXP, TWO_WAY)
_raise_maxima, _add_to_sums = compiled(row_functions.raise_maxima), compiled(row_functions.add_to_sums)
# NaN and infinity are results here, not accidents.
_QUIET = np.errstate(all="ignore")
# Products and tile of a block together; narrow tiles reach the full rate of a GEMM with 2048 rows.
_BLOCK_BYTES, _LEAST_ROWS, _MOST_ROWS = 8 * 2**20, 512, 4096
# Scores that are kept for the gradient, and not formed again.
_KEPT_BYTES = 32 * 2**20
# Numbers a slot, at least, scores and products: 30 microseconds of work.
_GRAIN = 65536
# As in `pairwise/cpu.py`: how far a column may lie below the reference of all, and a log-sum-exp above another, nats.
_DEEPEST_COLUMN = {torch.float32: 80.0, torch.float64: 600.0}
_LARGEST_EXCESS = {torch.float32: 60.0, torch.float64: 600.0}


@inline
def _multiply_leading(addresses: Any, strides: Any, n: int, group: int, left_out: int, out: Any) -> None:
    """Multiply `out` by the rows of all modalities but the last and `left_out`: the digits of `group` in base n."""
    number = group
    for k in range(addresses.size - 2, -1, -1):
        if k != left_out:
            x = row_at(addresses[k], number % n, strides[k], out.size, out)
            for j in range(out.size):
                out[j] *= x[j]
        number //= n


@kernel
def _multiply(
    addresses: Any, strides: Any, n: int, first: int, begin: int, end: int, products: Any, leading: Any
) -> None:
    """products[local] = product over modalities of row i_k, i_0 i_1 .. the digits of first + local in base n.

    N rows that follow each other share their leading modalities, whose product is formed once.
    """
    d, last = products.shape[1], addresses.size - 1
    row, stop = first + begin, first + end
    while row < stop:
        group = row // n
        group_stop = min(stop, (group + 1) * n)
        leading[:] = leading.dtype.type(1.0)
        _multiply_leading(addresses, strides, n, group, -1, leading)
        for r in range(row, group_stop):
            x, out = row_at(addresses[last], r - group * n, strides[last], d, products), products[r - first]
            for j in range(d):
                out[j] = leading[j] * x[j]
        row = group_stop


@kernel
def _product_backward(
    addresses: Any,
    strides: Any,
    n: int,
    first: int,
    begin: int,
    end: int,
    gradient: Any,
    leading: Any,
    leading_gradient: Any,
    into: Any,
) -> None:
    """Add the gradient of products to that of each modality, `into` [M - 1, N, d]."""
    d, last = gradient.shape[1], addresses.size - 1
    row, stop = first + begin, first + end
    while row < stop:
        group = row // n
        group_stop = min(stop, (group + 1) * n)
        leading[:] = leading.dtype.type(1.0)
        _multiply_leading(addresses, strides, n, group, -1, leading)
        leading_gradient[:] = leading.dtype.type(0.0)
        for r in range(row, group_stop):
            g, x = gradient[r - first], row_at(addresses[last], r - group * n, strides[last], d, gradient)
            out = into[last, r - group * n]
            for j in range(d):
                leading_gradient[j] += g[j] * x[j]
                out[j] += g[j] * leading[j]
        number = group
        for k in range(last - 1, -1, -1):
            # Times the other leading modalities: never by dividing, which zeros forbid.
            leading[:] = leading_gradient
            _multiply_leading(addresses, strides, n, group, k, leading)
            out = into[k, number % n]
            number //= n
            for j in range(d):
                out[j] += leading[j]
        row = group_stop


@kernel
def _reduce_rows(
    tile: Any,
    first: int,
    begin: int,
    end: int,
    diagonal: int,
    state_begin: int,
    row_state: Any,
    column_state: Any,
    reference: Any,
    maxima: Any,
    sums: Any,
    positives: Any,
) -> None:
    """Add rows to the columns' sums and to the log-sum-exps of their samples, kept as maxima and sums [M - 1, N].

    Every `diagonal`-th row is of one sample throughout. What `add_row` leaves in the tile is e^(s - largest of row).
    """
    n, number_of = tile.shape[1], tile.dtype.type
    for local in range(begin, end):
        row, at = first + local, state_begin + local
        positive = row // diagonal if row % diagonal == 0 else 0
        add_row(_BOTH_WAYS, tile[local], at, positive, 0, row_state, column_state, reference)
        if row % diagonal == 0:
            positives[positive] = row_state[POSITIVE, at]
        lse, number = row_state[LSE, at], row
        for k in range(maxima.shape[0] - 1, -1, -1):
            i = number % n
            number //= n
            if lse > maxima[k, i]:
                sums[k, i] = sums[k, i] * exp(number_of(maxima[k, i] - lse)) + 1.0
                maxima[k, i] = lse
            elif lse != -np.inf:
                # NaN too, which fails the first comparison.
                sums[k, i] += exp(number_of(lse - maxima[k, i]))


@kernel
def _reduce_columns(tile: Any, begin: int, end: int, maxima: Any, sums: Any) -> None:
    """Columns' maxima over rows begin to end, and sums of exp_weight(s - maximum)."""
    maxima[:] = -np.inf
    sums[:] = 0.0
    for local in range(begin, end):
        _raise_maxima(tile[local], maxima)
    for local in range(begin, end):
        _add_to_sums(tile[local], maxima, sums)


@kernel
def _grad_rows(
    tile: Any,
    first: int,
    begin: int,
    end: int,
    diagonal: int,
    flags: int,
    lse: Any,
    middle: float,
    weight: float,
    positive_weight: float,
    row_weights: Any,
    column_weights: Any,
) -> None:
    """Replace scores by dL/ds times weight_scale: weight (sum_m e^(s - R_m)), less positive_weight at positives.

    The exponentials are relative to the smallest R_m of the row, which no score exceeds.
    """
    n = tile.shape[1]
    for local in range(begin, end):
        row = first + local
        shift, number = np.inf, row
        for k in range(lse.shape[0] - 1, -1, -1):
            value = lse[k, number % n]
            shift = shift if value > shift else value
            number //= n
        total, number = 0.0, row
        for k in range(lse.shape[0] - 1, -1, -1):
            total += math.exp(shift - lse[k, number % n])
            number //= n
        positive = row // diagonal if row % diagonal == 0 else 0
        row_weights[ROW_LSE, 0], row_weights[GRAD_LSE, 0] = shift, weight * total
        row_weights[FACTOR, 0] = math.exp(shift - middle)
        row_weights[GRAD_POSITIVE, 0] = -positive_weight if row % diagonal == 0 else 0.0
        grad_row(_BOTH_WAYS, tile[local], 0, positive, flags, row_weights, column_weights)


@kernel
def _grad_kept_rows(
    tile: Any,
    first: int,
    begin: int,
    end: int,
    diagonal: int,
    row_state: Any,
    lse: Any,
    middle: float,
    weight: float,
    positive_weight: float,
    softmax: Any,
) -> None:
    """The same from what `_reduce_rows` left, e^(s - largest of the row), without another exponential."""
    n, one = tile.shape[1], tile.dtype.type(1.0)
    for local in range(begin, end):
        row, e = first + local, tile[local]
        largest, total, number = row_state[MAXIMUM, row], 0.0, row
        for k in range(lse.shape[0] - 1, -1, -1):
            total += math.exp(largest - lse[k, number % n])
            number //= n
        a, x = tile.dtype.type(weight * total), tile.dtype.type(math.exp(largest - middle))
        for j in range(n):
            e[j] *= a + x * softmax[j]
        if row % diagonal == 0:
            e[row // diagonal] -= tile.dtype.type(positive_weight) * tile.dtype.type(weight_scale(one))


class _Sweep:
    """All combinations of samples in blocks: products of the first M - 1 modalities against the last, scaled."""

    def __init__(self, z: Sequence[Tensor], scale: float, keep: bool) -> None:
        self.rows = RowAddresses(z[:-1])
        self.dtype, self.n, self.d = self.rows.torch_dtype, self.rows.n, self.rows.d
        self.last = z[-1].detach().to(self.dtype)
        # The scale goes to the columns, so that the gradient of the unscaled last modality gives the scale's too.
        self.columns = (self.last * scale).contiguous()
        self.count = self.n ** (len(z) - 1)
        self.diagonal = sum(self.n**k for k in range(len(z) - 1))
        itemsize = self.dtype.itemsize
        fitting = _BLOCK_BYTES // ((self.n + self.d) * itemsize)
        self.size = min(self.count, max(_LEAST_ROWS, min(fitting, _MOST_ROWS)))
        self.kept = keep and self.count * self.n * itemsize <= _KEPT_BYTES
        self._tile = self.rows.empty(self.count if self.kept else self.size, self.n)
        self._products = self.rows.empty(self.size, self.d)
        self.slots = slots(self.size, max(1, _GRAIN // (self.n + self.d)))
        self.scratch = self.rows.empty(self.slots, 2, self.d)

    def blocks(self) -> list[tuple[int, int]]:
        """First row and number of rows of each block."""
        return [(first, min(self.size, self.count - first)) for first in range(0, self.count, self.size)]

    def tile(self, first: int, count: int) -> np.ndarray:
        """The tile of a block, its own where tiles are kept."""
        begin = first if self.kept else 0
        tile: np.ndarray = self._tile[begin : begin + count]
        return tile

    def products(self, first: int, count: int) -> Tensor:
        """Form the products of a block, which stay until those of the next are formed."""
        products = self._products[:count]

        def multiply(begin: int, end: int, slot: int) -> None:
            _multiply(
                self.rows.addresses, self.rows.strides, self.n, first, begin, end, products, self.scratch[slot, 0]
            )

        self.each_slot(multiply, count)
        return torch.from_numpy(products)

    def scores(self, first: int, count: int) -> np.ndarray:
        """Form the products and the scores of a block: a GEMM."""
        tile = self.tile(first, count)
        torch.mm(self.products(first, count), self.columns.T, out=torch.from_numpy(tile))
        return tile

    def each_slot(self, function: Callable[[int, int, int], None], count: int) -> None:
        """Call `function(begin, end, slot)` for the rows of a block, cut into slots."""
        bounds = [count * slot // self.slots for slot in range(self.slots + 1)]
        parallel(lambda slot: function(bounds[slot], bounds[slot + 1], slot), self.slots)


class _LogSumExps:
    """The log-sum-exps of all anchors [M, N], float64, the positives' scores [N], and what rows left for gradients."""

    @_QUIET
    def __init__(self, sweep: _Sweep) -> None:
        n, m = sweep.n, sweep.rows.m + 1
        # Whether the tile still holds what the sweep left there.
        self.kept = sweep.kept
        self.rows = np.empty((ROW_STATES, sweep.count if sweep.kept else sweep.size))
        self.positives = np.empty(n)
        column_states = np.zeros((sweep.slots, 2, n), sweep.rows.dtype)
        references = np.full((sweep.slots, 1), -np.inf, sweep.rows.dtype)
        maxima, sums = np.full((sweep.slots, m - 1, n), -np.inf), np.zeros((sweep.slots, m - 1, n))
        whole, reference = np.zeros((2, n)), -np.inf
        for first, count in sweep.blocks():
            tile, state_begin = sweep.scores(first, count), first if sweep.kept else 0

            def reduce(
                begin: int,
                end: int,
                slot: int,
                tile: np.ndarray = tile,
                first: int = first,
                state_begin: int = state_begin,
            ) -> None:
                _reduce_rows(
                    tile,
                    first,
                    begin,
                    end,
                    sweep.diagonal,
                    state_begin,
                    self.rows,
                    column_states[slot],
                    references[slot],
                    maxima[slot],
                    sums[slot],
                    self.positives,
                )

            sweep.each_slot(reduce, count)
            reference = merge_columns(column_states, references, whole, reference)
            column_states.fill(0.0)
            references.fill(-np.inf)
        highest = maxima.max(0)
        finite = np.where(highest == -np.inf, 0.0, highest)
        row_lse = highest + np.log((sums * np.exp(maxima - finite)).sum(0))
        unscaled = log_of_weight_scale(sweep.dtype)
        above_reference = np.log(whole[COLUMN_SUM]) - unscaled
        column_lse = above_reference + reference
        # One reference for all columns leaves those far below it to the floor of the exponential. NaN is no sign of it.
        if np.nanmin(above_reference, initial=np.inf) < -_DEEPEST_COLUMN[sweep.dtype]:
            column_lse = _columns_exactly(sweep)
            self.kept = False
        self.values = np.concatenate([row_lse, column_lse[None]])


@_QUIET
def _columns_exactly(sweep: _Sweep) -> np.ndarray:
    """Log-sum-exps of columns with a maximum each: a second sweep, of the same blocks, so that its scores are the same.

    Rounded otherwise, a large score might exceed its log-sum-exp.
    """
    states = np.empty((sweep.slots, 2, sweep.n), sweep.rows.dtype)
    maxima, sums = np.full(sweep.n, -np.inf), np.zeros(sweep.n)
    for first, count in sweep.blocks():
        tile = sweep.scores(first, count)

        def reduce(begin: int, end: int, slot: int, tile: np.ndarray = tile) -> None:
            _reduce_columns(tile, begin, end, states[slot, 0], states[slot, 1])

        sweep.each_slot(reduce, count)
        for state in states.astype(np.float64):
            higher = np.maximum(maxima, state[0])
            finite = np.where(higher == -np.inf, 0.0, higher)
            sums[:] = sums * np.exp(maxima - finite) + state[1] * np.exp(state[0] - finite)
            maxima[:] = higher
    unscaled = log_of_weight_scale(sweep.dtype)
    lse: np.ndarray = maxima + np.log(sums) - unscaled
    return lse


@_QUIET
def symile_with_gradient(z: Sequence[Tensor], scale: Tensor, needed: Sequence[bool]) -> list[Tensor]:
    """Symile with all negatives and, where any is needed, its gradients: those of the M embeddings, and the scale's.

    The embeddings' are in the dtype of the sweep. Gradients that are not needed are empty.
    """
    factor, m, n = float(scale), len(z), z[0].shape[0]
    sweep = _Sweep(z, factor, keep=any(needed))
    found = _LogSumExps(sweep)
    loss = torch.tensor(float(found.values.mean() - found.positives.mean()), dtype=sweep.dtype)
    gradients = [torch.from_numpy(sweep.rows.empty(n, sweep.d)).zero_() for _ in z] if any(needed) else []
    if any(needed):
        _add_gradients(sweep, found, 1.0 / (m * n), 1.0 / n, gradients, any(needed[: m - 1]), any(needed[m - 1 :]))
    results = [
        g if need else x.new_empty(x.shape, dtype=sweep.dtype)
        for g, x, need in zip(gradients or z, z, needed[:m], strict=True)
    ]
    d_scale = 0.0
    if needed[m]:
        d_scale = float((gradients[-1].double() * sweep.last).sum())
    if needed[m - 1]:
        results[-1] = gradients[-1] * factor
    return [loss, *results, torch.tensor(float(d_scale), dtype=scale.dtype)]


def _add_gradients(
    sweep: _Sweep,
    found: _LogSumExps,
    weight: float,
    positive_weight: float,
    gradients: Sequence[Tensor],
    wants_rows: bool,
    wants_columns: bool,
) -> None:
    """Add the gradients of the first M - 1 modalities, and that of the last before it is scaled."""
    lse, columns = found.values[:-1], found.values[-1]
    # No row's shift exceeds this: of each row it is the smallest log-sum-exp of its samples.
    highest, lowest = float(lse.max(1).min()), float(columns.min())
    one_exponential = highest - lowest <= _LARGEST_EXCESS[sweep.dtype]
    # What the first pass left has row maxima for shifts, which exceed no log-sum-exp of the row.
    kept = found.kept and one_exponential
    flags, middle = 0, 0.5 * (highest + lowest)
    column_weights = np.zeros((COLUMN_WEIGHTS, sweep.n))
    if one_exponential:
        column_weights[GRAD_COLUMN_LSE] = weight * np.exp(middle - columns)
    else:
        flags, middle = SEPARATE_EXPONENTIALS, 0.0
        column_weights[COLUMN_LSE] = columns
        column_weights[GRAD_COLUMN_LSE] = weight
    column_weights = column_weights.astype(sweep.rows.dtype)
    row_weights = np.zeros((sweep.slots, ROW_WEIGHTS, 1))
    # Each slot adds to its own: rows of one block share samples.
    by_slot = np.zeros((sweep.slots if wants_rows else 0, sweep.rows.m, sweep.n, sweep.d), sweep.rows.dtype)
    for first, count in sweep.blocks():
        if kept:
            tile, products = sweep.tile(first, count), sweep.products(first, count) if wants_columns else None
        else:
            tile = sweep.scores(first, count)
            products = torch.from_numpy(sweep._products[:count])

        def grad_scores(begin: int, end: int, slot: int, tile: np.ndarray = tile, first: int = first) -> None:
            if kept:
                _grad_kept_rows(
                    tile,
                    first,
                    begin,
                    end,
                    sweep.diagonal,
                    found.rows,
                    lse,
                    middle,
                    weight,
                    positive_weight,
                    column_weights[GRAD_COLUMN_LSE],
                )
            else:
                _grad_rows(
                    tile,
                    first,
                    begin,
                    end,
                    sweep.diagonal,
                    flags,
                    lse,
                    middle,
                    weight,
                    positive_weight,
                    row_weights[slot],
                    column_weights,
                )

        sweep.each_slot(grad_scores, count)
        weights = torch.from_numpy(tile)
        if wants_columns:
            assert products is not None
            gradients[-1].addmm_(weights.T, products)
        if wants_rows:
            product_gradient = sweep._products[:count]
            torch.mm(weights, sweep.columns, out=torch.from_numpy(product_gradient))

            def backward(
                begin: int, end: int, slot: int, first: int = first, gradient: np.ndarray = product_gradient
            ) -> None:
                _product_backward(
                    sweep.rows.addresses,
                    sweep.rows.strides,
                    sweep.n,
                    first,
                    begin,
                    end,
                    gradient,
                    sweep.scratch[slot, 0],
                    sweep.scratch[slot, 1],
                    by_slot[slot],
                )

            sweep.each_slot(backward, count)
    if wants_rows:
        for gradient, each_slot in zip(gradients, by_slot.transpose(1, 0, 2, 3), strict=False):
            torch.sum(torch.from_numpy(each_slot), 0, out=gradient)
    if sweep.dtype == torch.float32:
        for gradient in gradients:
            gradient.mul_(2.0**-WEIGHT_EXPONENT)


def negatives_log_sum_exp(query: Tensor, key: Tensor) -> Tensor:
    """Log-sum-exp over j != i of q_i . k_j: [N], float64."""
    results = engine.reduce(
        pairwise.Embeddings(query, key, None, "inner_product", 0).pairs, pairwise.LOG_SUM_EXP, POSITIVE_EXCLUDED
    )
    return torch.from_numpy(results.rows[LSE].copy())


@_QUIET
def negatives_log_sum_exp_backward(
    upstream: Tensor, query: Tensor, key: Tensor, lse: Tensor, needed: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    """Gradients of `negatives_log_sum_exp`, those that are needed; the others are empty."""
    embeddings = pairwise.Embeddings(query, key, None, "inner_product", 0, needed)
    pairwise.log_sum_exps_gradient(
        embeddings.pairs,
        pairwise.Objective(positive_in_denominator=False),
        row_lse=lse.numpy(),
        column_lse=np.empty(0),
        grad_rows=upstream.double().numpy(),
        grad_columns=np.empty(0),
        grad_positives=np.zeros(len(query)),
        gradients=embeddings.gradients,
    )
    return embeddings.embedding_results(query.dtype)
