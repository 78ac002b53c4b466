"""Gradients of reductions over all pairs in Triton, 3 GEMMs or 4, in one of two ways that `is_recomputed` chooses.

In chunks, 3 GEMMs: a kernel like that of `reduce` writes dL/dtile of a chunk of pairs in the operands' dtype, and two
cuBLAS GEMMs take it to rows and columns, accumulating float32 from one chunk to the next. A pair costs 6 bytes of
traffic in bf16 (one write, two reads), in L2 as far as the chunk fits it. Scores are never stored: as float32, which
they have to be (bf16 scores at a temperature of 0.01 are wrong by 0.4), they would cost 14 bytes a pair.
Recomputed, 4 GEMMs: no pair leaves the chip; a kernel for the rows and one for the columns form every tile again. That
is less than 6 bytes a pair up to d = 128, where there are rows and columns enough for a program each.

With w = dL/dscore = scale grad(...), a score turns w into K dL/dtile, of which are made d rows = sum_k dtile_k b_k and
d b_k = dtile_k^T rows, and into dL/dstatistic of rows and columns, summed here over the tile and, tile after tile in a
fixed order, by torch. dL/dscale is the sum of grad(...) score. Scores of positives that are given take the place of the
tiles', and have a dL/dscore of their own. float16 has no room below 6e-5 for weights: there they are multiplied by 2^10
over the largest upstream gradient, and gradients divided by it.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mibfast.kernels.launch_configuration import Tile, launched
from mibfast.kernels.matrix_product import matrix_product
from mibfast.kernels.pairwise.pairs_triton import (
    AT_ADDRESS,
    GIVEN,
    ONE,
    Pairs,
    Scalar,
    block_of_program,
    block_pointers,
    inner_products,
    load_block,
    load_scalar,
    load_statistics,
)
from mibfast.kernels.pairwise.reductions import Reduction
from mibfast.kernels.pairwise.scores import Score

# What kernels add up over a tile: nothing, grad(...) score, or that, grad(...) and the losses.
_NO_SUMS, _GRADIENT_TIMES_SCORE, _ALL_SUMS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
_SUM_PLANES = (0, 1, 3)
_NOT_SPECIALISED = ["n", "n_columns", "offset", "upstream_stride"]
_NOT_SPECIALISED += ["first_row", "last_row", "first_column", "last_column", "first_sum"]

# A chunk of weights is to stay in L2, 50 MB on Hopper and 40 MB on Ampere, beside what is read.
_CHUNK_BYTES = 32 * 2**20
_LARGEST_RECOMPUTED_DEPTH = 128
_LEAST_RECOMPUTED_COUNT = 8192
# Weights keep all their bits down to 6e-8, and dL/dtile may be 60 times the upstream gradient.
_FLOAT16_LIFT = 2.0**10


@triton.jit
def _tile_gradients(
    tiles,  # K of [ROWS, COLUMNS]
    rows,  # indices in range: [ROWS, 1], or [1, COLUMNS] where columns are the rows of the tile
    columns,  # [1, COLUMNS], or [ROWS, 1]
    valid,  # [ROWS, COLUMNS], which pairs there are
    statistics,  # of rows [N] and of columns [S, N'], or None each
    positives,  # [N], or None
    grad_positives,  # [N], written where positives are given
    numbers,  # the scale, the bias, and what weights are multiplied by
    weights,  # upstream, upstream_stride, row_lse, column_lse and smoothing
    sizes,  # N, N' and the offset of positives
    S: tl.constexpr,
    SCORE: tl.constexpr,
    SCORE_GRADIENT: tl.constexpr,
    GRAD: tl.constexpr,
    FLAGS: tl.constexpr,
):
    """Gradients of tiles, row statistic and column statistics; gradient times score, gradient and losses a pair."""
    scale, bias, multiple = numbers
    upstream, upstream_stride, row_lse, column_lse, smoothing = weights
    n, n_columns, offset = sizes
    row_value, column_values = load_statistics(statistics[0], statistics[1], rows, columns, n_columns, S)
    s = SCORE(tiles, row_value, column_values)
    positive = (rows + offset == columns) & valid
    if positives is not None:
        s = tl.where(positive, tl.load(positives + rows), s)
    w, losses = GRAD(
        s=s,
        scale=scale,
        bias=bias,
        rows=rows,
        columns=columns,
        n=n,
        n_columns=n_columns,
        upstream=upstream,
        upstream_stride=upstream_stride,
        row_lse=row_lse,
        column_lse=column_lse,
        smoothing=smoothing,
        valid=valid,
        positive=positive,
        FLAGS=FLAGS,
        SPECIAL=True,
    )
    times_score = tl.where(valid, w * s, 0.0)
    w = tl.where(valid, w, 0.0)
    losses = tl.where(valid, losses, 0.0)
    grad_score = w * multiple
    if positives is not None:
        tl.store(grad_positives + rows + 0 * columns, grad_score, mask=positive)
        grad_score = tl.where(positive, 0.0, grad_score)
    grad_tiles, grad_row, grad_columns = SCORE_GRADIENT(tiles, row_value, column_values, grad_score)
    return grad_tiles, grad_row, grad_columns, times_score, w, losses


@triton.jit
def _store_sums(sums, size, place, times_score, w, losses, SUMS: tl.constexpr):
    if SUMS != _NO_SUMS:
        tl.store(sums + place, tl.sum(tl.sum(times_score, 1), 0))
    if SUMS == _ALL_SUMS:
        tl.store(sums + size + place, tl.sum(tl.sum(w, 1), 0))
        tl.store(sums + 2 * size + place, tl.sum(tl.sum(losses, 1), 0))


@triton.jit(do_not_specialize=_NOT_SPECIALISED)
def _grad_chunk(
    rows,  # [N, d]
    operands,  # [K, N', d]
    row_statistic,  # [N], or None
    column_statistics,  # [S, N'], or None
    positives,  # [N], scores that take the tiles' place, or None
    grad_positives,  # [N], or None
    scale,  # as SCALE says
    bias,  # as BIAS says
    gain,  # what weights are multiplied by, as GAIN says
    upstream,  # as the reduction takes it, or None
    upstream_stride,
    row_lse,  # [N], float64, or None
    column_lse,  # [N'], float64, or None
    smoothing,
    grad_tiles,  # [K, chunk's rows, chunk's columns], or None
    grad_row_statistic,  # [column blocks, chunk's rows], or None
    grad_column_statistics,  # [S, row blocks, chunk's columns], or None
    sums,  # [planes, programs of all chunks], or None
    n,
    n_columns,
    d,
    offset,
    first_row,
    last_row,
    first_column,
    last_column,
    first_sum,
    sums_size,
    row_stride,
    column_stride,
    tile_stride,
    grad_tiles_stride,
    K: tl.constexpr,
    S: tl.constexpr,
    SCORE: tl.constexpr,
    SCORE_GRADIENT: tl.constexpr,
    GRAD: tl.constexpr,
    FLAGS: tl.constexpr,
    SCALE: tl.constexpr,
    BIAS: tl.constexpr,
    GAIN: tl.constexpr,
    TIMES_SCALE: tl.constexpr,
    SUMS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write dL/dtile of a chunk of pairs."""
    factor, multiple = load_scalar(scale, SCALE), load_scalar(gain, GAIN)
    if TIMES_SCALE:
        multiple = multiple * factor
    program = tl.program_id(0)
    row_blocks, column_blocks = tl.cdiv(last_row - first_row, ROWS), tl.cdiv(last_column - first_column, COLUMNS)
    row_block, column_block = block_of_program(program, row_blocks, column_blocks)
    first, start = first_row + row_block * ROWS, first_column + column_block * COLUMNS
    row, column = first + tl.arange(0, ROWS), start + tl.arange(0, COLUMNS)
    tiles = inner_products(
        block_pointers(rows, row_stride, first, last_row, ROWS),
        None,
        operands,
        column_stride,
        tile_stride,
        start,
        last_column,
        d,
        K=K,
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        DEPTH=DEPTH,
        EVEN=EVEN,
        PRECISION=PRECISION,
    )
    valid = (row < last_row)[:, None] & (column < last_column)[None, :]
    # Everything beyond the edge is masked by `valid`, so one way through serves all tiles: the GEMM hides it.
    tile_gradients, grad_row, grad_columns, times_score, w, losses = _tile_gradients(
        tiles,
        tl.minimum(row, last_row - 1)[:, None],
        tl.minimum(column, last_column - 1)[None, :],
        valid,
        statistics=(row_statistic, column_statistics),
        positives=positives,
        grad_positives=grad_positives,
        numbers=(factor, load_scalar(bias, BIAS), multiple),
        weights=(upstream, upstream_stride, row_lse, column_lse, smoothing),
        sizes=(n, n_columns, offset),
        S=S,
        SCORE=SCORE,
        SCORE_GRADIENT=SCORE_GRADIENT,
        GRAD=GRAD,
        FLAGS=FLAGS,
    )
    local_row, local_column = row_block * ROWS + tl.arange(0, ROWS), column_block * COLUMNS + tl.arange(0, COLUMNS)
    if grad_tiles is not None:
        addresses = grad_tiles + (local_row[:, None] * grad_tiles_stride + local_column[None, :])
        plane_size = (last_row - first_row).to(tl.int64) * grad_tiles_stride
        for k in tl.static_range(K):
            tl.store(addresses + k * plane_size, tile_gradients[k].to(grad_tiles.dtype.element_ty), mask=valid)
    if grad_row_statistic is not None:
        place = column_block * (last_row - first_row) + local_row
        tl.store(grad_row_statistic + place, tl.sum(grad_row, 1), mask=row < last_row)
    if grad_column_statistics is not None:
        for number in tl.static_range(S):
            place = (number * row_blocks + row_block) * (last_column - first_column) + local_column
            tl.store(grad_column_statistics + place, tl.sum(grad_columns[number], 0), mask=column < last_column)
    _store_sums(sums, sums_size, first_sum + program, times_score, w, losses, SUMS)


@triton.jit(do_not_specialize=_NOT_SPECIALISED)
def _recompute(
    own,  # [N, d], or OF_COLUMNS [N', d]
    others,  # [N', d], or [N, d]
    out,  # the gradient, in the shape of `own`
    scale,  # as SCALE says
    bias,  # as BIAS says
    gain,  # what weights are multiplied by, as GAIN says
    undo,  # what gradients are multiplied by, as UNDO says
    upstream,  # as the reduction takes it, or None
    upstream_stride,
    row_lse,  # [N], float64, or None
    column_lse,  # [N'], float64, or None
    smoothing,
    sums,  # [planes, programs], or None
    n,
    n_columns,
    d,
    offset,
    sums_size,
    own_stride,
    other_stride,
    SCORE: tl.constexpr,
    SCORE_GRADIENT: tl.constexpr,
    GRAD: tl.constexpr,
    FLAGS: tl.constexpr,
    SCALE: tl.constexpr,
    BIAS: tl.constexpr,
    GAIN: tl.constexpr,
    UNDO: tl.constexpr,
    TIMES_SCALE: tl.constexpr,
    SUMS: tl.constexpr,
    OF_COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradient of a block of rows, walking the columns, or of columns, walking the rows; one tile, d <= DEPTH.

    ROWS are of the program's own side, COLUMNS of the one that it walks.
    """
    factor, shift, multiple = load_scalar(scale, SCALE), load_scalar(bias, BIAS), load_scalar(gain, GAIN)
    if TIMES_SCALE:
        multiple = multiple * factor
    own_count, other_count = n, n_columns
    if OF_COLUMNS:
        own_count, other_count = n_columns, n
    first = tl.program_id(0) * ROWS
    index = first + tl.arange(0, ROWS)
    own_index = tl.minimum(index, own_count - 1)
    left = load_block(block_pointers(own, own_stride, first, own_count, ROWS), 0, d, DEPTH, EVEN)
    gradient = tl.zeros((ROWS, DEPTH), tl.float32)
    sum_times_score = tl.zeros((ROWS,), tl.float32)
    sum_w, sum_losses = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
    for start in range(0, other_count, COLUMNS):
        other = start + tl.arange(0, COLUMNS)
        other_index = tl.minimum(other, other_count - 1)
        right = load_block(block_pointers(others, other_stride, start, other_count, COLUMNS), 0, d, DEPTH, EVEN)
        tile = tl.dot(left, tl.trans(right), input_precision=PRECISION)
        if OF_COLUMNS:
            rows, columns = other_index[None, :], own_index[:, None]
        else:
            rows, columns = own_index[:, None], other_index[None, :]
        tile_gradients, _row, _columns, times_score, w, losses = _tile_gradients(
            (tile,),
            rows,
            columns,
            (index < own_count)[:, None] & (other < other_count)[None, :],
            statistics=(None, None),
            positives=None,
            grad_positives=None,
            numbers=(factor, shift, multiple),
            weights=(upstream, upstream_stride, row_lse, column_lse, smoothing),
            sizes=(n, n_columns, offset),
            S=0,
            SCORE=SCORE,
            SCORE_GRADIENT=SCORE_GRADIENT,
            GRAD=GRAD,
            FLAGS=FLAGS,
        )
        gradient = tl.dot(tile_gradients[0].to(right.dtype), right, gradient, input_precision=PRECISION)
        if SUMS != _NO_SUMS:
            sum_times_score += tl.sum(times_score, 1)
        if SUMS == _ALL_SUMS:
            sum_w += tl.sum(w, 1)
            sum_losses += tl.sum(losses, 1)
    gradient = gradient * load_scalar(undo, UNDO)
    depth = tl.arange(0, DEPTH)
    addresses = out + index[:, None].to(tl.int64) * d + depth[None, :]
    mask = (index < own_count)[:, None] & (depth < d)[None, :]
    tl.store(addresses, gradient.to(out.dtype.element_ty), mask=mask)
    _store_sums(sums, sums_size, tl.program_id(0), sum_times_score[:, None], sum_w[:, None], sum_losses[:, None], SUMS)


@dataclass(frozen=True)
class Weights:
    """What the weights of pairs depend on besides their scores; `factor` multiplies every gradient."""

    # [N], or [3, max(N, N')] of rows, positives and columns, or [N, N'] of dense scores, float32; None for ones
    upstream: Tensor | None = None
    factor: float = 1.0
    row_lse: Tensor | None = None  # [N], float64, nats
    column_lse: Tensor | None = None  # [N'], float64, nats
    smoothing: float = 0.0


@dataclass(frozen=True)
class Wanted:
    """Which gradients to form, and how many sums over all pairs: none, of w s, or of w s, w and the losses.

    Gradients of rows and operands are of their dtype, or of one that is given.
    """

    rows: bool = True
    operands: bool = True
    statistics: bool = False
    sums: int = 0
    dtype: torch.dtype | None = None


class Gradients(NamedTuple):
    """Gradients, None where not wanted; `sums` is float64, without the weights' factor or the scale."""

    rows: Tensor | None  # [N, d]
    operands: Tensor | None  # [K, N', d]
    row_statistic: Tensor | None  # [N], float32
    column_statistics: Tensor | None  # [S, N'], float32
    positives: Tensor | None  # [N], float32
    sums: Tensor | None  # [1 or 3]

    def embedding_gradients(
        self, rows: Tensor, columns: Tensor, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """The gradients of the rows and of the only operand; one that was not wanted is empty, of a dtype or theirs."""
        grad_rows, grad_columns = self.rows, None if self.operands is None else self.operands[0]
        if grad_rows is None:
            grad_rows = torch.empty_like(rows, dtype=dtype, memory_format=torch.contiguous_format)
        if grad_columns is None:
            grad_columns = torch.empty_like(columns, dtype=dtype, memory_format=torch.contiguous_format)
        return grad_rows, grad_columns


def is_recomputed(n: int, n_columns: int, d: int) -> bool:
    """Whether gradients of one tile's score form every tile twice and store none: see the head of this file."""
    return d <= _LARGEST_RECOMPUTED_DEPTH and min(n, n_columns) >= _LEAST_RECOMPUTED_COUNT


def chunk_shape(n: int, n_columns: int, pair_bytes: int) -> tuple[int, int]:
    """Rows and columns of a chunk of weights: as square as N and N' allow, since a GEMM reads and writes its edges."""
    edge = 1 << ((_CHUNK_BYTES // pair_bytes).bit_length() // 2)
    rows = min(n, max(edge, _CHUNK_BYTES // (pair_bytes * min(n_columns, edge))))
    columns = min(n_columns, max(1, _CHUNK_BYTES // (pair_bytes * rows)))
    return _even(n, rows), _even(n_columns, columns)


def _even(count: int, size: int) -> int:
    """The least multiple of 128 that cuts `count` into no more pieces than `size` does, or `count`."""
    pieces = triton.cdiv(count, size)
    return int(min(count, triton.cdiv(triton.cdiv(count, pieces), 128) * 128))


def gradient(
    score: Score, reduction: Reduction, pairs: Pairs, flags: int, weights: Weights, wanted: Wanted
) -> Gradients:
    """Form gradients, from the results of an earlier reduction where the weights depend on them."""
    backward = _Backward(score, reduction, pairs, flags, weights, wanted, *_gain(pairs, weights))
    plain = pairs.held == 1 and pairs.positives is None
    recomputed = plain and (wanted.rows or wanted.operands) and is_recomputed(pairs.n, pairs.count, pairs.d)
    kernel, form = ("recompute", backward.recomputed) if recomputed else ("chunk", backward.in_chunks)
    light = not recomputed and reduction.is_light(flags)
    # Products are of the operands' dtype and float32, whatever autocast would make of them.
    with torch.cuda.device_of(pairs.rows), torch.autocast(pairs.rows.device.type, enabled=False):
        return launched(f"pairwise.{kernel}", pairs.problem(light), form)


def _gain(pairs: Pairs, weights: Weights) -> tuple[Scalar, Scalar]:
    """What weights are multiplied by, besides the scale unless it is float16, and gradients afterwards."""
    if pairs.rows.dtype != torch.float16:
        return Scalar(weights.factor, GIVEN.value), ONE
    scale = pairs.scale.number()
    if weights.upstream is None:
        return Scalar(_FLOAT16_LIFT, GIVEN.value), _computed(scale * (weights.factor / _FLOAT16_LIFT))
    bound = torch.linalg.vector_norm(weights.upstream, torch.inf)
    bound = torch.where((bound > 0) & (bound < torch.inf), bound, 1.0).double()
    return _computed(_FLOAT16_LIFT / bound), _computed(scale * bound * (weights.factor / _FLOAT16_LIFT))


def _computed(x: float | Tensor) -> Scalar:
    return Scalar(x, (AT_ADDRESS if isinstance(x, Tensor) else GIVEN).value)


@dataclass(frozen=True)
class _Backward:
    """What both ways to form gradients are given."""

    score: Score
    reduction: Reduction
    pairs: Pairs
    flags: int
    weights: Weights
    wanted: Wanted
    gain: Scalar
    undo: Scalar

    def _arguments(self) -> dict[str, Any]:
        """Arguments that both kernels take."""
        upstream = self.weights.upstream
        return {
            "gain": self.gain.value,
            "upstream": upstream,
            "upstream_stride": 0 if upstream is None else upstream.stride(0),
            "row_lse": self.weights.row_lse,
            "column_lse": self.weights.column_lse,
            "smoothing": self.weights.smoothing,
            "SCORE": self.score.triton[0],
            "SCORE_GRADIENT": self.score.triton[1],
            "GRAD": self.reduction.triton[1],
            "FLAGS": self.flags,
            "GAIN": self.gain.kind,
            "TIMES_SCALE": self.pairs.rows.dtype != torch.float16,
        }

    def recomputed(self, tile: Tile) -> Gradients:
        """Form all tiles again for the rows, and again for the columns."""
        pairs, wanted = self.pairs, self.wanted
        rows, columns = pairs.rows, pairs.operands[0]
        results: list[Tensor | None] = [None, None]
        sums = None
        for side, (own, others, needed) in enumerate(((rows, columns, wanted.rows), (columns, rows, wanted.operands))):
            if not needed:
                continue
            programs = triton.cdiv(own.shape[0], tile.rows)
            planes = _SUM_PLANES[wanted.sums] if sums is None else 0
            if planes:
                sums = rows.new_empty(planes, programs, dtype=torch.float32)
            out = results[side] = torch.empty(own.shape, dtype=wanted.dtype or own.dtype, device=own.device)
            _recompute[(programs,)](
                own=own,
                others=others,
                out=out,
                scale=pairs.scale.value,
                bias=pairs.bias.value,
                undo=self.undo.value,
                sums=sums,
                n=pairs.n,
                n_columns=pairs.count,
                d=pairs.d,
                offset=pairs.offset,
                sums_size=programs,
                own_stride=own.stride(0),
                other_stride=others.stride(0),
                **self._arguments(),
                SCALE=pairs.scale.kind,
                BIAS=pairs.bias.kind,
                UNDO=self.undo.kind,
                SUMS=wanted.sums if planes else 0,
                OF_COLUMNS=side == 1,
                **tile.product_arguments(pairs.d, rows.dtype),
            )
        grad_rows, grad_columns = results
        total = None if sums is None else sums.sum(1, dtype=torch.float64)
        return Gradients(grad_rows, None if grad_columns is None else grad_columns[None], None, None, None, total)

    def in_chunks(self, tile: Tile) -> Gradients:
        """Form weights of one chunk of pairs after the other, and multiply them with rows and columns."""
        pairs, wanted, rows, k = self.pairs, self.wanted, self.pairs.rows, self.pairs.k
        empty = partial(torch.empty, device=rows.device)
        chunk_rows, chunk_columns = chunk_shape(pairs.n, pairs.count, k * rows.element_size())
        row_starts, column_starts = range(0, pairs.n, chunk_rows), range(0, pairs.count, chunk_columns)
        # A leading dimension of whole 128 bytes is what cuBLAS reads fastest.
        stride = triton.cdiv(chunk_columns, 64) * 64
        chunk = empty(k * chunk_rows * stride, dtype=rows.dtype) if wanted.rows or wanted.operands else None
        dtype = wanted.dtype or rows.dtype
        grad_rows = grad_operands = grad_row_statistic = grad_column_statistics = None
        if wanted.rows:
            grad_rows = _Sum(empty(rows.shape, dtype=dtype), k * len(column_starts), self.undo)
        if wanted.operands:
            out = empty(pairs.operands.shape, dtype=dtype)
            grad_operands = [_Sum(each, len(row_starts), self.undo) for each in out.unbind()]
        if wanted.statistics and pairs.row_statistic is not None:
            grad_row_statistic = torch.zeros_like(pairs.row_statistic)
        if wanted.statistics and pairs.column_statistics is not None:
            grad_column_statistics = torch.zeros_like(pairs.column_statistics)
        grad_positives = None if pairs.positives is None else torch.empty_like(pairs.positives)

        chunks = [
            (r, min(r + chunk_rows, pairs.n), c, min(c + chunk_columns, pairs.count))
            for r in row_starts
            for c in column_starts
        ]
        blocks = [
            (triton.cdiv(last_row - r, tile.rows), triton.cdiv(last_column - c, tile.columns))
            for r, last_row, c, last_column in chunks
        ]
        sums_size, first_sum = sum(a * b for a, b in blocks), 0
        sums = empty(_SUM_PLANES[wanted.sums], sums_size, dtype=torch.float32) if wanted.sums else None
        for (r, last_row, c, last_column), (row_blocks, column_blocks) in zip(chunks, blocks, strict=True):
            height, breadth = last_row - r, last_column - c
            row_part = column_part = None
            if grad_row_statistic is not None:
                row_part = empty(column_blocks, height, dtype=torch.float32)
            if grad_column_statistics is not None:
                column_part = empty(len(grad_column_statistics), row_blocks, breadth, dtype=torch.float32)
            _grad_chunk[(row_blocks * column_blocks,)](
                **pairs.arguments(tile),
                **self._arguments(),
                grad_positives=grad_positives,
                grad_tiles=chunk,
                grad_row_statistic=row_part,
                grad_column_statistics=column_part,
                sums=sums,
                first_row=r,
                last_row=last_row,
                first_column=c,
                last_column=last_column,
                first_sum=first_sum,
                sums_size=sums_size,
                grad_tiles_stride=stride,
                SUMS=wanted.sums,
            )
            first_sum += row_blocks * column_blocks
            if grad_row_statistic is not None and row_part is not None:
                grad_row_statistic[r:last_row] += row_part.sum(0)
            if grad_column_statistics is not None and column_part is not None:
                grad_column_statistics[:, c:last_column] += column_part.sum(1)
            if chunk is None:
                continue
            for number, w in enumerate(chunk[: k * height * stride].view(k, height, stride)[..., :breadth]):
                if grad_rows is not None:
                    grad_rows.add(r, last_row, w, pairs.operands[number, c:last_column], c == number == 0)
                if grad_operands is not None:
                    grad_operands[number].add(c, last_column, w.T, rows[r:last_row], r == 0)

        def undone(x: Tensor | None) -> Tensor | None:
            return x if x is None or self.undo is ONE else (x * self.undo.value).float()

        for each in grad_operands or ():
            each.finish()
        return Gradients(
            None if grad_rows is None else grad_rows.finish(),
            None if grad_operands is None else out,
            undone(grad_row_statistic),
            undone(grad_column_statistics),
            undone(grad_positives),
            None if sums is None else sums.sum(1, dtype=torch.float64),
        )


class _Sum:
    """A sum of matrix products, kept in float32 where there is more than one or something is left to be undone."""

    def __init__(self, out: Tensor, products: int, undo: Scalar) -> None:
        self._out, self._undo = out, undo
        direct = undo is ONE and (out.dtype == torch.float32 or products == 1)
        self._sum = out if direct else torch.empty(out.shape, dtype=torch.float32, device=out.device)

    def add(self, begin: int, end: int, a: Tensor, b: Tensor, first: bool) -> None:
        """Add a @ b to rows begin to end, or put it there."""
        matrix_product(a, b, self._sum[begin:end], add=not first)

    def finish(self) -> Tensor:
        if self._sum is not self._out:
            torch.mul(self._sum, self._undo.value, out=self._out)
        return self._out
