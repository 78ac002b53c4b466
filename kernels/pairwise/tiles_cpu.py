"""The blocks of a sweep over all pairs on the CPU: how a block of rows becomes a tile, and a tile gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mibfast import _buffers
from mibfast._threads import parallel, slots
from mibfast.kernels.pairwise.rows_cpu import Rows
from mibfast.kernels.pairwise.scores import Score

# GEMMs run at 93% of their full rate on 512 rows and at 98% on 1024, and what a tile adds to the columns' gradient is
# read and written once a tile; above 16 MiB a tile is better short than large, and beyond 64 MiB memory decides.
_LEAST_ROWS, MOST_ROWS = 512, 1024
_TILE_BYTES, _LARGEST_TILE_BYTES = 16 * 2**20, 64 * 2**20
# Scores a slot, at least: 30 microseconds of work.
_GRAIN = 65536


class AnyColumns(Protocol):
    """The columns of a score, which know how its tiles come about."""

    @property
    def count(self) -> int: ...

    def tiles(self, score: Score, rows: Rows) -> Tiles:
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

    def tiles(self, score: Score, rows: Rows) -> Tiles:
        return ProductTiles(score, rows, self)


@dataclass
class Gradients:
    """What a sweep adds gradients to; None where one is not wanted."""

    rows: Tensor | None  # [N, d], added to, contiguous
    columns: Tensor | None  # [K, N', d], written, not added to
    statistics: Tensor | None  # [S, N'], written


def tile_rows(row_bytes: int, most: int = MOST_ROWS) -> int:
    """Rows of a tile whose rows take so many bytes."""
    preferred = min(max(_TILE_BYTES // row_bytes, _LEAST_ROWS), most)
    return max(16, min(preferred, _LARGEST_TILE_BYTES // row_bytes))


def one_thread_serves(n: int, columns: int, itemsize: int) -> bool:
    """Whether a tile [n, columns] is one that no slots are cut for: it is small, or there is one thread."""
    return n <= tile_rows(columns * itemsize) and slots(n, max(1, _GRAIN // columns)) == 1


class Tiles:
    """The blocks of a sweep, and the slots that their rows are cut into; how a tile comes about is a subclass's matter.

    `load` fills the tile [B, K, N'] for a block of rows, row functions turn it into scores and dL/dtile, and
    `backward` and `finish` turn that into gradients.
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
        self.grad_statistics = np.zeros((self.slots, *statistics.shape), rows.numpy_dtype)

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
                self.backward(first, count, gradients)
        if gradients is not None:
            self.finish(gradients)

    def each_slot(self, rows_function: Callable[[int, int, int, int], None], first: int, count: int) -> None:
        """Call `rows_function(first, begin, end, slot)` for the rows of a block, cut into slots."""
        bounds = [count * slot // self.slots for slot in range(self.slots + 1)]
        parallel(lambda slot: rows_function(first, bounds[slot], bounds[slot + 1], slot), self.slots)

    def load(self, first: int, count: int) -> None:
        """Form the tile of a block of rows."""
        raise NotImplementedError

    def backward(self, first: int, count: int, gradients: Gradients) -> None:
        """Turn a tile of gradients into those of columns and rows."""
        raise NotImplementedError

    def scale_columns(self, factor: float, gradients: Gradients) -> None:
        """Multiply what `backward` has gathered for columns so far."""
        raise NotImplementedError

    def finish(self, gradients: Gradients) -> None:
        """Add up what is left when all blocks are done."""
        raise NotImplementedError


class ProductTiles(Tiles):
    """Tiles of inner products, one GEMM each, and two for their gradients."""

    def __init__(
        self, score: Score, rows: Rows, columns: Columns, size: int | None = None, most_rows: int = MOST_ROWS
    ) -> None:
        k, n_columns, self.d = columns.operands.shape
        row_bytes = k * n_columns * columns.operands.dtype.itemsize
        size = min(rows.n, tile_rows(row_bytes, most_rows)) if size is None else size
        super().__init__(rows, columns, size, columns.statistics, k=k, scratch=score.scratch_rows(k), work=k)
        self._flat = columns.operands.view(k * n_columns, self.d)
        self._row_gradient: Tensor | None = None

    def load(self, first: int, count: int) -> None:
        torch.mm(self.rows.block(first, first + count), self._flat.T, out=self.flat_tile[:count])

    def backward(self, first: int, count: int, gradients: Gradients) -> None:
        tile = self.flat_tile[:count]
        if gradients.columns is not None:
            flat_gradient = gradients.columns.view(self._flat.shape)
            weighted = self.rows.weighted(self.factors, count)
            if first == 0:
                torch.mm(tile.T, weighted, out=flat_gradient)
            else:
                flat_gradient.addmm_(tile.T, weighted)
        if gradients.rows is not None or self.rows.wants_gradient:
            if self._row_gradient is None:
                self._row_gradient = torch.empty(self.size, self.d, dtype=self._flat.dtype)
            torch.mm(tile, self._flat, out=self._row_gradient[:count])
            self.rows.add_gradient(first, count, self._row_gradient, self.factors, gradients.rows)

    def scale_columns(self, factor: float, gradients: Gradients) -> None:
        """Multiply the gradients of operands and statistics so far."""
        self.grad_statistics *= factor
        if gradients.columns is not None:
            gradients.columns.mul_(factor)

    def finish(self, gradients: Gradients) -> None:
        """Add up what the slots gathered for the columns' statistics."""
        if gradients.statistics is not None:
            gradients.statistics.copy_(torch.from_numpy(self.grad_statistics.sum(0)))
