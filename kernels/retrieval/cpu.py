"""Top-k retrieval on the CPU: scores by the pairwise engine a block of candidates at a time, and a heap for each query.

The engine's rows are the candidates, which stream by, and its columns the queries; so every score of the engine is a
score of retrieval, contexts of several embeddings included. A block of scores [B, Q] stays in cache while each
query compares it with a bar, the worst of its k best so far: one comparison a score in vector code, and a heap
operation for the k (1 + ln(C / k)) candidates of a random order that clear the bar.

This is not one of the engine's reductions, though it sits in the same place: those add a row at a time to one number a
column, with accumulators for each slot that are merged afterwards. Here a slot has k numbers a column, bars rise the
slower the fewer candidates a slot sees, and a merge would be a second selection. So slots are ranges of queries, not of
rows, and what they find does not depend on how many there are.

Cost: one GEMM of 2 Q C K d FLOPs for K embeddings a query (3.8 ns a score at d = 256 on one core), and a comparison a
score (0.1 to 0.25 ns). Memory: bars, heaps (the
result) and one tile, whatever C is. More queries than `_MOST_COLUMNS` are taken in turns, each turn reading all
candidates once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mibfast._threads import parallel, slots
from mibfast.kernels.compilation import inline, kernel
from mibfast.kernels.pairwise import cpu as pairwise
from mibfast.kernels.pairwise import engine_cpu as engine
from mibfast.kernels.pairwise import scores
from mibfast.kernels.pairwise.rows_cpu import Rows
from mibfast.kernels.pairwise.tiles_cpu import Columns
from mibfast.kernels.volume import cpu as volume
from mibfast.kernels.volume.reference import GRAM, TRIANGLE

# Columns of a tile, queries times embeddings a query: with more, blocks of candidates would get too short for the GEMM.
_MOST_COLUMNS = 4096
# Candidates that must be converted are, a piece of this many bytes at a time.
_CONVERTED_BYTES = 8 * 2**20
# Scores that are compared before it is asked whether any of them cleared its bar, and again where one did.
_STRIP, _PART = 256, 32
# Scores a slot, at least: 30 microseconds of work.
_GRAIN = 65536
# Stands behind every candidate: the index of an empty place, whose value is NaN.
_NO_CANDIDATE = np.iinfo(np.int64).max


@inline
def _ranks_before(value: Any, index: Any, other: Any, other_index: Any) -> bool:
    """Larger values first, equal ones by index, NaN after all numbers."""
    if value > other:
        return True
    if value < other:
        return False
    if value == other:
        return index < other_index  # type: ignore[no-any-return]
    missing, other_missing = value != value, other != other
    return index < other_index if missing == other_missing else other_missing  # type: ignore[no-any-return]


@inline
def _sift_down(values: Any, indices: Any, size: Any, value: Any, index: Any) -> None:
    """Put a candidate into the place of the worst, at the root of a heap of `size`, and let it sink."""
    place = 0
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        right = child + 1
        if right < size and _ranks_before(values[child], indices[child], values[right], indices[right]):
            child = right
        if not _ranks_before(value, index, values[child], indices[child]):
            break
        values[place], indices[place] = values[child], indices[child]
        place = child
    values[place], indices[place] = value, index


@inline
def _any_clears(strip: Any, bar: Any, sign: Any) -> bool:
    """Whether any score clears its bar: in vector code, by counting."""
    zero, one = strip.dtype.type(0.0), strip.dtype.type(1.0)
    above = zero
    for j in range(strip.size):
        # Negated, so that a NaN on either side counts: an empty place takes anything.
        above += zero if sign * strip[j] <= bar[j] else one
    return above != zero  # type: ignore[no-any-return]


@kernel
def _offer(block: Any, first: int, begin: int, end: int, sign: float, bars: Any, values: Any, indices: Any) -> None:
    """Offer candidates `first`, `first + 1`, ... with scores [B, Q] to queries begin to end; sign -1 for the lowest."""
    sign = block.dtype.type(sign)
    for local in range(block.shape[0]):
        row, candidate = block[local], first + local
        for start in range(begin, end, _STRIP):
            stop = min(start + _STRIP, end)
            if not _any_clears(row[start:stop], bars[start:stop], sign):
                continue
            for part in range(start, stop, _PART):
                part_stop = min(part + _PART, stop)
                if not _any_clears(row[part:part_stop], bars[part:part_stop], sign):
                    continue
                for query in range(part, part_stop):
                    value = sign * row[query]
                    if value <= bars[query]:
                        continue
                    heap, places = values[query], indices[query]
                    # A later candidate never displaces one of the same score: order of arrival settles ties.
                    if _ranks_before(value, candidate, heap[0], places[0]):
                        _sift_down(heap, places, heap.size, value, candidate)
                        bars[query] = heap[0]


@kernel
def _sort(begin: int, end: int, sign: float, values: Any, indices: Any) -> None:
    """Turn heaps into lists, best first."""
    for query in range(begin, end):
        heap, places = values[query], indices[query]
        for size in range(heap.size - 1, 0, -1):
            worst, place = heap[0], places[0]
            _sift_down(heap, places, size, heap[size], places[size])
            heap[size], places[size] = worst, place
        for j in range(heap.size):
            heap[j] *= sign


@dataclass(frozen=True)
class Ranking:
    """How queries become columns of the engine: a score and its columns, from some queries and the ridge."""

    columns: Callable[[Tensor, float], tuple[scores.Score, Columns]]
    # Whether candidates are made unit.
    unit: bool = False
    # Whether the score depends on the squared norms of candidates, as the engine has them.
    norms: bool = False


def _loaded(query: Tensor, unit: bool) -> Tensor:
    """Queries [Q, d] in the engine's dtype, made unit where asked."""
    rows = Rows(query, unit=unit)
    rows.start(rows.n)
    return rows.block(0, rows.n)


def _embeddings(name: str) -> Ranking:
    """Of a score of two embeddings."""
    score = scores.named(name)

    def columns(query: Tensor, ridge: float) -> tuple[scores.Score, Columns]:
        operand = _loaded(query, False)
        return score, pairwise.EmbeddingColumns(operand, operand.dtype, score).columns

    return Ranking(columns, norms=score.squared_norms)


def _inner_products(operand: Tensor) -> tuple[scores.Score, Columns]:
    return pairwise.INNER_PRODUCT, pairwise.EmbeddingColumns(operand, operand.dtype).columns


def _product(query: Tensor) -> tuple[scores.Score, Columns]:
    wide = query.to(pairwise.accumulation_dtype(query.dtype))
    return _inner_products(wide.prod(1))


def _volumes(kind: str) -> Ranking:
    """Of unit embeddings; the candidate is the anchor."""

    def columns(query: Tensor, ridge: float) -> tuple[scores.Score, Columns]:
        return volume.columns(kind, [_loaded(context, True) for context in query.unbind(1)])

    return Ranking(columns, unit=True, norms=True)


RANKINGS = {
    **{name: _embeddings(name) for name in scores.OF_EMBEDDINGS},
    "cosine": Ranking(lambda query, ridge: _inner_products(_loaded(query, True)), unit=True),
    "ridge_projection": Ranking(lambda query, ridge: pairwise.projection_columns(query.unbind(1), ridge), unit=True),
    "gram_volume": _volumes(GRAM),
    "triangle_area": _volumes(TRIANGLE),
    "symile": Ranking(lambda query, ridge: _product(query)),
}


def _candidates(key: Tensor, entry: Ranking) -> Iterator[tuple[int, Rows]]:
    """Candidates as rows of the engine: all, where they can be read where they lie, else in pieces."""
    wide = pairwise.accumulation_dtype(key.dtype)
    size = key.shape[0]
    if key.dtype != wide or key.stride(1) != 1:
        size = max(1, _CONVERTED_BYTES // (key.shape[1] * wide.itemsize))
    for first in range(0, key.shape[0], size):
        yield first, Rows(key[first : first + size], unit=entry.unit, wants_norms=entry.norms)


def top_k(query: Tensor, key: Tensor, k: int, score: str, ridge: float) -> tuple[Tensor, Tensor]:
    """The k best scores of each query [Q, k], best first, and their indices, int64."""
    query, key = query.detach(), key.detach()
    n, entry = query.shape[0], RANKINGS[score]
    dtype = np.float64 if query.dtype == torch.float64 else np.float32
    values, indices = np.full((n, k), np.nan, dtype), np.full((n, k), _NO_CANDIDATE)
    turn = max(1, _MOST_COLUMNS // (query.shape[1] if query.ndim == 3 else 1))
    for begin in range(0, n, turn):
        end = min(begin + turn, n)
        named, columns = entry.columns(query[begin:end], ridge)
        _search(named, columns, key, entry, values[begin:end], indices[begin:end])
    return torch.from_numpy(values), torch.from_numpy(indices)


def _search(
    score: scores.Score, columns: Columns, key: Tensor, entry: Ranking, values: np.ndarray, indices: np.ndarray
) -> None:
    n, sign = columns.count, 1.0 if score.large_is_alike else -1.0
    bars = np.full(n, np.nan, values.dtype)
    for first_row, rows in _candidates(key, entry):
        for first, block in engine.blocks(engine.Pairs(score, rows, columns)):
            count = slots(n, max(1, _GRAIN // block.shape[0]))
            bounds = [n * slot // count for slot in range(count + 1)]

            def offer(slot: int, block: Any = block, first: int = first_row + first, bounds: Any = bounds) -> None:
                _offer(block, first, bounds[slot], bounds[slot + 1], sign, bars, values, indices)

            parallel(offer, count)
    count = slots(n, max(1, _GRAIN // values.shape[1]))
    parallel(lambda slot: _sort(n * slot // count, n * (slot + 1) // count, sign, values, indices), count)
