"""The pairwise engine on the CPU: reductions over all pairs of a score, one block of rows at a time.

A block of B rows against all K N' columns is one `torch.mm` into a tile [B, K N'] that stays in cache; Numba turns its
inner products into scores, reduces them, and, where a gradient is wanted, replaces them by dL/dtile, which two more
GEMMs turn into the gradients of rows and columns. Nothing of size N x N' is stored.

Cost in GEMMs of 2 N N' K d FLOPs: `reduce` 1; `reduce_with_gradient` 3; `gradient` 3, after a `reduce` so 4 together;
`reduce_both_ways_with_gradient`, for what fits one tile, 3.
The row passes add for each score one exponential (0.43 ns on one core) and a maximum (0.17 ns), against 2 d FLOPs a
GEMM (2 ns at d = 256 on two cores): one tenth of three GEMMs. Memory beyond operands and results is the tile and a few
vectors. Measurements: `benches/notes/cpu-measurements.md`.

Scores and reductions are plug-ins: `scores_cpu.py`, `reductions_cpu.py`. This file knows neither.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mibfast import _buffers
from mibfast._threads import parallel, slots
from mibfast.kernels.compilation import inline, kernel
from mibfast.kernels.pairwise import reductions_cpu as reductions
from mibfast.kernels.pairwise import scores_cpu as scores
from mibfast.kernels.pairwise.rows_cpu import Rows

# GEMMs run at 93% of their full rate on 512 rows and at 98% on 1024, and what a tile adds to the columns' gradient is
# read and written once a tile; above 16 MiB a tile is better short than large, and beyond 64 MiB memory decides.
_LEAST_ROWS, _MOST_ROWS = 512, 1024
# Where a tile is only read once, what a taller one wins in the GEMM (3%) is more than what it loses in cache.
_MOST_ROWS_OF_BLOCKS = 3072
_TILE_BYTES, _LARGEST_TILE_BYTES = 16 * 2**20, 64 * 2**20
# One tile for all pairs saves a quarter of the GEMMs, and may be this large.
_ONE_TILE_BYTES = 16 * 2**20
# Scores a slot, at least: 30 microseconds of work.
_GRAIN = 65536


@inline
def _put_positive(s: Any, row: Any, positive: Any, positives: Any) -> None:
    """Put the score of a row's positive, where it is known apart, in place of the tiles'."""
    if row < positives.size:
        s[positive] = positives[row]


@inline
def _set_positive_aside(s: Any, row: Any, positive: Any, factor: Any, positive_gradient: Any) -> None:
    """Keep dL/ds of a positive whose score is known apart, and leave the pair out of the tiles' gradients."""
    if row < positive_gradient.size:
        positive_gradient[row] = factor * s[positive]
        s[positive] = 0.0


@functools.cache
def _reduce_rows(score: int, reduction: int) -> Callable[..., None]:
    @kernel
    def reduce_rows(
        tile: Any,
        first: int,
        begin: int,
        end: int,
        squared_norms: Any,
        column_statistics: Any,
        positives: Any,
        offset: int,
        flags: int,
        row_state: Any,
        column_state: Any,
        reference: Any,
        scratch: Any,
        kept: Any,
    ) -> None:
        for local in range(begin, end):
            row = first + local
            s = scores.score_row(score, tile[local], squared_norms[local], column_statistics, scratch)
            _put_positive(s, row, row + offset, positives)
            reductions.add_row(reduction, s, row, row + offset, flags, row_state, column_state, reference)
            if kept.size > 0:
                kept[local, :] = s

    return reduce_rows


@functools.cache
def _reduce_and_weigh_rows(score: int, reduction: int) -> Callable[..., None]:
    @kernel
    def reduce_and_weigh_rows(
        tile: Any,
        first: int,
        begin: int,
        end: int,
        squared_norms: Any,
        column_statistics: Any,
        positives: Any,
        offset: int,
        flags: int,
        row_state: Any,
        column_state: Any,
        reference: Any,
        scratch: Any,
        upstream: float,
        label_smoothing: float,
        factors: Any,
        column_gradient: Any,
        squared_norm_gradient: Any,
        positive_gradient: Any,
    ) -> None:
        for local in range(begin, end):
            row = first + local
            tiles = tile[local]
            s = scores.score_row(score, tiles, squared_norms[local], column_statistics, scratch)
            _put_positive(s, row, row + offset, positives)
            total = reductions.add_row(reduction, s, row, row + offset, flags, row_state, column_state, reference)
            factor = reductions.weigh_added_row(reduction, s, row + offset, flags, total, upstream, label_smoothing)
            factors[local] = factor
            _set_positive_aside(s, row, row + offset, factor, positive_gradient)
            squared_norm_gradient[local] = scores.score_gradient_row(
                score,
                tiles,
                squared_norms[local],
                column_statistics,
                s,
                tile.dtype.type(factor),
                column_gradient,
                scratch,
            )

    return reduce_and_weigh_rows


@functools.cache
def _weigh_rows(score: int, reduction: int) -> Callable[..., None]:
    @kernel
    def weigh_rows(
        tile: Any,
        first: int,
        begin: int,
        end: int,
        squared_norms: Any,
        column_statistics: Any,
        positives: Any,
        offset: int,
        flags: int,
        row_weights: Any,
        column_weights: Any,
        scratch: Any,
        factors: Any,
        column_gradient: Any,
        squared_norm_gradient: Any,
        positive_gradient: Any,
    ) -> None:
        for local in range(begin, end):
            row = first + local
            tiles = tile[local]
            s = scores.score_row(score, tiles, squared_norms[local], column_statistics, scratch)
            _put_positive(s, row, row + offset, positives)
            factor = reductions.weigh_row(reduction, s, row, row + offset, flags, row_weights, column_weights)
            factors[local] = factor
            _set_positive_aside(s, row, row + offset, factor, positive_gradient)
            squared_norm_gradient[local] = scores.score_gradient_row(
                score,
                tiles,
                squared_norms[local],
                column_statistics,
                s,
                tile.dtype.type(factor),
                column_gradient,
                scratch,
            )

    return weigh_rows


@functools.cache
def _weigh_merged_rows(score: int, reduction: int) -> Callable[..., None]:
    @kernel
    def weigh_merged_rows(
        tile: Any,
        begin: int,
        end: int,
        squared_norms: Any,
        column_statistics: Any,
        offset: int,
        flags: int,
        row_state: Any,
        column_weights: Any,
        scratch: Any,
        kept: Any,
        upstream: float,
        label_smoothing: float,
        factors: Any,
        column_gradient: Any,
        squared_norm_gradient: Any,
        positive_gradient: Any,
    ) -> None:
        for row in range(begin, end):
            tiles = tile[row]
            s = kept[row] if kept.size > 0 else tiles[0]
            factor = reductions.weigh_merged_row(
                reduction, s, row, row + offset, flags, row_state, column_weights, upstream, label_smoothing
            )
            factors[row] = factor
            _set_positive_aside(s, row, row + offset, factor, positive_gradient)
            squared_norm_gradient[row] = scores.score_gradient_row(
                score,
                tiles,
                squared_norms[row],
                column_statistics,
                s,
                tile.dtype.type(factor),
                column_gradient,
                scratch,
            )

    return weigh_merged_rows


@functools.cache
def _reduce_columns(score: int) -> Callable[..., None]:
    @kernel
    def reduce_columns(
        tile: Any,
        first: int,
        begin: int,
        end: int,
        squared_norms: Any,
        column_statistics: Any,
        positives: Any,
        offset: int,
        excluded: bool,
        clip: float,
        state: Any,
        scratch: Any,
    ) -> None:
        maxima, sums = state[0], state[1]
        bound = tile.dtype.type(clip)
        maxima[:] = -np.inf
        sums[:] = 0.0
        for local in range(begin, end):
            s = scores.score_row(score, tile[local], squared_norms[local], column_statistics, scratch)
            _put_positive(s, first + local, first + local + offset, positives)
            reductions.clamp(s, bound)
            if excluded:
                reductions.set_positive(s, first + local + offset, -np.inf)
            reductions.raise_maxima(s, maxima)
        for local in range(begin, end):
            s = scores.score_row(score, tile[local], squared_norms[local], column_statistics, scratch)
            _put_positive(s, first + local, first + local + offset, positives)
            reductions.clamp(s, bound)
            if excluded:
                reductions.set_positive(s, first + local + offset, -np.inf)
            reductions.add_to_sums(s, maxima, sums)

    return reduce_columns


@functools.cache
def _score_rows(score: int) -> Callable[..., None]:
    @kernel
    def score_rows(
        tile: Any,
        first: int,
        begin: int,
        end: int,
        squared_norms: Any,
        column_statistics: Any,
        positives: Any,
        scratch: Any,
        out: Any,
    ) -> None:
        for local in range(begin, end):
            row = first + local
            s = scores.score_row(score, tile[local], squared_norms[local], column_statistics, scratch)
            _put_positive(s, row, row, positives)
            out[row, :] = s

    return score_rows


@functools.cache
def _score_gradient_rows(score: int) -> Callable[..., None]:
    @kernel
    def score_gradient_rows(
        tile: Any,
        first: int,
        begin: int,
        end: int,
        squared_norms: Any,
        column_statistics: Any,
        scratch: Any,
        upstream: Any,
        column_gradient: Any,
        squared_norm_gradient: Any,
        positive_gradient: Any,
    ) -> None:
        one = tile.dtype.type(1.0)
        for local in range(begin, end):
            row, tiles = first + local, tile[local]
            s = scores.score_row(score, tiles, squared_norms[local], column_statistics, scratch)
            s[:] = upstream[row]
            _set_positive_aside(s, row, row, 1.0, positive_gradient)
            squared_norm_gradient[local] = scores.score_gradient_row(
                score, tiles, squared_norms[local], column_statistics, s, one, column_gradient, scratch
            )

    return score_gradient_rows


class AnyColumns(Protocol):
    """The columns of a score, which know how its tiles come about."""

    @property
    def count(self) -> int: ...

    def tiles(self, score: int, rows: Rows) -> Tiles:
        """The blocks of a sweep over all pairs with these rows."""
        ...


@dataclass(frozen=True)
class Columns:
    """The columns of a score: K tiles' operands [K, N', d] and statistics [S, N'], contiguous, of one dtype."""

    operands: Tensor
    statistics: Tensor

    @property
    def count(self) -> int:
        return int(self.operands.shape[1])

    def tiles(self, score: int, rows: Rows) -> Tiles:
        return ProductTiles(score, rows, self)


@dataclass
class Gradients:
    """What a sweep adds gradients to; None where one is not wanted."""

    rows: Tensor | None  # [N, d], added to, contiguous
    columns: Tensor | None  # [K, N', d], written, not added to
    statistics: Tensor | None  # [S, N'], written


def _tile_rows(row_bytes: int, most: int = _MOST_ROWS) -> int:
    preferred = min(max(_TILE_BYTES // row_bytes, _LEAST_ROWS), most)
    return max(16, min(preferred, _LARGEST_TILE_BYTES // row_bytes))


class Tiles:
    """The blocks of a sweep, and the slots that their rows are cut into; how a tile comes about is a subclass's matter.

    `load` fills the tile [B, K, N'] for a block of rows, row functions turn it into scores and dL/dtile, and
    `bring_back` and `finish` turn that into gradients.
    """

    def __init__(
        self, rows: Rows, columns: AnyColumns, size: int, statistics: Tensor, *, k: int = 1, scratch: int = 1, work: int
    ) -> None:
        """`work`: what a score of all its tiles takes, in passes over the tile."""
        self.rows, self.columns, self.n, self.size = rows, columns, rows.n, size
        n_columns = columns.count
        rows.start(size)
        self.flat_tile = torch.from_numpy(_buffers.empty((size, k * n_columns), rows.numpy_dtype))
        self.tile = self.flat_tile.numpy().reshape(size, k, n_columns)
        self.slots = slots(size, max(1, _GRAIN // (n_columns * work)))
        self.scratch = np.empty((self.slots, scratch, n_columns if scratch > 1 else 1), rows.numpy_dtype)
        self.factors = np.ones(size, rows.numpy_dtype)
        self.statistics = statistics.numpy()
        self.statistics_gradient = np.zeros((self.slots, *statistics.shape), rows.numpy_dtype)

    def run(
        self,
        rows_function: Callable[[int, int, int, int], None],
        gradients: Gradients | None = None,
        after_tile: Callable[[int, int], None] = lambda first, count: None,
    ) -> None:
        """Call `rows_function(first, begin, end, slot)` for every slot of every block, once its tile is there."""
        for first in range(0, self.n, self.size):
            count = min(self.size, self.n - first)
            self.load(first, count)
            self.each_slot(rows_function, first, count)
            after_tile(first, count)
            if gradients is not None:
                self.bring_back(first, count, gradients)
        if gradients is not None:
            self.finish(gradients)

    def each_slot(self, rows_function: Callable[[int, int, int, int], None], first: int, count: int) -> None:
        """Call `rows_function(first, begin, end, slot)` for the rows of a block, cut into slots."""
        bounds = [count * slot // self.slots for slot in range(self.slots + 1)]
        parallel(lambda slot: rows_function(first, bounds[slot], bounds[slot + 1], slot), self.slots)

    def load(self, first: int, count: int) -> None:
        """Form the tile of a block of rows."""
        raise NotImplementedError

    def bring_back(self, first: int, count: int, gradients: Gradients) -> None:
        """Turn a tile of gradients into those of columns and rows."""
        raise NotImplementedError

    def scale_columns(self, factor: float, gradients: Gradients) -> None:
        """Multiply what `bring_back` has gathered for columns so far."""
        raise NotImplementedError

    def finish(self, gradients: Gradients) -> None:
        """Add up what is left when all blocks are done."""
        raise NotImplementedError


class ProductTiles(Tiles):
    """Tiles of inner products, one GEMM each, and two for their gradients."""

    def __init__(
        self, score: int, rows: Rows, columns: Columns, size: int | None = None, most_rows: int = _MOST_ROWS
    ) -> None:
        k, n_columns, self.d = columns.operands.shape
        row_bytes = k * n_columns * columns.operands.dtype.itemsize
        size = min(rows.n, _tile_rows(row_bytes, most_rows)) if size is None else size
        scratch = scores.scratch_rows(score, k)
        super().__init__(rows, columns, size, columns.statistics, k=k, scratch=scratch, work=k)
        self._flat = columns.operands.view(k * n_columns, self.d)
        self._row_gradient: Tensor | None = None

    def load(self, first: int, count: int) -> None:
        torch.mm(self.rows.block(first, first + count), self._flat.T, out=self.flat_tile[:count])

    def bring_back(self, first: int, count: int, gradients: Gradients) -> None:
        tile = self.flat_tile[:count]
        if gradients.columns is not None:
            flat_gradient = gradients.columns.view(self._flat.shape)
            weighted = self.rows.weighted(self.factors, count)
            if first == 0:
                torch.mm(tile.T, weighted, out=flat_gradient)
            else:
                flat_gradient.addmm_(tile.T, weighted)
        if gradients.rows is not None or self.rows.scaled:
            if self._row_gradient is None:
                self._row_gradient = torch.empty(self.size, self.d, dtype=self._flat.dtype)
            torch.mm(tile, self._flat, out=self._row_gradient[:count])
            self.rows.add_gradient(first, count, self._row_gradient, self.factors, gradients.rows)

    def scale_columns(self, factor: float, gradients: Gradients) -> None:
        """Multiply the gradients of operands and statistics so far."""
        self.statistics_gradient *= factor
        if gradients.columns is not None:
            gradients.columns.mul_(factor)

    def finish(self, gradients: Gradients) -> None:
        """Add up what the slots gathered for the columns' statistics."""
        if gradients.statistics is not None:
            gradients.statistics.copy_(torch.from_numpy(self.statistics_gradient.sum(0)))


class _ColumnStates:
    """Partial results over rows, one a slot and tile, merged into float64 after each tile."""

    def __init__(self, tiles: Tiles, reduction: int, flags: int) -> None:
        self.wanted = reduction in reductions.OVER_COLUMNS or bool(flags & reductions.TOTALS)
        width = tiles.columns.count if self.wanted else 1
        self.slots = np.zeros((tiles.slots, 2, width), tiles.factors.dtype)
        self.references = np.full((tiles.slots, 1), -np.inf, tiles.factors.dtype)
        self.whole = np.zeros((2, width))
        self.reference = -np.inf

    def merge(self, *_: int) -> None:
        if self.wanted:
            self.reference = reductions.merge_columns(self.slots, self.references, self.whole, self.reference)
            self.slots.fill(0.0)
            self.references.fill(-np.inf)


def reduce(
    score: int,
    reduction: int,
    rows: Rows,
    columns: AnyColumns,
    offset: int,
    flags: int,
    row_state: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Reduce all pairs: the row state [5, N], the column state [2, N'] and the reference of its sums, float64.

    A reduction that is given something for each row finds it in `row_state`, which is zeros otherwise.
    """
    tiles = columns.tiles(score, rows)
    row_state = np.zeros((reductions.ROW_STATES, tiles.n)) if row_state is None else row_state
    states = _ColumnStates(tiles, reduction, flags)
    kernel_of_rows, nothing = _reduce_rows(score, reduction), np.empty((0, 0), tiles.factors.dtype)

    def of_rows(first: int, begin: int, end: int, slot: int) -> None:
        kernel_of_rows(
            tiles.tile,
            first,
            begin,
            end,
            rows.squared_norms,
            tiles.statistics,
            rows.positives,
            offset,
            flags,
            row_state,
            states.slots[slot],
            states.references[slot],
            tiles.scratch[slot],
            nothing,
        )

    tiles.run(of_rows, after_tile=states.merge)
    return row_state, states.whole, states.reference


def reduce_columns(
    score: int, rows: Rows, columns: AnyColumns, offset: int, excluded: bool, clip: float = math.inf
) -> tuple[np.ndarray, np.ndarray]:
    """Maxima of the columns and sums of exp_weight(score - maximum), [N'] float64, with a maximum for each column.

    Of scores brought into [-clip, clip].
    """
    tiles = columns.tiles(score, rows)
    states = np.empty((tiles.slots, 2, columns.count), tiles.factors.dtype)
    maxima, sums = np.full(columns.count, -np.inf), np.zeros(columns.count)
    kernel_of_rows = _reduce_columns(score)

    def of_rows(first: int, begin: int, end: int, slot: int) -> None:
        kernel_of_rows(
            tiles.tile,
            first,
            begin,
            end,
            rows.squared_norms,
            tiles.statistics,
            rows.positives,
            offset,
            excluded,
            clip,
            states[slot],
            tiles.scratch[slot],
        )

    @np.errstate(all="ignore")
    def merge(*_: int) -> None:
        for state in states.astype(np.float64):
            higher = np.maximum(maxima, state[0])
            finite = np.where(higher == -np.inf, 0.0, higher)
            sums[:] = sums * np.exp(maxima - finite) + state[1] * np.exp(state[0] - finite)
            maxima[:] = higher

    tiles.run(of_rows, after_tile=merge)
    return maxima, sums


def reduce_with_gradient(
    score: int,
    reduction: int,
    rows: Rows,
    columns: AnyColumns,
    offset: int,
    flags: int,
    *,
    upstream: float,
    label_smoothing: float,
    gradients: Gradients,
    row_state: np.ndarray | None = None,
    weigh_block: Callable[[np.ndarray, np.ndarray, int, int], float] | None = None,
) -> np.ndarray:
    """Reduce rows and form the gradients of `upstream` times their losses' sum in one sweep: the row state [5, N].

    `row_state` as in :func:`reduce`. Where rows have weights that are known only from their results,
    `weigh_block(row_state, factors, first, count)` gets those of each block in turn, multiplies the factors [B] of its
    rows, and returns what to multiply the columns' gradients so far by; for scores without statistics.
    """
    tiles = columns.tiles(score, rows)
    row_state = np.zeros((reductions.ROW_STATES, tiles.n)) if row_state is None else row_state
    states = _ColumnStates(tiles, reduction, flags)
    kernel_of_rows = _reduce_and_weigh_rows(score, reduction)

    def of_rows(first: int, begin: int, end: int, slot: int) -> None:
        kernel_of_rows(
            tiles.tile,
            first,
            begin,
            end,
            rows.squared_norms,
            tiles.statistics,
            rows.positives,
            offset,
            flags,
            row_state,
            states.slots[slot],
            states.references[slot],
            tiles.scratch[slot],
            upstream,
            label_smoothing,
            tiles.factors,
            tiles.statistics_gradient[slot],
            rows.squared_norm_gradient,
            rows.positive_gradient,
        )

    def after_tile(first: int, count: int) -> None:
        states.merge()
        if weigh_block is not None:
            factor = weigh_block(row_state, tiles.factors, first, count)
            if first and factor != 1.0:
                tiles.scale_columns(factor, gradients)

    tiles.run(of_rows, gradients, after_tile)
    return row_state


def fits_one_tile(rows: Rows, columns: Columns, score: int = scores.INNER_PRODUCT) -> bool:
    """Whether all rows fit one tile, with their scores: what `reduce_both_ways_with_gradient` needs."""
    k, n_columns, _ = columns.operands.shape
    kept = 0 if scores.is_tile(score) else 1
    row_bytes = (k + kept) * n_columns * columns.operands.dtype.itemsize
    return rows.n <= min(_MOST_ROWS, _ONE_TILE_BYTES // row_bytes)


def reduce_both_ways_with_gradient(
    score: int,
    reduction: int,
    rows: Rows,
    columns: Columns,
    offset: int,
    flags: int,
    *,
    upstream: float,
    label_smoothing: float,
    weigh_columns: Callable[[np.ndarray, np.ndarray, float], np.ndarray | None],
    gradients: Gradients,
) -> tuple[np.ndarray, np.ndarray, float, bool]:
    """Reduce rows and columns and form gradients from one tile: 3 GEMMs, where more tiles need 4.

    `weigh_columns` gets the row state, the column state and its reference, and gives the column weights [3, N'], or
    None where the tile cannot serve: then no gradient is formed, as the last result says. The others are those of
    `reduce`.
    """
    tiles = ProductTiles(score, rows, columns, rows.n)
    row_state, states = np.zeros((reductions.ROW_STATES, tiles.n)), _ColumnStates(tiles, reduction, flags)
    add_rows, weigh_rows = _reduce_rows(score, reduction), _weigh_merged_rows(score, reduction)
    kept = _buffers.empty((0, 0) if scores.is_tile(score) else (tiles.n, columns.count), tiles.factors.dtype)

    def add(first: int, begin: int, end: int, slot: int) -> None:
        add_rows(
            tiles.tile,
            first,
            begin,
            end,
            rows.squared_norms,
            tiles.statistics,
            rows.positives,
            offset,
            flags,
            row_state,
            states.slots[slot],
            states.references[slot],
            tiles.scratch[slot],
            kept,
        )

    tiles.load(0, tiles.n)
    tiles.each_slot(add, 0, tiles.n)
    states.merge()
    weights = weigh_columns(row_state, states.whole, states.reference)
    if weights is None:
        return row_state, states.whole, states.reference, False

    def weigh(first: int, begin: int, end: int, slot: int) -> None:
        weigh_rows(
            tiles.tile,
            begin,
            end,
            rows.squared_norms,
            tiles.statistics,
            offset,
            flags,
            row_state,
            weights,
            tiles.scratch[slot],
            kept,
            upstream,
            label_smoothing,
            tiles.factors,
            tiles.statistics_gradient[slot],
            rows.squared_norm_gradient,
            rows.positive_gradient,
        )

    tiles.each_slot(weigh, 0, tiles.n)
    tiles.bring_back(0, tiles.n, gradients)
    tiles.finish(gradients)
    return row_state, states.whole, states.reference, True


def gradient(
    score: int,
    reduction: int,
    rows: Rows,
    columns: AnyColumns,
    offset: int,
    flags: int,
    *,
    row_weights: np.ndarray,
    column_weights: np.ndarray,
    gradients: Gradients,
) -> None:
    """Form gradients from the results of an earlier reduction: `row_weights` [5, N], `column_weights` [3, N']."""
    tiles = columns.tiles(score, rows)
    kernel_of_rows = _weigh_rows(score, reduction)

    def of_rows(first: int, begin: int, end: int, slot: int) -> None:
        kernel_of_rows(
            tiles.tile,
            first,
            begin,
            end,
            rows.squared_norms,
            tiles.statistics,
            rows.positives,
            offset,
            flags,
            row_weights,
            column_weights,
            tiles.scratch[slot],
            tiles.factors,
            tiles.statistics_gradient[slot],
            rows.squared_norm_gradient,
            rows.positive_gradient,
        )

    tiles.run(of_rows, gradients)


def blocks(score: int, rows: Rows, columns: Columns) -> Iterator[tuple[int, np.ndarray]]:
    """Yield all scores a block of rows at a time: the first row, and [B, N'], which stays until the next is asked for.

    For reductions that a row at a time does not serve: those that keep more of a column than a number.
    """
    tiles = ProductTiles(score, rows, columns, most_rows=_MOST_ROWS_OF_BLOCKS)
    kernel_of_rows = None if score == scores.INNER_PRODUCT else _score_rows(score)
    out = tiles.tile[:, 0]
    if kernel_of_rows is not None:
        out = _buffers.empty((tiles.size, columns.count), tiles.factors.dtype)

    def of_rows(first: int, begin: int, end: int, slot: int) -> None:
        assert kernel_of_rows is not None
        # Into a block of its own, so from its row 0 on.
        kernel_of_rows(
            tiles.tile,
            0,
            begin,
            end,
            rows.squared_norms,
            tiles.statistics,
            rows.positives,
            tiles.scratch[slot],
            out,
        )

    for first in range(0, tiles.n, tiles.size):
        count = min(tiles.size, tiles.n - first)
        tiles.load(first, count)
        if kernel_of_rows is not None:
            tiles.each_slot(of_rows, first, count)
        yield first, out[:count]


def dense(score: int, rows: Rows, columns: Columns) -> Tensor:
    """All scores [N, N'] of the engine's dtype: the one function whose result is N x N'."""
    tiles = ProductTiles(score, rows, columns)
    out = _buffers.empty((tiles.n, columns.count), tiles.factors.dtype)
    kernel_of_rows = _score_rows(score)

    def of_rows(first: int, begin: int, end: int, slot: int) -> None:
        kernel_of_rows(
            tiles.tile,
            first,
            begin,
            end,
            rows.squared_norms,
            tiles.statistics,
            rows.positives,
            tiles.scratch[slot],
            out,
        )

    tiles.run(of_rows)
    return torch.from_numpy(out)


def dense_gradient(score: int, rows: Rows, columns: Columns, upstream: Tensor, gradients: Gradients) -> None:
    """Gradients of `dense` for an upstream gradient [N, N']."""
    tiles = ProductTiles(score, rows, columns)
    weights = upstream.to(columns.operands.dtype).contiguous().numpy()
    kernel_of_rows = _score_gradient_rows(score)

    def of_rows(first: int, begin: int, end: int, slot: int) -> None:
        kernel_of_rows(
            tiles.tile,
            first,
            begin,
            end,
            rows.squared_norms,
            tiles.statistics,
            tiles.scratch[slot],
            weights,
            tiles.statistics_gradient[slot],
            rows.squared_norm_gradient,
            rows.positive_gradient,
        )

    tiles.run(of_rows, gradients)
