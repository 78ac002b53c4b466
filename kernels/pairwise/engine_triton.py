"""The pairwise engine in Triton: reductions over all pairs of a score, and their gradients, a tile of pairs at a time.

With N rows [N, d] and N' columns of K operands [K, N', d], a GEMM is 2 N N' K d FLOPs.

- `reduce`, 1 GEMM: programs own blocks of rows and walk the columns, or a range of them where the blocks are fewer than
  the multiprocessors. The state of a block of rows stays in registers. That of the columns is one for each program
  and not for each block: the program adds its next block to it where it lies, [planes, programs, N'] float32.
  Both are merged afterwards, in a fixed order, by whoever called. One sweep so serves rows, columns or both, whatever
  the reduction. Workspace: 8 bytes (12 with totals) a program and column, and programs are so few that it stays within
  8 GiB: 132 of them and N' = 2^20 take 1.0 GiB (1.5). It is read and written once for each column and block of 128
  rows, 16 bytes for 256 d FLOPs: at d = 256 a fourth of a picosecond where the GEMM takes 83.
- `gradient`, with `reduce` 4 GEMMs or 5, in one of two ways that `is_recomputed` chooses between.
  In chunks, 3 GEMMs: a kernel like that of `reduce` writes dL/dtile of a chunk of pairs in the operands' dtype, and two
  cuBLAS GEMMs take it to rows and columns, accumulating float32 from one chunk to the next. A pair costs 6 bytes of
  traffic in bf16 (one write, two reads), in L2 as far as the chunk fits it. Scores are never stored: cuBLAS would have
  to write them as float32 (bf16 scores at a temperature of 0.01 are wrong by 0.4) and another kernel to read and
  rewrite them, 14 bytes a pair in place of 6, which is more time than what cuBLAS wins over Triton's GEMM at d < 1000.
  Recomputed, 4 GEMMs: no pair leaves the chip; a kernel for the rows and one for the columns form every tile again.
  The fourth GEMM and a second exponential cost 0.5 ps a pair at d = 64 and 0.8 at d = 128 (650 TFLOP/s in Triton's
  GEMM, 3.7e12 exponentials a second), 6 bytes 1.25 at 4.8 TB/s: so up to d = 128, where there are rows and columns
  enough for a program each.
- `dense`, 1 GEMM, stores the scores themselves; their gradient is `gradient` by the reduction GIVEN, in chunks.

Floor on an H200 (989 TFLOP/s dense bf16 by datasheet, about 790 by cuBLAS), N = N' = 32768, d = 512: a GEMM is 1.10
TFLOP and 1.4 ms, so forward 1.4 and both 5.6 ms. Predicted: forward 2.0 ms, in chunks 4.9, both 6.9, of which 1.0 ms
are traffic of weights that L2 does not hold. Measured: not run.

The contract of scores stands in `scores/`, that of reductions in `reductions/`; this file knows none of them. For the
backward, with w = dL/dscore = scale grad(...): a score turns w into K dL/dtile, of which are made
d rows = sum_k dtile_k b_k and d b_k = dtile_k^T rows, and into dL/dstatistic of rows and columns, summed here over the
tile and, tile after tile in a fixed order, by torch. dL/dscale is the sum of grad(...) score. Positives whose
scores are known apart, better than tiles give them, take the tiles' place, and their dL/dscore is collected apart.
float16 has no room below 6e-5 for weights: there they are multiplied by 2^10 over the largest upstream gradient, and
gradients divided by it.
"""

# ruff: noqa: RUF005 - jit functions build tuples by addition
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,assignment"
from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mibfast.kernels import launch_configuration
from mibfast.kernels.launch_configuration import Problem, Tile
from mibfast.kernels.matrix_product import matrix_product
from mibfast.kernels.pairwise.reductions import Reduction
from mibfast.kernels.pairwise.scores import Score

# What `load_scalar` finds: a number, a number at an address, or at an address the number's inverse.
_GIVEN, _AT_ADDRESS, _INVERSE_AT_ADDRESS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
# What the gradient's kernels add up of each tile: nothing, grad(...) score, or that, grad(...) and the losses.
_NO_SUMS, _ALONG, _ALL_SUMS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
_NOT_SPECIALISED = ["n", "n_columns", "offset", "upstream_stride"]
_NOT_SPECIALISED += ["first_row", "last_row", "first_column", "last_column", "first_sum"]

_LARGEST_WORKSPACE = 8 * 2**30
# A chunk of weights is to stay in L2, 50 MB on Hopper and 40 MB on Ampere, beside what is read.
_CHUNK_BYTES = 32 * 2**20
_LARGEST_RECOMPUTED_DEPTH = 128
_LEAST_RECOMPUTED_COUNT = 8192
# Weights keep all their bits down to 6e-8, and dL/dtile may be 60 times the upstream gradient.
_FLOAT16_LIFT = 2.0**10


@triton.jit
def load_scalar(x, KIND: tl.constexpr):
    """A float32 scalar; the inverse of one that is not positive and finite is NaN."""
    if KIND == _GIVEN:
        value = tl.cast(x, tl.float32)
    else:
        value = tl.load(x).to(tl.float64)
        if KIND == _INVERSE_AT_ADDRESS:
            value = tl.where((value > 0.0) & (value < float("inf")), 1.0 / value, float("nan"))
        value = value.to(tl.float32)
    return value


@triton.jit
def _block(x, stride, first, last, SIZE: tl.constexpr):
    """Pointers to rows of x from `first` on, [SIZE]: those from `last` on are the row before it, again."""
    index = tl.minimum(tl.arange(0, SIZE), last - 1 - first)
    return x + tl.cast(first, tl.int64) * stride + index * stride


@triton.jit
def operand(pointers, start, d, DEPTH: tl.constexpr, EVEN: tl.constexpr):
    """Numbers `start` to `start + DEPTH` of each row, zeros from d on: [SIZE, DEPTH]."""
    index = start + tl.arange(0, DEPTH)
    addresses = pointers[:, None] + index[None, :]
    if EVEN:
        return tl.load(addresses)
    return tl.load(addresses, mask=index[None, :] < d, other=0.0)


@triton.jit
def _inner_products(
    a, b, d, A: tl.constexpr, B: tl.constexpr, DEPTH: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr
):
    """Inner products [A, B] of the rows at pointers a [A] and b [B]."""
    tile = tl.zeros((A, B), tl.float32)
    for start in range(0, d, DEPTH):
        left = operand(a, start, d, DEPTH, EVEN)
        right = operand(b, start, d, DEPTH, EVEN)
        tile = tl.dot(left, tl.trans(right), tile, input_precision=PRECISION)
    return tile


@triton.jit
def _statistics(x, stride, index, S: tl.constexpr):
    """Statistics S of columns, a tuple in the shape of `index`."""
    found = ()
    for number in tl.static_range(S):
        found = found + (tl.load(x + number * stride + index),)
    return found


@triton.jit(do_not_specialize=_NOT_SPECIALISED)
def _reduce(
    rows,
    operands,
    row_statistic,
    column_statistics,
    positives,
    scale,
    bias,
    row_states,
    column_states,
    positive_scores,
    n,
    n_columns,
    d,
    offset,
    row_stride,
    column_stride,
    tile_stride,
    split_size,
    K: tl.constexpr,
    S: tl.constexpr,
    SCORE: tl.constexpr,
    ADD: tl.constexpr,
    ROW_PLANES: tl.constexpr,
    COLUMN_PLANES: tl.constexpr,
    MAXIMUM: tl.constexpr,
    FLAGS: tl.constexpr,
    SCALE: tl.constexpr,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    WHOLE: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    group, groups = tl.program_id(0), tl.num_programs(0)
    split, splits = tl.program_id(1), tl.num_programs(1)
    factor, shift = load_scalar(scale, SCALE), load_scalar(bias, BIAS)
    first_column = split * split_size
    last_column = tl.minimum(first_column + split_size, n_columns)
    for block in range(group, tl.cdiv(n, ROWS), groups):
        first = block * ROWS
        row_index = tl.minimum(first + tl.arange(0, ROWS), n - 1)
        row_pointers = _block(rows, row_stride, first, n, ROWS)
        of_row = 0.0
        if row_statistic is not None:
            of_row = tl.load(row_statistic + row_index)[:, None]
        if WHOLE:
            left = operand(row_pointers, 0, d, DEPTH, EVEN)
        row_state = ()
        for plane in tl.static_range(ROW_PLANES):
            row_state = row_state + (tl.full((ROWS,), -float("inf") if plane == 0 and MAXIMUM else 0.0, tl.float32),)
        if COLUMN_PLANES > 0:
            # What other threads of the program stored for its last block of rows is read below.
            tl.debug_barrier()
        for start in range(first_column, last_column, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            column_index = tl.minimum(column, n_columns - 1)
            tiles = ()
            for k in tl.static_range(K):
                pointers = _block(operands + k * tile_stride, column_stride, start, n_columns, COLUMNS)
                if WHOLE:
                    right = operand(pointers, 0, d, DEPTH, EVEN)
                    tiles = tiles + (tl.dot(left, tl.trans(right), input_precision=PRECISION),)
                else:
                    tiles = tiles + (_inner_products(row_pointers, pointers, d, ROWS, COLUMNS, DEPTH, EVEN, PRECISION),)
            s = SCORE(tiles, of_row, _statistics(column_statistics, n_columns, column_index[None, :], S))
            states = column_states + group.to(tl.int64) * n_columns + column
            plane_size = groups.to(tl.int64) * n_columns
            column_state = ()
            for plane in tl.static_range(COLUMN_PLANES):
                state = tl.load(
                    states + plane * plane_size,
                    mask=(column < n_columns) & (block != group),
                    other=-float("inf") if plane == 0 and MAXIMUM else 0.0,
                )
                column_state = column_state + (state,)
            ragged = (first + ROWS > n) | (start + COLUMNS > last_column)
            if ragged | ((start < first + ROWS + offset) & (first + offset < start + COLUMNS)):
                own = first + tl.arange(0, ROWS)
                valid = (own < n)[:, None] & (column < last_column)[None, :]
                positive = own[:, None] + offset == column[None, :]
                if positives is not None:
                    s = tl.where(positive, tl.load(positives + row_index)[:, None], s)
                here = (own < n) & (own + offset >= start) & (own + offset < tl.minimum(start + COLUMNS, last_column))
                tl.store(positive_scores + own, tl.sum(tl.where(positive, s, 0.0), 1), mask=here)
                row_state, column_state = ADD(
                    row_state, column_state, s, factor, shift, valid, positive, FLAGS, SPECIAL=True
                )
            else:
                row_state, column_state = ADD(
                    row_state, column_state, s, factor, shift, None, None, FLAGS, SPECIAL=False
                )
            for plane in tl.static_range(COLUMN_PLANES):
                tl.store(states + plane * plane_size, column_state[plane], mask=column < last_column)
        own = first + tl.arange(0, ROWS)
        for plane in tl.static_range(ROW_PLANES):
            # Planes of row states follow each other by splits x N numbers, which fit int64 alone.
            place = (plane * splits + split).to(tl.int64) * n
            tl.store(row_states + place + own, row_state[plane], mask=own < n)


@triton.jit
def _tile_gradients(
    tiles,
    rows,
    columns,
    row_statistic,
    column_statistics,
    positives,
    positive_gradient,
    factor,
    shift,
    gain,
    upstream,
    upstream_stride,
    row_lse,
    column_lse,
    smoothing,
    n,
    n_columns,
    offset,
    valid,
    S: tl.constexpr,
    SCORE: tl.constexpr,
    SCORE_GRADIENT: tl.constexpr,
    GRAD: tl.constexpr,
    FLAGS: tl.constexpr,
    SPECIAL: tl.constexpr,
):
    """gain dL/d(scale score) / scale of a tile, brought to tiles and statistics; dL/dscale, weights and losses a pair.

    `rows` and `columns` are indices in range, [rows, 1] and [1, columns] or the other way round.
    """
    of_row = 0.0
    if row_statistic is not None:
        of_row = tl.load(row_statistic + rows)
    of_columns = _statistics(column_statistics, n_columns, columns, S)
    s = SCORE(tiles, of_row, of_columns)
    positive = None
    if SPECIAL:
        positive = (rows + offset == columns) & valid
        if positives is not None:
            s = tl.where(positive, tl.load(positives + rows), s)
    w, losses = GRAD(
        s,
        factor,
        shift,
        rows,
        columns,
        n,
        n_columns,
        upstream,
        upstream_stride,
        row_lse,
        column_lse,
        smoothing,
        valid,
        positive,
        FLAGS,
        SPECIAL,
    )
    along = w * s
    if SPECIAL:
        w = tl.where(valid, w, 0.0)
        along = tl.where(valid, along, 0.0)
        losses = tl.where(valid, losses, 0.0)
    passed = w * gain
    if SPECIAL and positives is not None:
        tl.store(positive_gradient + rows + 0 * columns, passed, mask=positive)
        passed = tl.where(positive, 0.0, passed)
    of_tiles, of_row_statistic, of_column_statistics = SCORE_GRADIENT(tiles, of_row, of_columns, passed)
    return of_tiles, of_row_statistic, of_column_statistics, along, w, losses


@triton.jit
def _place(program, row_blocks, column_blocks, TOGETHER: tl.constexpr):
    """A program's blocks of rows and columns: TOGETHER blocks of rows walk the columns abreast, for L2."""
    group = program // (TOGETHER * column_blocks)
    abreast = tl.minimum(row_blocks - group * TOGETHER, TOGETHER)
    within = program - group * TOGETHER * column_blocks
    return group * TOGETHER + within % abreast, within // abreast


@triton.jit(do_not_specialize=_NOT_SPECIALISED)
def _score(
    rows,
    operands,
    row_statistic,
    column_statistics,
    positives,
    scale,
    bias,
    into,
    n,
    n_columns,
    d,
    offset,
    row_stride,
    column_stride,
    tile_stride,
    into_row_stride,
    into_column_stride,
    K: tl.constexpr,
    S: tl.constexpr,
    SCORE: tl.constexpr,
    SCALE: tl.constexpr,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """scale score + bias of a tile of pairs, stored."""
    row_block, column_block = _place(tl.program_id(0), tl.cdiv(n, ROWS), tl.cdiv(n_columns, COLUMNS), TOGETHER)
    first, start = row_block * ROWS, column_block * COLUMNS
    row, column = first + tl.arange(0, ROWS)[:, None], start + tl.arange(0, COLUMNS)[None, :]
    row_index = tl.minimum(row, n - 1)
    row_pointers = _block(rows, row_stride, first, n, ROWS)
    tiles = ()
    for k in tl.static_range(K):
        pointers = _block(operands + k * tile_stride, column_stride, start, n_columns, COLUMNS)
        tiles = tiles + (_inner_products(row_pointers, pointers, d, ROWS, COLUMNS, DEPTH, EVEN, PRECISION),)
    of_row = 0.0
    if row_statistic is not None:
        of_row = tl.load(row_statistic + row_index)
    of_columns = _statistics(column_statistics, n_columns, tl.minimum(column, n_columns - 1), S)
    s = SCORE(tiles, of_row, of_columns)
    if positives is not None:
        s = tl.where(row + offset == column, tl.load(positives + row_index), s)
    s = s * load_scalar(scale, SCALE) + load_scalar(bias, BIAS)
    addresses = into + row.to(tl.int64) * into_row_stride + column.to(tl.int64) * into_column_stride
    tl.store(addresses, s, mask=(row < n) & (column < n_columns))


@triton.jit
def _store_sums(sums, size, place, along, w, losses, SUMS: tl.constexpr):
    if SUMS != _NO_SUMS:
        tl.store(sums + place, tl.sum(tl.sum(along, 1), 0))
    if SUMS == _ALL_SUMS:
        tl.store(sums + size + place, tl.sum(tl.sum(w, 1), 0))
        tl.store(sums + 2 * size + place, tl.sum(tl.sum(losses, 1), 0))


@triton.jit(do_not_specialize=_NOT_SPECIALISED)
def _grad_chunk(
    rows,
    operands,
    row_statistic,
    column_statistics,
    positives,
    positive_gradient,
    scale,
    bias,
    gain,
    upstream,
    upstream_stride,
    row_lse,
    column_lse,
    smoothing,
    weights,
    row_statistic_gradient,
    column_statistics_gradient,
    sums,
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
    weights_stride,
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
    TOGETHER: tl.constexpr,
):
    """dL/dtile of a chunk of pairs, [K, rows, columns]."""
    factor, shift = load_scalar(scale, SCALE), load_scalar(bias, BIAS)
    passing = load_scalar(gain, GAIN)
    if TIMES_SCALE:
        passing = passing * factor
    program = tl.program_id(0)
    row_blocks, column_blocks = tl.cdiv(last_row - first_row, ROWS), tl.cdiv(last_column - first_column, COLUMNS)
    row_block, column_block = _place(program, row_blocks, column_blocks, TOGETHER)
    first, start = first_row + row_block * ROWS, first_column + column_block * COLUMNS
    row, column = first + tl.arange(0, ROWS), start + tl.arange(0, COLUMNS)
    row_pointers = _block(rows, row_stride, first, last_row, ROWS)
    tiles = ()
    for k in tl.static_range(K):
        pointers = _block(operands + k * tile_stride, column_stride, start, last_column, COLUMNS)
        tiles = tiles + (_inner_products(row_pointers, pointers, d, ROWS, COLUMNS, DEPTH, EVEN, PRECISION),)
    valid = (row < last_row)[:, None] & (column < last_column)[None, :]
    # Everything beyond the edge is masked by `valid`, so one way through serves all tiles: the GEMM hides it.
    of_tiles, of_row_statistic, of_column_statistics, along, w, losses = _tile_gradients(
        tiles,
        tl.minimum(row, last_row - 1)[:, None],
        tl.minimum(column, last_column - 1)[None, :],
        row_statistic,
        column_statistics,
        positives,
        positive_gradient,
        factor,
        shift,
        passing,
        upstream,
        upstream_stride,
        row_lse,
        column_lse,
        smoothing,
        n,
        n_columns,
        offset,
        valid,
        S,
        SCORE,
        SCORE_GRADIENT,
        GRAD,
        FLAGS,
        SPECIAL=True,
    )
    local_row, local_column = row_block * ROWS + tl.arange(0, ROWS), column_block * COLUMNS + tl.arange(0, COLUMNS)
    if weights is not None:
        addresses = weights + (local_row[:, None] * weights_stride + local_column[None, :])
        plane_size = (last_row - first_row).to(tl.int64) * weights_stride
        for k in tl.static_range(K):
            tl.store(addresses + k * plane_size, of_tiles[k].to(weights.dtype.element_ty), mask=valid)
    if row_statistic_gradient is not None:
        place = column_block * (last_row - first_row) + local_row
        tl.store(row_statistic_gradient + place, tl.sum(of_row_statistic, 1), mask=row < last_row)
    if column_statistics_gradient is not None:
        for number in tl.static_range(S):
            place = (number * row_blocks + row_block) * (last_column - first_column) + local_column
            summed = tl.sum(of_column_statistics[number], 0)
            tl.store(column_statistics_gradient + place, summed, mask=column < last_column)
    _store_sums(sums, sums_size, first_sum + program, along, w, losses, SUMS)


@triton.jit(do_not_specialize=_NOT_SPECIALISED)
def _recompute(
    own_side,
    other_side,
    into,
    scale,
    bias,
    gain,
    undone,
    upstream,
    upstream_stride,
    row_lse,
    column_lse,
    smoothing,
    sums,
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
    UNDONE: tl.constexpr,
    TIMES_SCALE: tl.constexpr,
    SUMS: tl.constexpr,
    OF_COLUMNS: tl.constexpr,
    OWN: tl.constexpr,
    OTHER: tl.constexpr,
    DEPTH: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradient of a block of rows, walking the columns, or of columns, walking the rows; K = 1, d <= DEPTH."""
    factor, shift = load_scalar(scale, SCALE), load_scalar(bias, BIAS)
    passing = load_scalar(gain, GAIN)
    if TIMES_SCALE:
        passing = passing * factor
    own_count, other_count = n, n_columns
    if OF_COLUMNS:
        own_count, other_count = n_columns, n
    first = tl.program_id(0) * OWN
    own = first + tl.arange(0, OWN)
    own_index = tl.minimum(own, own_count - 1)
    left = operand(_block(own_side, own_stride, first, own_count, OWN), 0, d, DEPTH, EVEN)
    gradient = tl.zeros((OWN, DEPTH), tl.float32)
    sum_along, sum_w, sum_losses = (
        tl.zeros((OWN,), tl.float32),
        tl.zeros((OWN,), tl.float32),
        tl.zeros((OWN,), tl.float32),
    )
    for start in range(0, other_count, OTHER):
        other = start + tl.arange(0, OTHER)
        other_index = tl.minimum(other, other_count - 1)
        right = operand(_block(other_side, other_stride, start, other_count, OTHER), 0, d, DEPTH, EVEN)
        tile = tl.dot(left, tl.trans(right), input_precision=PRECISION)
        valid = (own < own_count)[:, None] & (other < other_count)[None, :]
        if OF_COLUMNS:
            rows, columns = other_index[None, :], own_index[:, None]
        else:
            rows, columns = own_index[:, None], other_index[None, :]
        of_tiles, _row, _columns, along, w, losses = _tile_gradients(
            (tile,),
            rows,
            columns,
            None,
            None,
            None,
            None,
            factor,
            shift,
            passing,
            upstream,
            upstream_stride,
            row_lse,
            column_lse,
            smoothing,
            n,
            n_columns,
            offset,
            valid,
            0,
            SCORE,
            SCORE_GRADIENT,
            GRAD,
            FLAGS,
            SPECIAL=True,
        )
        gradient = tl.dot(of_tiles[0].to(right.dtype), right, gradient, input_precision=PRECISION)
        if SUMS != _NO_SUMS:
            sum_along += tl.sum(along, 1)
        if SUMS == _ALL_SUMS:
            sum_w += tl.sum(w, 1)
            sum_losses += tl.sum(losses, 1)
    gradient = gradient * load_scalar(undone, UNDONE)
    depth = tl.arange(0, DEPTH)
    addresses = into + own[:, None].to(tl.int64) * d + depth[None, :]
    mask = (own < own_count)[:, None] & (depth < d)[None, :]
    tl.store(addresses, gradient.to(into.dtype.element_ty), mask=mask)
    _store_sums(sums, sums_size, tl.program_id(0), sum_along[:, None], sum_w[:, None], sum_losses[:, None], SUMS)


class Scalar(NamedTuple):
    """A number that the host knows, or one on the device, or there its inverse."""

    value: float | Tensor
    kind: int

    def found(self) -> float | Tensor:
        """The number, on the device where it is there."""
        if isinstance(self.value, float):
            return self.value
        value = self.value.double()
        if self.kind == _INVERSE_AT_ADDRESS.value:
            value = torch.where((value > 0) & (value < torch.inf), value.reciprocal(), torch.nan)
        return value


def scalar(x: Tensor | float, inverted: bool = False) -> Scalar:
    """A scalar operand from a 0-d tensor, which is read back only where it is on the CPU anyway."""
    if isinstance(x, Tensor) and x.device.type != "cpu":
        return Scalar(x, (_INVERSE_AT_ADDRESS if inverted else _AT_ADDRESS).value)
    value = float(x)
    if inverted:
        value = 1.0 / value if 0.0 < value < math.inf else math.nan
    return Scalar(value, _GIVEN.value)


ZERO, ONE = Scalar(0.0, _GIVEN.value), Scalar(1.0, _GIVEN.value)


@dataclass(frozen=True)
class Pairs:
    """What is scored: rows [N, d], columns of K operands [K, N', d], and what scores and reductions ask for.

    The positive of row i is column i + offset, if there is such a column. Statistics, and scores of positives known
    apart, are float32.
    """

    rows: Tensor
    operands: Tensor
    scale: Scalar = ONE
    bias: Scalar = ZERO
    offset: int = 0
    row_statistic: Tensor | None = None  # [N]
    column_statistics: Tensor | None = None  # [S, N']
    positives: Tensor | None = None  # [N]

    @property
    def n(self) -> int:
        return int(self.rows.shape[0])

    @property
    def count(self) -> int:
        return int(self.operands.shape[1])

    @property
    def d(self) -> int:
        return int(self.rows.shape[1])

    @property
    def k(self) -> int:
        return int(self.operands.shape[0])

    @property
    def held(self) -> int:
        """Tiles that a pair takes in registers: inner products, and the score where it is none of them."""
        return self.k + (self.row_statistic is not None or self.column_statistics is not None)

    def problem(self, light: bool = False) -> Problem:
        """What a tile is chosen for."""
        return Problem(self.rows.device, self.rows.dtype, self.n, self.count, self.d, self.held, light)

    def scored(self) -> dict[str, Any]:
        """Arguments that every kernel of scores takes."""
        return {
            "rows": self.rows,
            "operands": self.operands,
            "row_statistic": self.row_statistic,
            "column_statistics": self.column_statistics,
            "positives": self.positives,
            "scale": self.scale.value,
            "bias": self.bias.value,
            "n": self.n,
            "n_columns": self.count,
            "d": self.d,
            "offset": self.offset,
            "row_stride": self.rows.stride(0),
            "column_stride": self.operands.stride(1),
            "tile_stride": self.operands.stride(0),
            "K": self.k,
            "S": 0 if self.column_statistics is None else self.column_statistics.shape[0],
            "SCALE": self.scale.kind,
            "BIAS": self.bias.kind,
        }


def operand_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of operands of a score that float16 is too narrow for: dL/dtile of a volume grows as it vanishes."""
    return torch.float32 if dtype == torch.float16 else dtype


def rows_in_place(x: Tensor) -> Tensor:
    """A matrix whose rows are contiguous: x itself where they are."""
    x = x.detach()
    return x if x.stride(-1) == 1 else x.contiguous()


class States(NamedTuple):
    """What `reduce` found, to be merged over the second dimension, and the scores of the positives [N].

    Rows whose positive is in none of the columns have a zero there.
    """

    rows: Tensor  # [planes, splits, N]
    columns: Tensor  # [planes, programs, N']
    positives: Tensor


@functools.lru_cache(maxsize=1024)
def _division(row_blocks: int, column_blocks: int, programs: int) -> tuple[int, int]:
    """Groups that own blocks of rows, and splits of the columns: the fewest tiles one after the other, then splits."""
    best = (row_blocks * column_blocks + 1, 0, 0)
    for splits in range(1, min(column_blocks, programs) + 1):
        groups = min(row_blocks, programs // splits)
        steps = triton.cdiv(row_blocks, groups) * triton.cdiv(column_blocks, splits)
        best = min(best, (steps, splits, groups))
    _, splits, groups = best
    # The least size of splits may need fewer of them.
    return groups, triton.cdiv(column_blocks, triton.cdiv(column_blocks, splits))


def reduce(score: Score, reduction: Reduction, pairs: Pairs, flags: int) -> States:
    """Reduce all pairs in one sweep; one launch."""

    def launch(tile: Tile) -> States:
        return _reduced(score, reduction, pairs, flags, tile)

    return launch_configuration.launched("pairwise.reduce", pairs.problem(reduction.is_light(flags)), launch)


def _reduced(score: Score, reduction: Reduction, pairs: Pairs, flags: int, tile: Tile) -> States:
    programs = launch_configuration.programs(pairs.rows.device)
    row_planes, column_planes = reduction.row_planes(flags), reduction.column_planes(flags)
    if column_planes:
        programs = max(1, min(programs, _LARGEST_WORKSPACE // (4 * column_planes * pairs.count)))
    column_blocks = triton.cdiv(pairs.count, tile.columns)
    groups, splits = _division(triton.cdiv(pairs.n, tile.rows), column_blocks, programs)

    def like(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=pairs.rows.device)

    positives = like(pairs.n)
    if not 0 <= pairs.offset <= pairs.count - pairs.n:
        positives.zero_()
    states = States(like(row_planes, splits, pairs.n), like(column_planes, groups, pairs.count), positives)
    with torch.cuda.device_of(pairs.rows):
        _reduce[(groups, splits)](
            **pairs.scored(),
            row_states=states.rows,
            column_states=states.columns,
            positive_scores=states.positives,
            split_size=triton.cdiv(column_blocks, splits) * tile.columns,
            SCORE=score.triton[0],
            ADD=reduction.triton[0],
            ROW_PLANES=row_planes,
            COLUMN_PLANES=column_planes,
            MAXIMUM=reduction.keeps_maximum,
            FLAGS=flags,
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            DEPTH=tile.depth,
            WHOLE=tile.holds(pairs.d),
            EVEN=pairs.d % tile.depth == 0,
            PRECISION=launch_configuration.precision(pairs.rows.dtype),
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return states


def dense(score: Score, pairs: Pairs, into: Tensor | None = None) -> Tensor:
    """Scores of all pairs [N, N'], float32, stored in `into`, of any strides, where it is given; one launch."""
    stored = into
    if stored is None:
        stored = torch.empty(pairs.n, pairs.count, dtype=torch.float32, device=pairs.rows.device)

    def launch(tile: Tile) -> Tensor:
        with torch.cuda.device_of(pairs.rows):
            _score[(triton.cdiv(pairs.n, tile.rows) * triton.cdiv(pairs.count, tile.columns),)](
                **pairs.scored(),
                into=stored,
                into_row_stride=stored.stride(0),
                into_column_stride=stored.stride(1),
                SCORE=score.triton[0],
                ROWS=tile.rows,
                COLUMNS=tile.columns,
                DEPTH=tile.depth,
                EVEN=pairs.d % tile.depth == 0,
                PRECISION=launch_configuration.precision(pairs.rows.dtype),
                TOGETHER=8,
                num_warps=tile.warps,
                num_stages=tile.stages,
            )
        return stored

    return launch_configuration.launched("pairwise.score", pairs.problem(), launch)


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
    gain, undone = _gain(pairs, weights)
    plain = pairs.held == 1 and pairs.positives is None
    kernel, form, light = "pairwise.chunk", _in_chunks, reduction.is_light(flags)
    if plain and (wanted.rows or wanted.operands) and is_recomputed(pairs.n, pairs.count, pairs.d):
        kernel, form, light = "pairwise.recompute", _recomputed, False

    def launch(tile: Tile) -> Gradients:
        return form(score, reduction, pairs, flags, weights, wanted, gain, undone, tile)

    # Products are of the operands' dtype and float32, whatever autocast would make of them.
    with torch.cuda.device_of(pairs.rows), torch.autocast(pairs.rows.device.type, enabled=False):
        return launch_configuration.launched(kernel, pairs.problem(light), launch)


def _gain(pairs: Pairs, weights: Weights) -> tuple[Scalar, Scalar]:
    """What weights are multiplied by, besides the scale unless it is float16, and gradients afterwards."""
    if pairs.rows.dtype != torch.float16:
        return Scalar(weights.factor, _GIVEN.value), ONE
    scale = pairs.scale.found()
    if weights.upstream is None:
        return Scalar(_FLOAT16_LIFT, _GIVEN.value), _computed(scale * (weights.factor / _FLOAT16_LIFT))
    bound = torch.linalg.vector_norm(weights.upstream, torch.inf)
    bound = torch.where((bound > 0) & (bound < torch.inf), bound, 1.0).double()
    return _computed(_FLOAT16_LIFT / bound), _computed(scale * bound * (weights.factor / _FLOAT16_LIFT))


def _computed(x: float | Tensor) -> Scalar:
    return Scalar(x, (_AT_ADDRESS if isinstance(x, Tensor) else _GIVEN).value)


def _gradient_arguments(
    score: Score, reduction: Reduction, pairs: Pairs, flags: int, weights: Weights, gain: Scalar
) -> dict[str, Any]:
    """Arguments that both kernels of gradients take."""
    return {
        "gain": gain.value,
        "upstream": weights.upstream,
        "upstream_stride": 0 if weights.upstream is None else weights.upstream.stride(0),
        "row_lse": weights.row_lse,
        "column_lse": weights.column_lse,
        "smoothing": weights.smoothing,
        "SCORE": score.triton[0],
        "SCORE_GRADIENT": score.triton[1],
        "GRAD": reduction.triton[1],
        "FLAGS": flags,
        "GAIN": gain.kind,
        "TIMES_SCALE": pairs.rows.dtype != torch.float16,
        "PRECISION": launch_configuration.precision(pairs.rows.dtype),
    }


_SUM_PLANES = (0, 1, 3)


def _recomputed(
    score: Score,
    reduction: Reduction,
    pairs: Pairs,
    flags: int,
    weights: Weights,
    wanted: Wanted,
    gain: Scalar,
    undone: Scalar,
    tile: Tile,
) -> Gradients:
    rows, columns = pairs.rows, pairs.operands[0]
    found: list[Tensor | None] = [None, None]
    sums = None
    for side, (own, other, needed) in enumerate(((rows, columns, wanted.rows), (columns, rows, wanted.operands))):
        if not needed:
            continue
        programs = triton.cdiv(own.shape[0], tile.rows)
        planes = _SUM_PLANES[wanted.sums] if sums is None else 0
        if planes:
            sums = rows.new_empty(planes, programs, dtype=torch.float32)
        into = found[side] = torch.empty(own.shape, dtype=wanted.dtype or own.dtype, device=own.device)
        _recompute[(programs,)](
            own_side=own,
            other_side=other,
            into=into,
            scale=pairs.scale.value,
            bias=pairs.bias.value,
            undone=undone.value,
            sums=sums,
            n=pairs.n,
            n_columns=pairs.count,
            d=pairs.d,
            offset=pairs.offset,
            sums_size=programs,
            own_stride=own.stride(0),
            other_stride=other.stride(0),
            **_gradient_arguments(score, reduction, pairs, flags, weights, gain),
            SCALE=pairs.scale.kind,
            BIAS=pairs.bias.kind,
            UNDONE=undone.kind,
            SUMS=wanted.sums if planes else 0,
            OF_COLUMNS=side == 1,
            OWN=tile.rows,
            OTHER=tile.columns,
            DEPTH=tile.depth,
            EVEN=pairs.d == tile.depth,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    of_rows, of_columns = found
    total = None if sums is None else sums.sum(1, dtype=torch.float64)
    return Gradients(of_rows, None if of_columns is None else of_columns[None], None, None, None, total)


class _Sum:
    """A sum of matrix products, kept in float32 where there is more than one or something is left to be done."""

    def __init__(self, into: Tensor, products: int, undone: Scalar) -> None:
        self._into, self._undone = into, undone
        direct = into.dtype == torch.float32 or products == 1
        self._sum = (
            into if direct and undone is ONE else torch.empty(into.shape, dtype=torch.float32, device=into.device)
        )

    def add(self, begin: int, end: int, a: Tensor, b: Tensor, first: bool) -> None:
        """Add a @ b to rows begin to end, or put it there."""
        matrix_product(a, b, self._sum[begin:end], add=not first)

    def finish(self) -> Tensor:
        if self._sum is not self._into:
            torch.mul(self._sum, self._undone.value, out=self._into)
        return self._into


def _in_chunks(
    score: Score,
    reduction: Reduction,
    pairs: Pairs,
    flags: int,
    weights: Weights,
    wanted: Wanted,
    gain: Scalar,
    undone: Scalar,
    tile: Tile,
) -> Gradients:
    rows, operands, k = pairs.rows, pairs.operands, pairs.k
    chunk_rows, chunk_columns = chunk_shape(pairs.n, pairs.count, k * rows.element_size())
    row_starts, column_starts = range(0, pairs.n, chunk_rows), range(0, pairs.count, chunk_columns)

    def like(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=rows.device)

    chunk = None
    # A leading dimension of whole 128 bytes is what cuBLAS reads fastest.
    stride = triton.cdiv(chunk_columns, 64) * 64
    if wanted.rows or wanted.operands:
        chunk = like(k * chunk_rows * stride, dtype=rows.dtype)
    dtype = wanted.dtype or rows.dtype
    of_rows = _Sum(like(*rows.shape, dtype=dtype), k * len(column_starts), undone) if wanted.rows else None
    of_operands = None
    if wanted.operands:
        into = like(*operands.shape, dtype=dtype)
        of_operands = [_Sum(each, len(row_starts), undone) for each in into.unbind()]
    of_row_statistic = of_column_statistics = of_positives = None
    if wanted.statistics and pairs.row_statistic is not None:
        of_row_statistic = torch.zeros_like(pairs.row_statistic)
    if wanted.statistics and pairs.column_statistics is not None:
        of_column_statistics = torch.zeros_like(pairs.column_statistics)
    if pairs.positives is not None:
        of_positives = torch.empty_like(pairs.positives)

    counts = [
        triton.cdiv(min(chunk_rows, pairs.n - r), tile.rows)
        * triton.cdiv(min(chunk_columns, pairs.count - c), tile.columns)
        for r in row_starts
        for c in column_starts
    ]
    sums = like(_SUM_PLANES[wanted.sums], sum(counts)) if wanted.sums else None
    first_sum, programs = 0, iter(counts)
    for r in row_starts:
        last_row = min(r + chunk_rows, pairs.n)
        for c in column_starts:
            last_column, count = min(c + chunk_columns, pairs.count), next(programs)
            row_blocks, column_blocks = triton.cdiv(last_row - r, tile.rows), triton.cdiv(last_column - c, tile.columns)
            row_part = None if of_row_statistic is None else like(column_blocks, last_row - r)
            column_part = None
            if of_column_statistics is not None:
                column_part = like(of_column_statistics.shape[0], row_blocks, last_column - c)
            _grad_chunk[(count,)](
                **pairs.scored(),
                **_gradient_arguments(score, reduction, pairs, flags, weights, gain),
                positive_gradient=of_positives,
                weights=chunk,
                row_statistic_gradient=row_part,
                column_statistics_gradient=column_part,
                sums=sums,
                first_row=r,
                last_row=last_row,
                first_column=c,
                last_column=last_column,
                first_sum=first_sum,
                sums_size=sum(counts),
                weights_stride=stride,
                SUMS=wanted.sums,
                ROWS=tile.rows,
                COLUMNS=tile.columns,
                DEPTH=tile.depth,
                EVEN=pairs.d % tile.depth == 0,
                TOGETHER=8,
                num_warps=tile.warps,
                num_stages=tile.stages,
            )
            first_sum += count
            if of_row_statistic is not None and row_part is not None:
                of_row_statistic[r:last_row] += row_part.sum(0)
            if of_column_statistics is not None and column_part is not None:
                of_column_statistics[:, c:last_column] += column_part.sum(1)
            if chunk is None:
                continue
            for number in range(k):
                height = last_row - r
                w = chunk[number * height * stride :][: height * stride].view(height, stride)[:, : last_column - c]
                if of_rows is not None:
                    of_rows.add(r, last_row, w, operands[number, c:last_column], c == number == 0)
                if of_operands is not None:
                    of_operands[number].add(c, last_column, w.T, rows[r:last_row], r == 0)

    def apart(x: Tensor | None) -> Tensor | None:
        return x if x is None or undone is ONE else (x * undone.value).float()

    if of_operands is not None:
        for each in of_operands:
            each.finish()
    return Gradients(
        None if of_rows is None else of_rows.finish(),
        None if of_operands is None else into,
        apart(of_row_statistic),
        apart(of_column_statistics),
        apart(of_positives),
        None if sums is None else sums.sum(1, dtype=torch.float64),
    )
