"""The pairwise engine on the CPU: reductions over all pairs of a score, one block of rows at a time.

A block of B rows against all K N' columns is one `torch.mm` into a tile [B, K N'] that stays in cache; Numba turns its
inner products into scores, reduces them, and, where a gradient is wanted, replaces them by dL/dtile, which two more
GEMMs turn into the gradients of rows and columns. Nothing of size N x N' is stored.

Cost in GEMMs of 2 N N' K d FLOPs: `reduce` 1; `reduce_with_gradient` 3; `gradient` 3, after a `reduce` so 4 together;
`reduce_both_ways_with_gradient`, for what fits one tile, 3.
The row passes add for each score one exponential (0.43 ns on one core) and a maximum (0.17 ns), against 2 d FLOPs a
GEMM (2 ns at d = 256 on two cores): one tenth of three GEMMs. Memory beyond operands and results is the tile and a few
vectors. Measurements: `benches/notes/cpu-measurements.md`.

Scores and reductions are files of `scores/` and `reductions/`, of which this file knows none. The inverse of a
temperature is the scale of the pairs: scores are multiplied by it here, or their rows are where that is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mibfast import _buffers
from mibfast.kernels.pairwise import one_tile_cpu, reductions, row_pass_cpu, scores
from mibfast.kernels.pairwise.flags import POSITIVE_EXCLUDED, TOTALS, TWO_WAY
from mibfast.kernels.pairwise.reductions import Reduction, log_sum_exp
from mibfast.kernels.pairwise.rows_cpu import Rows
from mibfast.kernels.pairwise.scores import Score
from mibfast.kernels.pairwise.tiles_cpu import MOST_ROWS, AnyColumns, Columns, Gradients, ProductTiles, Tiles
from mibfast.kernels.vector_math import WEIGHT_EXPONENT

# Where a tile is only read once, what a taller one wins in the GEMM (3%) is more than what it loses in cache.
_MOST_ROWS_OF_BLOCKS = 3072
# One tile for all pairs saves a quarter of the GEMMs, and may be this large.
_ONE_TILE_BYTES = 16 * 2**20

# In place of what a sweep has no use for, by the bytes of a number.
_NOTHING: dict[int, np.ndarray] = {4: np.empty((0, 0), np.float32), 8: np.empty((0, 0))}
_NO_NUMBERS: dict[int, np.ndarray] = {4: np.empty(0, np.float32), 8: np.empty(0)}


def log_of_weight_scale(dtype: torch.dtype) -> float:
    """The logarithm of what sums of weights are multiplied by: see `exp_weight`."""
    return WEIGHT_EXPONENT * math.log(2.0) if dtype == torch.float32 else 0.0


class Pairs:
    """What is scored: rows and columns, and what their scores are multiplied by.

    The positive of row i is column i + offset. Where it is wanted, the gradient of the scale is in `grad_scale` after a
    sweep that forms gradients.
    """

    def __init__(
        self,
        score: Score,
        rows: Rows,
        columns: AnyColumns,
        *,
        scale: float = 1.0,
        offset: int = 0,
        wants_grad_scale: bool = False,
    ) -> None:
        self.score, self.rows, self.columns, self.offset = score, rows, columns, offset
        # Rows that are multiplied as they are loaded cost nothing.
        self.scale = 1.0 if score.homogeneous else scale
        self._by_rows, self.wants_grad_scale = score.homogeneous, wants_grad_scale and not score.homogeneous
        self._grad_scale, self.given_scale = 0.0, scale
        if score.homogeneous:
            rows.multiply(scale, wants_grad_scale)

    @property
    def grad_scale(self) -> float:
        """dL/dscale."""
        return self.rows.grad_scale if self._by_rows else self._grad_scale

    def add_grad_scale(self, gradient: float) -> None:
        """Add to dL/dscale."""
        if self._by_rows:
            self.rows.grad_scale += gradient
        else:
            self._grad_scale += gradient

    def tiles(self) -> Tiles:
        """Begin a sweep."""
        return self.columns.tiles(self.score, self.rows)

    @property
    def product_columns(self) -> Columns:
        """Columns whose tiles are products."""
        assert isinstance(self.columns, Columns)
        return self.columns


@dataclass
class Results:
    """What a reduction found, float64: the state of rows [R, N] and of columns [2, N'], and their sums' reference."""

    rows: np.ndarray
    columns: np.ndarray
    reference: float


class _ColumnStates:
    """Partial results over rows, one a slot and tile, merged into float64 after each tile."""

    def __init__(self, tiles: Tiles, flags: int) -> None:
        self.wanted = bool(flags & (TWO_WAY | TOTALS))
        width = tiles.columns.count if self.wanted else 1
        self.slots = np.zeros((tiles.slots, 2, width), tiles.factors.dtype)
        self.references = np.full((tiles.slots, 1), -np.inf, tiles.factors.dtype)
        self.whole = np.zeros((2, width))
        self.reference = -np.inf

    def merge(self, *_: int) -> None:
        if self.wanted:
            self.reference = log_sum_exp.merge_columns(self.slots, self.references, self.whole, self.reference)
            self.slots.fill(0.0)
            self.references.fill(-np.inf)


class _Sweep:
    """The arguments of the row kernel in one sweep over pairs, and its calls."""

    def __init__(
        self,
        pairs: Pairs,
        tiles: Tiles,
        flags: int = 0,
        *,
        reduction: Reduction | None = None,
        row_state: np.ndarray | None = None,
        column_weights: np.ndarray | None = None,
        row_weights: np.ndarray | None = None,
        kept: np.ndarray | None = None,
        upstream: float = 0.0,
        label_smoothing: float = 0.0,
        clip: float = math.inf,
    ) -> None:
        self._pairs, self._tiles, self._flags = pairs, tiles, flags
        self._score, dtype = scores.NUMBERED.index(pairs.score), tiles.factors.dtype
        self._code = 0 if reduction is None else reductions.code(reduction, flags)
        # The gradient of an earlier reduction sums nothing over rows.
        self.states = _ColumnStates(tiles, flags if row_weights is None else 0)
        if row_state is None:
            row_state = np.zeros((0 if reduction is None else reduction.row_states, tiles.n))
        self.row_state = row_state
        nothing = _NOTHING[dtype.itemsize]
        self.column_weights = nothing if column_weights is None else column_weights
        self._row_weights = _NOTHING[8] if row_weights is None else row_weights
        self._kept = nothing if kept is None else kept
        self._upstream, self._label_smoothing, self._clip = upstream, label_smoothing, clip
        self._grad_scale = _NO_NUMBERS[8]
        self._unscaled: np.ndarray | None = None
        self._no_room = _NO_NUMBERS[dtype.itemsize]
        if pairs.wants_grad_scale:
            self._grad_scale = np.zeros(tiles.size)
            self._unscaled = np.empty((tiles.slots, tiles.columns.count), dtype)

    def function(self, stage: int, column_state: np.ndarray | None = None) -> Callable[[int, int, int, int], None]:
        """The kernel at a stage, as a function of a block's first row, the rows begin to end, and their slot.

        `column_state` [slots, 2, N'] takes the place of the reduction's.
        """
        row_kernel = row_pass_cpu.row_kernel(stage, self._score, self._code)
        tiles, sums, rows = self._tiles, self.states, self._pairs.rows
        state = sums.slots if column_state is None else column_state
        asked = (
            self._pairs.offset,
            self._flags,
            float(self._pairs.scale),
            float(self._upstream),
            float(self._label_smoothing),
            float(self._clip),
        )

        def call(first: int, begin: int, end: int, slot: int) -> None:
            row_kernel(
                first,
                begin,
                end,
                asked,
                (tiles.tile, rows.squared_norms, tiles.statistics, rows.positives, tiles.scratch[slot]),
                (self.row_state, state[slot], sums.references[slot]),
                (self._row_weights, self.column_weights),
                self._kept,
                (
                    tiles.factors,
                    tiles.grad_statistics[slot],
                    rows.grad_squared_norms,
                    rows.grad_positives,
                    self._grad_scale,
                    self._no_room if self._unscaled is None else self._unscaled[slot],
                ),
            )

        return call

    def add_grad_scale(self, first: int, count: int) -> None:
        """Add what the rows of a tile gave for dL/dscale."""
        if self._unscaled is not None:
            self._pairs.add_grad_scale(float(self._grad_scale[:count].sum()))

    def results(self) -> Results:
        return Results(self.row_state, self.states.whole, self.states.reference)


def reduce(pairs: Pairs, reduction: Reduction, flags: int, row_state: np.ndarray | None = None) -> Results:
    """Reduce all pairs. A reduction that is given something for each row finds it in `row_state`, zeros otherwise."""
    tiles = pairs.tiles()
    sweep = _Sweep(pairs, tiles, flags, reduction=reduction, row_state=row_state)
    tiles.run(sweep.function(row_pass_cpu.REDUCE), after_tile=sweep.states.merge)
    return sweep.results()


def reduce_columns(pairs: Pairs, excluded: bool, clip: float = math.inf) -> tuple[np.ndarray, np.ndarray]:
    """Maxima of the columns and sums of exp_weight(score - maximum), [N'] float64, with a maximum for each column.

    Of scores brought into [-clip, clip].
    """
    tiles = pairs.tiles()
    states = np.empty((tiles.slots, 2, pairs.columns.count), tiles.factors.dtype)
    maxima, sums = np.full(pairs.columns.count, -np.inf), np.zeros(pairs.columns.count)
    sweep = _Sweep(pairs, tiles, POSITIVE_EXCLUDED if excluded else 0, clip=clip)
    find_maxima, add = sweep.function(row_pass_cpu.MAXIMA, states), sweep.function(row_pass_cpu.SUMS, states)

    def find_both(first: int, begin: int, end: int, slot: int) -> None:
        states[slot, 0], states[slot, 1] = -np.inf, 0.0
        find_maxima(first, begin, end, slot)
        # The first pass leaves a score that is the tile clamped, and without its positive where that is left out.
        add(first, begin, end, slot)

    @np.errstate(all="ignore")
    def merge(*_: int) -> None:
        for state in states.astype(np.float64):
            higher = np.maximum(maxima, state[0])
            finite = np.where(higher == -np.inf, 0.0, higher)
            sums[:] = sums * np.exp(maxima - finite) + state[1] * np.exp(state[0] - finite)
            maxima[:] = higher

    tiles.run(find_both, after_tile=merge)
    return maxima, sums


def reduce_with_gradient(
    pairs: Pairs,
    reduction: Reduction,
    flags: int,
    *,
    upstream: float,
    gradients: Gradients,
    label_smoothing: float = 0.0,
    row_state: np.ndarray | None = None,
    update_factors: Callable[[np.ndarray, np.ndarray, int, int], float] | None = None,
) -> np.ndarray:
    """Reduce rows and form the gradients of `upstream` times their losses' sum in one sweep: the row state [R, N].

    `row_state` as in :func:`reduce`. Where rows have weights that are known only from their results,
    `update_factors(row_state, factors, first, count)` gets those of each block in turn, multiplies the factors [B] of
    its rows, and returns what to multiply the columns' gradients so far by; for scores without statistics, and without
    the scale's gradient.
    """
    if update_factors is None and one_tile_cpu.serves(pairs.rows, pairs.columns):
        results, _ = _in_one_tile(pairs, reduction, flags, row_state, upstream, label_smoothing, gradients)
        return results.rows
    tiles = pairs.tiles()
    sweep = _Sweep(
        pairs,
        tiles,
        flags,
        reduction=reduction,
        row_state=row_state,
        upstream=upstream,
        label_smoothing=label_smoothing,
    )

    def after_tile(first: int, count: int) -> None:
        sweep.states.merge()
        sweep.add_grad_scale(first, count)
        if update_factors is not None:
            factor = update_factors(sweep.row_state, tiles.factors, first, count)
            if first and factor != 1.0:
                tiles.scale_columns(factor, gradients)

    tiles.run(sweep.function(row_pass_cpu.REDUCE_AND_GRADIENT), gradients, after_tile)
    return sweep.row_state


def _in_one_tile(
    pairs: Pairs,
    reduction: Reduction,
    flags: int,
    row_state: np.ndarray | None,
    upstream: float,
    label_smoothing: float,
    gradients: Gradients,
    deepest: float | None = None,
) -> tuple[Results, bool]:
    """The results of a few pairs, and whether gradients were formed: both ways those of columns not below `deepest`."""
    rows, columns = pairs.rows, pairs.product_columns
    if row_state is None:
        row_state = np.zeros((reduction.row_states, rows.n))
    done, column_state, reference, grad_scale = one_tile_cpu.sweep(
        pairs.score,
        rows,
        columns,
        reductions.code(reduction, flags),
        (pairs.offset, flags, float(pairs.scale), float(upstream), float(label_smoothing), math.inf),
        row_state,
        gradients,
        two_way=deepest is not None,
        wants_grad_scale=pairs.wants_grad_scale,
        deepest=0.0 if deepest is None else deepest,
        log_of_weight_scale=log_of_weight_scale(rows.dtype),
    )
    pairs.add_grad_scale(grad_scale)
    return Results(row_state, column_state.astype(np.float64), reference), done


def fits_one_tile(pairs: Pairs) -> bool:
    """Whether all rows fit one tile, with their scores: what `reduce_both_ways_with_gradient` needs."""
    k, n_columns, _ = pairs.product_columns.operands.shape
    kept = 0 if pairs.score.is_tile else 1
    row_bytes = (k + kept) * n_columns * pairs.product_columns.operands.dtype.itemsize
    return pairs.rows.n <= min(MOST_ROWS, _ONE_TILE_BYTES // row_bytes)


def reduce_both_ways_with_gradient(
    pairs: Pairs,
    reduction: Reduction,
    flags: int,
    *,
    upstream: float,
    label_smoothing: float,
    make_column_weights: Callable[[Results], np.ndarray | None],
    deepest: float,
    gradients: Gradients,
) -> tuple[Results, bool]:
    """Reduce rows and columns and form gradients from one tile: 3 GEMMs, where more tiles need 4.

    `make_column_weights` gets the results and gives the column weights [3, N'], or None where the tile cannot serve:
    then no gradient is formed, as the second result says. It cannot where a column's log-sum-exp is below `deepest`
    next to their reference.
    """
    if one_tile_cpu.serves(pairs.rows, pairs.columns):
        return _in_one_tile(pairs, reduction, flags, None, upstream, label_smoothing, gradients, deepest)
    n = pairs.rows.n
    tiles = ProductTiles(pairs.score, pairs.rows, pairs.product_columns, n)
    sweep = _Sweep(
        pairs,
        tiles,
        flags,
        reduction=reduction,
        kept=_buffers.empty((0, 0) if pairs.score.is_tile else (n, pairs.columns.count), tiles.factors.dtype),
        upstream=upstream,
        label_smoothing=label_smoothing,
    )
    tiles.load(0, n)
    tiles.each_slot(sweep.function(row_pass_cpu.REDUCE), 0, n)
    sweep.states.merge()
    results = sweep.results()
    weights = make_column_weights(results)
    if weights is None:
        return results, False
    sweep.column_weights = weights
    tiles.each_slot(sweep.function(row_pass_cpu.MERGED_GRADIENT), 0, n)
    sweep.add_grad_scale(0, n)
    tiles.backward(0, n, gradients)
    tiles.finish(gradients)
    return results, True


def gradient(
    pairs: Pairs,
    reduction: Reduction,
    flags: int,
    *,
    row_weights: np.ndarray,
    gradients: Gradients,
    column_weights: np.ndarray | None = None,
) -> None:
    """Form gradients from the results of an earlier reduction: `row_weights` [W, N], `column_weights` [3, N']."""
    tiles = pairs.tiles()
    sweep = _Sweep(pairs, tiles, flags, reduction=reduction, row_weights=row_weights, column_weights=column_weights)
    tiles.run(sweep.function(row_pass_cpu.GRADIENT), gradients, sweep.add_grad_scale)


def blocks(pairs: Pairs) -> Iterator[tuple[int, np.ndarray]]:
    """Yield all scores a block of rows at a time: the first row, and [B, N'], which stays until the next is asked for.

    For reductions that a row at a time does not serve: those that keep more of a column than a number.
    """
    tiles = ProductTiles(pairs.score, pairs.rows, pairs.product_columns, most_rows=_MOST_ROWS_OF_BLOCKS)
    untouched = pairs.score.is_tile and pairs.scale == 1.0
    out = tiles.tile[:, 0]
    if not untouched:
        out = _buffers.empty((tiles.size, pairs.columns.count), tiles.factors.dtype)
    sweep = _Sweep(pairs, tiles, kept=out)
    keep = sweep.function(row_pass_cpu.KEEP)
    for first in range(0, tiles.n, tiles.size):
        count = min(tiles.size, tiles.n - first)
        tiles.load(first, count)
        if not untouched:
            # Into a block of its own, so from its row 0 on.
            tiles.each_slot(keep, 0, count)
        yield first, out[:count]


def dense(pairs: Pairs) -> Tensor:
    """All scores [N, N'] of the engine's dtype: the one function whose result is N x N'."""
    tiles = pairs.tiles()
    out = _buffers.empty((tiles.n, pairs.columns.count), tiles.factors.dtype)
    tiles.run(_Sweep(pairs, tiles, kept=out).function(row_pass_cpu.KEEP))
    return torch.from_numpy(out)


def dense_gradient(pairs: Pairs, upstream: Tensor, gradients: Gradients) -> None:
    """Gradients of `dense` for an upstream gradient [N, N']."""
    tiles = pairs.tiles()
    given = upstream.to(pairs.rows.dtype).contiguous().numpy()
    sweep = _Sweep(pairs, tiles, kept=given)
    tiles.run(sweep.function(row_pass_cpu.KEPT_GRADIENT), gradients, sweep.add_grad_scale)
