"""Reductions over all pairs in Triton, in one sweep: 1 GEMM of 2 N N' K d FLOPs.

Programs own blocks of rows and walk the columns, or a range of them where the blocks are fewer than the
multiprocessors. The state of a block of rows stays in registers. That of the columns is one for each program, [planes,
programs, N'] float32, to which the program adds each of its blocks where it lies. The caller merges both afterwards, in
a fixed order. So one sweep serves rows, columns or both, whatever the reduction. Workspace: 8 bytes (12 with totals) a
program and column, and programs are so few that it stays within 8 GiB. It is read and written once for each column and
block of rows.
"""

# ruff: noqa: RUF005 - jit functions build tuples by addition
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,assignment"
from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mibfast.kernels import launch_configuration
from mibfast.kernels.launch_configuration import Tile, launched
from mibfast.kernels.pairwise.pairs_triton import (
    Pairs,
    block_pointers,
    inner_products,
    load_block,
    load_scalar,
    load_statistics,
)
from mibfast.kernels.pairwise.reductions import Reduction
from mibfast.kernels.pairwise.scores import Score

_LARGEST_WORKSPACE = 8 * 2**30


@triton.jit(do_not_specialize=["n", "n_columns", "offset"])
def _reduce(
    rows,  # [N, d]
    operands,  # [K, N', d]
    row_statistic,  # [N], or None
    column_statistics,  # [S, N'], or None
    positives,  # [N], scores that take the tiles' place, or None
    scale,  # as SCALE says
    bias,  # as BIAS says
    row_states,  # [ROW_PLANES, splits, N]
    column_states,  # [COLUMN_PLANES, groups, N']
    positive_scores,  # [N]
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
        row_pointers = block_pointers(rows, row_stride, first, n, ROWS)
        left = load_block(row_pointers, 0, d, DEPTH, EVEN) if WHOLE else None
        row_state = ()
        for plane in tl.static_range(ROW_PLANES):
            row_state = row_state + (tl.full((ROWS,), -float("inf") if plane == 0 and MAXIMUM else 0.0, tl.float32),)
        if COLUMN_PLANES > 0:
            # What other threads of the program stored for its last block of rows is read below.
            tl.debug_barrier()
        for start in range(first_column, last_column, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            column_index = tl.minimum(column, n_columns - 1)
            tiles = inner_products(
                row_pointers,
                left,
                operands,
                column_stride,
                tile_stride,
                start,
                n_columns,
                d,
                K=K,
                ROWS=ROWS,
                COLUMNS=COLUMNS,
                DEPTH=DEPTH,
                EVEN=EVEN,
                PRECISION=PRECISION,
            )
            row_value, column_values = load_statistics(
                row_statistic, column_statistics, row_index[:, None], column_index[None, :], n_columns, S
            )
            s = SCORE(tiles, row_value, column_values)
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


class States(NamedTuple):
    """The states of programs, to be merged over the second dimension, and the scores of the positives.

    Rows whose positive is in none of the columns have a zero there.
    """

    rows: Tensor  # [planes, splits, N]
    columns: Tensor  # [planes, programs, N']
    positives: Tensor  # [N]


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
    row_planes, column_planes = reduction.row_planes(flags), reduction.column_planes(flags)
    programs = launch_configuration.programs(pairs.rows.device)
    if column_planes:
        programs = max(1, min(programs, _LARGEST_WORKSPACE // (4 * column_planes * pairs.count)))

    def launch(tile: Tile) -> States:
        column_blocks = triton.cdiv(pairs.count, tile.columns)
        groups, splits = _division(triton.cdiv(pairs.n, tile.rows), column_blocks, programs)
        shapes = (row_planes, splits, pairs.n), (column_planes, groups, pairs.count), (pairs.n,)
        states = States(*(torch.empty(x, dtype=torch.float32, device=pairs.rows.device) for x in shapes))
        if not 0 <= pairs.offset <= pairs.count - pairs.n:
            states.positives.zero_()
        with torch.cuda.device_of(pairs.rows):
            _reduce[(groups, splits)](
                **pairs.arguments(tile),
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
                WHOLE=tile.holds(pairs.d),
            )
        return states

    return launched("pairwise.reduce", pairs.problem(reduction.is_light(flags)), launch)
