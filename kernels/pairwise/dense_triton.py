"""Scores of all pairs in Triton, stored: 1 GEMM. Their gradient is `gradient_triton.py`'s, by the reduction `given`."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mibfast.kernels.launch_configuration import Tile, launched
from mibfast.kernels.pairwise.pairs_triton import (
    Pairs,
    block_of_program,
    block_pointers,
    inner_products,
    load_scalar,
    load_statistics,
)
from mibfast.kernels.pairwise.scores import Score


@triton.jit(do_not_specialize=["n", "n_columns", "offset"])
def _score(
    rows,  # [N, d]
    operands,  # [K, N', d]
    row_statistic,  # [N], or None
    column_statistics,  # [S, N'], or None
    positives,  # [N], scores that take the tiles' place, or None
    scale,  # as SCALE says
    bias,  # as BIAS says
    out,  # [N, N']
    n,
    n_columns,
    d,
    offset,
    row_stride,
    column_stride,
    tile_stride,
    out_row_stride,
    out_column_stride,
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
):
    """Store scale score + bias of a tile of pairs."""
    row_blocks, column_blocks = tl.cdiv(n, ROWS), tl.cdiv(n_columns, COLUMNS)
    row_block, column_block = block_of_program(tl.program_id(0), row_blocks, column_blocks)
    first, start = row_block * ROWS, column_block * COLUMNS
    row, column = first + tl.arange(0, ROWS)[:, None], start + tl.arange(0, COLUMNS)[None, :]
    row_index = tl.minimum(row, n - 1)
    tiles = inner_products(
        block_pointers(rows, row_stride, first, n, ROWS),
        None,
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
        row_statistic, column_statistics, row_index, tl.minimum(column, n_columns - 1), n_columns, S
    )
    s = SCORE(tiles, row_value, column_values)
    if positives is not None:
        s = tl.where(row + offset == column, tl.load(positives + row_index), s)
    s = s * load_scalar(scale, SCALE) + load_scalar(bias, BIAS)
    addresses = out + row.to(tl.int64) * out_row_stride + column.to(tl.int64) * out_column_stride
    tl.store(addresses, s, mask=(row < n) & (column < n_columns))


def scores(score: Score, pairs: Pairs, out: Tensor | None = None) -> Tensor:
    """Scores of all pairs [N, N'], float32, stored in `out`, of any strides, where it is given; one launch."""
    stored = torch.empty(pairs.n, pairs.count, dtype=torch.float32, device=pairs.rows.device) if out is None else out

    def launch(tile: Tile) -> Tensor:
        with torch.cuda.device_of(pairs.rows):
            _score[(triton.cdiv(pairs.n, tile.rows) * triton.cdiv(pairs.count, tile.columns),)](
                **pairs.arguments(tile),
                out=stored,
                out_row_stride=stored.stride(0),
                out_column_stride=stored.stride(1),
                SCORE=score.triton[0],
            )
        return stored

    return launched("pairwise.score", pairs.problem(), launch)
