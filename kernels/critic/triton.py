"""Critics of inner products and of one or two hidden layers over all pairs in Triton; `cpu.py` has the formulas.

Inner products are of the pairwise engine, 1 GEMM of 2 N N' d FLOPs forward and 3 backward, or 4 up to d = 128, whatever
is asked for: cost and floor stand at the head of `pairwise/engine_triton.py`. Predicted on an H200 for N = N' = 8192,
d = 256 in bf16, 34 GFLOP a GEMM and 0.04 ms at 790 TFLOP/s: forward 0.08 ms, both 0.35. Measured: not run.

Of one hidden layer, with n_jk = -v_jk a score is sum_k w_k max(u_ik, n_jk) and a number of its column; its gradients
are made of A_ik = sum_j G_ij D_ijk and B_jk = sum_i G_ij D_ijk, D_ijk = 1[u_ik > n_jk], G = dL/ds. No tensor core
serves: a score costs a maximum and a multiply-add a unit, a sum a comparison and a masked addition.

`_reduce` holds a tile of scores in registers while it walks the units, and keeps a log-sum-exp or softplus sum of each
row and share of the columns; sums over columns are those of the rows of the transpose. The backward forms the scores
once more: `_weigh` writes G and its transpose for a chunk of rows, 64 MiB at most, and `_sum_active` gives A and B from
it, each number by one program that takes all pairs in order. Every result has one owner: nothing is added atomically.
Memory beyond operands and gradients: padded copies of u and n in both orders, the chunk, and vectors.

Cost on an H200: the floor of 3 N N' h FLOPs over 67 TFLOP/s float32 is 0.2 ms forward for N = 4096, h = 256. A maximum
runs at half the rate of a multiply-add (16.7 T/s), so the units of a tile take N N' h / 16.7e12 s, 0.26 ms; the
backward is three of these, 0.8 ms. Bytes are no matter: a pair of a tile loads 1 / 32 of a number a unit, from the
first cache. Prediction: forward and backward in 1.6 ms. Measured: not run.

With a second layer W [g, h] a tile of pairs forms its relu(u_i + v_j) on the chip, a piece of the units at a time, for
a product with a block of W: 1 GEMM of 2 N N' h g FLOPs forward, two both ways, and nothing of a pair leaves the chip.
The backward takes chunks of pairs, square, 128 MiB at most: `_weigh_second_layer` forms the scores once more and writes
the first layer, and the gradient of the second over its sums; cuBLAS makes dL/dW and the gradient of the first of them,
4 GEMMs in all; and `_sum_pairs` adds that up for rows and columns. In bfloat16 what is multiplied is rounded to it.
Cost on an H200 for N = 4096, h = g = 256: a GEMM is 2.2 TFLOP, 2.8 ms at 790 TFLOP/s in bfloat16 and 37 ms at 60 in
float32. Of a pair 5 h + 5 g numbers are moved, 86 GB in bfloat16 and 18 ms at 4.8 TB/s where they do not stay in L2.
Predicted: 5 ms forward and 40 ms both in bfloat16, 60 and 260 ms in float32. Measured: not run.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mibfast.kernels.launch_configuration import Problem, Tile, arithmetic, capability, choose, precision, shipped
from mibfast.kernels.matrix_product import matrix_product
from mibfast.kernels.pairwise import engine_triton as engine
from mibfast.kernels.pairwise import reductions
from mibfast.kernels.pairwise import triton as pairwise
from mibfast.kernels.pairwise.flags import CLAMPED, POSITIVE_EXCLUDED, TWO_WAY
from mibfast.kernels.pairwise.triton import INNER_PRODUCT

_SOFTPLUS_SUMS = reductions.named("softplus")
# Rows, columns and units are padded to multiples of these, so that no load in an inner loop has a mask, and tiles
# divide them.
_PADDING, _UNITS_TOGETHER, _UNIT_PADDING = 64, 8, 64
# Pairs that a sum takes before it is added to the whole.
_PIECE = 64
# Programs that keep a GPU busy: rows are cut into shares of columns up to this number.
_PROGRAMS = 528
# Bytes of a chunk of G and its transpose.
_CHUNK_BYTES = 2**26
# Units of the first layer that a tile of two takes at once; of the second it takes as many as pad them.
_UNITS_OF_TWO = 32
# Bytes of a chunk of pairs, their first layer, its gradient, and the second layer's.
_PAIRS_BYTES = 2**27
# Pairs that `_sum_pairs` adds at once.
_OTHERS = 16


@triton.jit
def _scores(u, n, weight, row_offsets, column_offsets, row, column, units, u_stride, n_stride, TOGETHER: tl.constexpr):
    """Scores of a tile of pairs, from the transposes of u and n, [units, padded count]."""
    s = tl.load(row_offsets + row)[:, None] + tl.load(column_offsets + column)[None, :]
    for first in range(0, units, TOGETHER):
        for k in tl.static_range(TOGETHER):
            unit = tl.cast(first + k, tl.int64)
            x, y = tl.load(u + unit * u_stride + row), tl.load(n + unit * n_stride + column)
            s += tl.load(weight + unit) * tl.maximum(x[:, None], y[None, :])
    return s


@triton.jit
def _second_layer_scores(
    u,
    v,
    weight,
    row_offsets,
    column_offsets,
    matrix,
    offset,
    first_row,
    first_column,
    units,
    second_units,
    kept,
    kept_second,
    kept_first,
    kept_column,
    kept_columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNITS: tl.constexpr,
    SECOND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Scores [ROWS, COLUMNS] from u and v, [padded count, units]; both layers are stored where `kept` is given.

    There pairs are those of rows from `kept_first` on and `kept_columns` columns from `kept_column` on.
    """
    pair = tl.arange(0, ROWS * COLUMNS)
    row, column = first_row + pair // COLUMNS, first_column + pair % COLUMNS
    s = tl.load(row_offsets + row) + tl.load(column_offsets + column)
    mine, theirs = u + row[:, None].to(tl.int64) * units, v + column[:, None].to(tl.int64) * units
    if kept is not None:
        place = ((row - kept_first).to(tl.int64) * kept_columns + (column - kept_column))[:, None]
    for first in range(0, second_units, SECOND):
        second = first + tl.arange(0, SECOND)
        z = tl.zeros((ROWS * COLUMNS, SECOND), tl.float32)
        for start in range(0, units, UNITS):
            unit = (start + tl.arange(0, UNITS))[None, :]
            x = tl.load(mine + unit).to(tl.float32) + tl.load(theirs + unit).to(tl.float32)
            # NaN is kept.
            x = tl.where(x <= 0.0, 0.0, x).to(matrix.dtype.element_ty)
            if kept is not None:
                tl.store(kept + place * units + unit, x, mask=first == 0)
            block = tl.load(matrix + second[:, None].to(tl.int64) * units + unit)
            z = tl.dot(x, tl.trans(block), z, input_precision=PRECISION)
        z += tl.load(offset + second)[None, :]
        if kept is not None:
            tl.store(kept_second + place * second_units + second[None, :], z.to(matrix.dtype.element_ty))
        s += tl.sum(tl.load(weight + second)[None, :] * tl.where(z <= 0.0, 0.0, z), 1)
    return tl.reshape(s, (ROWS, COLUMNS))


@triton.jit
def _log_sum_exp(s, maximum, total):
    """A maximum and a sum of e^(s - maximum), after a tile of scores."""
    raised = tl.maximum(maximum, tl.max(s, 1))
    # Infinities are taken as they are: -inf adds nothing, +inf gives inf.
    level = tl.where(tl.abs(raised) == float("inf"), 0.0, raised)
    return raised, total * tl.exp(maximum - level) + tl.sum(tl.exp(s - level[:, None]), 1)


@triton.jit
def _softplus(s):
    e = tl.exp(-tl.abs(s))
    above = 1.0 + e
    # log(1 + e) with the digits of a small e.
    logarithm = tl.where(above == 1.0, e, tl.log(above) * (e / tl.where(above == 1.0, 1.0, above - 1.0)))
    return tl.maximum(s, 0.0) + logarithm


@triton.jit
def _reduce(
    u,
    n,
    weight,
    row_offsets,
    column_offsets,
    positives,
    maxima,
    totals,
    rows,
    columns,
    units,
    u_stride,
    n_stride,
    share,
    clip,
    diagonal,
    matrix,
    offset,
    second_units,
    SOFTPLUS: tl.constexpr,
    POSITIVE: tl.constexpr,
    CLIPPED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOGETHER: tl.constexpr,
    SECOND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Maximum and sum of each row's scores over a share of the columns, and positives where they lie in it.

    Of one hidden layer, from transposes, or with `matrix` of two; TOGETHER units at a time. The positive of row i is
    column i + `diagonal`.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    begin = tl.program_id(1) * share
    number = row_offsets.dtype.element_ty
    maximum, total = tl.full((ROWS,), -float("inf"), number), tl.zeros((ROWS,), number)
    for first in range(begin, tl.minimum(begin + share, columns), COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        if matrix is None:
            s = _scores(u, n, weight, row_offsets, column_offsets, row, column, units, u_stride, n_stride, TOGETHER)
        else:
            s = _second_layer_scores(
                u,
                n,
                weight,
                row_offsets,
                column_offsets,
                matrix,
                offset,
                tl.program_id(0) * ROWS,
                first,
                units,
                second_units,
                None,
                None,
                0,
                0,
                0,
                ROWS,
                COLUMNS,
                TOGETHER,
                SECOND,
                PRECISION,
            )
        own = row[:, None] + diagonal == column[None, :]
        has_own = (row + diagonal >= first) & (row + diagonal < first + COLUMNS) & (row < rows)
        tl.store(positives + row, tl.sum(tl.where(own, s, 0.0), 1), mask=has_own)
        if CLIPPED:
            s = tl.where(s < -clip, -clip, s)
            s = tl.where(s > clip, clip, s)
        counted = (column < columns)[None, :] & (POSITIVE or ~own)
        s = tl.where(counted, s, -float("inf"))
        if SOFTPLUS:
            total += tl.sum(_softplus(s), 1)
        else:
            maximum, total = _log_sum_exp(s, maximum, total)
    place = tl.program_id(1).to(tl.int64) * rows + row
    tl.store(maxima + place, maximum, mask=row < rows)
    tl.store(totals + place, total, mask=row < rows)


@triton.jit
def _parts(lse, dtype: tl.constexpr):
    """A float64 log-sum-exp in two numbers of a dtype: that of large scores has no digits to spare."""
    high = lse.to(dtype)
    return high, tl.where(tl.abs(lse) == float("inf"), 0.0, lse - high.to(tl.float64)).to(dtype)


@triton.jit
def _pair_weights(
    s,
    row,
    column,
    rows,
    columns,
    of_positives,
    of_rows,
    of_columns,
    row_lse,
    column_lse,
    clip,
    diagonal,
    SOFTPLUS: tl.constexpr,
    POSITIVE: tl.constexpr,
    CLIPPED: tl.constexpr,
    BOTH_WAYS: tl.constexpr,
):
    """dL/ds of a tile of pairs, zero where there is no pair."""
    in_rows, in_columns = row < rows, column < columns
    upstream = tl.load(of_rows + row, mask=in_rows, other=0.0)
    if SOFTPLUS:
        weights = upstream[:, None] / (1.0 + tl.exp(-s))
    else:
        high, low = _parts(tl.load(row_lse + row, mask=in_rows, other=0.0), s.dtype)
        weights = upstream[:, None] * tl.exp((s - high[:, None]) - low[:, None])
        if BOTH_WAYS:
            high, low = _parts(tl.load(column_lse + column, mask=in_columns, other=0.0), s.dtype)
            factor = tl.load(of_columns + column, mask=in_columns, other=0.0)
            weights += factor[None, :] * tl.exp((s - high[None, :]) - low[None, :])
    own = row[:, None] + diagonal == column[None, :]
    if CLIPPED:
        weights = tl.where(tl.abs(s) > clip, 0.0, weights)
    if not POSITIVE:
        weights = tl.where(own, 0.0, weights)
    of_own = tl.load(of_positives + row, mask=in_rows, other=0.0)
    weights += tl.where(own, of_own[:, None], 0.0)
    return tl.where(in_rows[:, None] & in_columns[None, :], weights, 0.0)


@triton.jit
def _weigh(
    u,
    n,
    weight,
    row_offsets,
    column_offsets,
    of_positives,
    of_rows,
    of_columns,
    row_lse,
    column_lse,
    g,
    g_transposed,
    first,
    rows,
    columns,
    units,
    u_stride,
    n_stride,
    g_stride,
    transposed_stride,
    clip,
    diagonal,
    SOFTPLUS: tl.constexpr,
    POSITIVE: tl.constexpr,
    CLIPPED: tl.constexpr,
    BOTH_WAYS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """dL/ds of a tile of pairs, and its transpose; zero where there is no pair."""
    local = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row, column = first + local, tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    s = _scores(u, n, weight, row_offsets, column_offsets, row, column, units, u_stride, n_stride, TOGETHER)
    weights = _pair_weights(
        s,
        row,
        column,
        rows,
        columns,
        of_positives,
        of_rows,
        of_columns,
        row_lse,
        column_lse,
        clip,
        diagonal,
        SOFTPLUS,
        POSITIVE,
        CLIPPED,
        BOTH_WAYS,
    )
    tl.store(g + local[:, None].to(tl.int64) * g_stride + column[None, :], weights)
    place = column[:, None].to(tl.int64) * transposed_stride + local[None, :]
    tl.store(g_transposed + place, tl.trans(weights))


@triton.jit
def _sum_active(
    owners,
    others,
    g,
    sums,
    first,
    count,
    units,
    g_stride,
    OF_ROWS: tl.constexpr,
    ADD: tl.constexpr,
    PIECE: tl.constexpr,
    OWNERS: tl.constexpr,
    UNITS: tl.constexpr,
):
    """sums_pk = sum_q g_qp 1[u > n] of owners p, rows (u) or columns (n), over `count` others q from `first`."""
    owner, unit = tl.program_id(0) * OWNERS + tl.arange(0, OWNERS), tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    place = owner[:, None].to(tl.int64) * units + unit[None, :]
    mine = tl.load(owners + place)
    total = tl.load(sums + place) if ADD else tl.zeros((OWNERS, UNITS), mine.dtype)
    for start in range(0, count, PIECE):
        partial = tl.zeros((OWNERS, UNITS), mine.dtype)
        for q in range(start, start + PIECE):
            other = tl.cast(q, tl.int64)
            theirs = tl.load(others + (first + other) * units + unit)[None, :]
            weights = tl.load(g + other * g_stride + owner)[:, None]
            # At a tie there is no gradient; a NaN is no reason to leave one out.
            inactive = (mine <= theirs) if OF_ROWS else (theirs <= mine)
            partial += tl.where(inactive, 0.0, weights)
        total += partial
    tl.store(sums + place, total)


@triton.jit
def _weigh_second_layer(
    u,
    v,
    weight,
    row_offsets,
    column_offsets,
    matrix,
    offset,
    of_positives,
    of_rows,
    of_columns,
    row_lse,
    column_lse,
    first_layer,
    second_layer,
    sums,
    totals,
    first_row,
    first_column,
    rows,
    columns,
    chunk_columns,
    units,
    second_units,
    clip,
    diagonal,
    SOFTPLUS: tl.constexpr,
    POSITIVE: tl.constexpr,
    CLIPPED: tl.constexpr,
    BOTH_WAYS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNITS: tl.constexpr,
    SECOND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The first layer of a chunk of pairs, and dL/d of the sums that the second layer is made of.

    A program adds to sums of its own: `totals` of dL/ds, and in `sums`, [2, second_units], dL/dweight and dL/doffset.
    """
    start_row = first_row + tl.program_id(0) * ROWS
    start_column = first_column + tl.program_id(1) * COLUMNS
    s = _second_layer_scores(
        u,
        v,
        weight,
        row_offsets,
        column_offsets,
        matrix,
        offset,
        start_row,
        start_column,
        units,
        second_units,
        first_layer,
        second_layer,
        first_row,
        first_column,
        chunk_columns,
        ROWS,
        COLUMNS,
        UNITS,
        SECOND,
        PRECISION,
    )
    weights = _pair_weights(
        s,
        start_row + tl.arange(0, ROWS),
        start_column + tl.arange(0, COLUMNS),
        rows,
        columns,
        of_positives,
        of_rows,
        of_columns,
        row_lse,
        column_lse,
        clip,
        diagonal,
        SOFTPLUS,
        POSITIVE,
        CLIPPED,
        BOTH_WAYS,
    )
    program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(totals + program, tl.load(totals + program) + tl.sum(tl.sum(weights, 1), 0))
    weights = tl.reshape(weights, (ROWS * COLUMNS,))[:, None]
    pair = tl.arange(0, ROWS * COLUMNS)
    local_row, local_column = start_row - first_row + pair // COLUMNS, start_column - first_column + pair % COLUMNS
    place = second_layer + (local_row.to(tl.int64) * chunk_columns + local_column)[:, None] * second_units
    # What other threads of the program stored is read.
    tl.debug_barrier()
    for first in range(0, second_units, SECOND):
        second = first + tl.arange(0, SECOND)
        z = tl.load(place + second[None, :]).to(tl.float32)
        # A NaN is no reason to leave a gradient out.
        inactive = z <= 0.0
        of_weight = tl.sum(tl.where(inactive, 0.0, weights * z), 0)
        of_z = tl.where(inactive, 0.0, weights * tl.load(weight + second)[None, :])
        tl.store(place + second[None, :], of_z.to(second_layer.dtype.element_ty))
        at = sums + program * 2 * second_units + second
        tl.store(at, tl.load(at) + of_weight)
        tl.store(at + second_units, tl.load(at + second_units) + tl.sum(of_z, 0))


@triton.jit
def _sum_pairs(
    owners,
    others,
    pairs,
    sums,
    count,
    units,
    owner_stride,
    other_stride,
    OTHERS: tl.constexpr,
    UNITS: tl.constexpr,
):
    """sums_pk += sum_q pairs_pqk 1[owners_pk + others_qk > 0] over `count` others q."""
    owner = tl.program_id(0).to(tl.int64)
    unit = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    mine = tl.load(owners + owner * units + unit).to(tl.float32)[None, :]
    total = tl.zeros((UNITS,), tl.float32)
    for start in range(0, count, OTHERS):
        other = (start + tl.arange(0, OTHERS))[:, None].to(tl.int64)
        x = mine + tl.load(others + other * units + unit[None, :]).to(tl.float32)
        g = tl.load(pairs + (owner * owner_stride + other * other_stride) * units + unit[None, :]).to(tl.float32)
        total += tl.sum(tl.where(x <= 0.0, 0.0, g), 0)
    at = sums + owner * units + unit
    tl.store(at, tl.load(at) + total)


def _multiple(n: int, of: int) -> int:
    return -(-n // of) * of


class _Operands:
    """u, n = -v and the weight, padded with zeros, and what a score has of its row and column alone."""

    # Units of the first layer that a tile takes at once, and of a second one; how tiles are multiplied.
    _together, _second, _precision = _UNITS_TOGETHER, 1, "ieee"
    _hidden: tuple[Tensor | None, Tensor | None, int] = (None, None, 0)

    def __init__(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> None:
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        (self.rows, self.h), self.columns = x.shape, y.shape[0]
        self.units = _multiple(self.h, _UNIT_PADDING)
        self.u, self.n = self._padded(x.to(dtype)), self._padded(-y.to(dtype))
        self.u_transposed, self.n_transposed = self.u.mT.contiguous(), self.n.mT.contiguous()
        self.weight = self.u.new_zeros(self.units)
        self.weight[: self.h] = weight
        # A NaN of v comes with this sum; one of u would be lost in the maxima.
        self.column_offsets = torch.mv(self.n, self.weight, out=self.n.new_empty(self.n.shape[0]))
        self.column_offsets = bias.to(dtype) - self.column_offsets
        self.row_offsets = torch.where(self.u.isnan().any(1), torch.nan, 0.0).to(dtype)

    def _padded(self, x: Tensor) -> Tensor:
        padded = x.new_zeros(_multiple(x.shape[0], _PADDING), self.units)
        padded[: x.shape[0], : x.shape[1]] = x
        return padded

    def _tile(self, kernel: str, launch: Callable[[Tile], object]) -> Tile:
        return choose(kernel, Problem(self.u.device, self.u.dtype, self.rows, self.columns, self.h), launch)

    def _tile_of_scores(self, softplus: bool, positive: bool, clip: float) -> Tile:
        return self._tile("critic.scores", lambda tile: self._reduced(softplus, positive, clip, 0, False, tile))

    def _sides(self) -> tuple[Tensor, Tensor]:
        return self.u_transposed, self.n_transposed

    def reduce(
        self, softplus: bool, positive: bool, clip: float, offset: int = 0, transposed: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Positives, and maxima and sums of rows [shares, N], or of columns, the rows of the transpose.

        The positive of row i is column i + offset; those of columns that have one are of rows.
        """
        tile = self._tile_of_scores(softplus, positive, clip)
        return self._reduced(softplus, positive, clip, offset, transposed, tile)

    def _reduced(
        self, softplus: bool, positive: bool, clip: float, offset: int, transposed: bool, tile: Tile
    ) -> tuple[Tensor, Tensor, Tensor]:
        of_rows, of_columns = self._sides()
        sides = [(of_rows, self.row_offsets, self.rows), (of_columns, self.column_offsets, self.columns)]
        (u, row_offsets, rows), (n, column_offsets, columns) = reversed(sides) if transposed else sides
        blocks = triton.cdiv(rows, tile.rows)
        share = _multiple(triton.cdiv(columns, max(1, _PROGRAMS // blocks)), tile.columns)
        shares = triton.cdiv(columns, share)
        positives = row_offsets.new_empty(rows)
        maxima, totals = row_offsets.new_empty(shares, rows), row_offsets.new_empty(shares, rows)
        with torch.cuda.device_of(u):
            _reduce[(blocks, shares)](
                u,
                n,
                self.weight,
                row_offsets,
                column_offsets,
                positives,
                maxima,
                totals,
                rows,
                columns,
                self.units,
                u.shape[1],
                n.shape[1],
                share,
                clip,
                -offset if transposed else offset,
                *self._hidden,
                softplus,
                positive,
                clip < math.inf,
                tile.rows,
                tile.columns,
                self._together,
                self._second,
                self._precision,
                num_warps=tile.warps,
            )
        return positives, maxima, totals

    def log_sum_exp(self, positive: bool, clip: float, offset: int, transposed: bool = False) -> tuple[Tensor, Tensor]:
        """Positives, and log-sum-exps in float64, of rows or of columns."""
        positives, maxima, totals = self.reduce(False, positive, clip, offset, transposed)
        maxima, totals = maxima.double(), totals.double()
        highest = maxima.amax(0)
        level = torch.where(highest.isinf(), 0.0, highest)
        return positives, level + torch.log((totals * torch.exp(maxima - level)).sum(0))

    def _upstream(
        self,
        of_positives: Tensor,
        of_rows: Tensor,
        of_columns: Tensor | None,
        row_lse: Tensor | None,
        column_lse: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What weights of pairs are made of, as kernels take it; what has no part in one may be any tensor."""
        positives, rows = (z.to(self.weight.dtype).contiguous() for z in (of_positives, of_rows))
        columns = rows if of_columns is None else of_columns.to(self.weight.dtype).contiguous()
        row_lse = rows if row_lse is None else _without_minus_infinity(row_lse)
        column_lse = row_lse if column_lse is None else _without_minus_infinity(column_lse)
        return positives, rows, columns, row_lse, column_lse

    def gradients(
        self,
        of_positives: Tensor,
        of_rows: Tensor,
        of_columns: Tensor | None,
        row_lse: Tensor | None,
        column_lse: Tensor | None,
        positive: bool,
        clip: float,
        offset: int,
        like: Sequence[Tensor],
    ) -> list[Tensor]:
        """Gradients of x, y, weight and bias, in their dtypes; those of softplus sums without `row_lse`."""
        softplus, both_ways = row_lse is None, column_lse is not None
        upstream = self._upstream(of_positives, of_rows, of_columns, row_lse, column_lse)
        tile = self._tile_of_scores(softplus, positive, clip)
        padded_rows, padded_columns = self.u.shape[0], self.n.shape[0]
        at_once = max(1, _CHUNK_BYTES // (2 * padded_columns * self.u.element_size()) // _PADDING) * _PADDING
        at_once = min(at_once, padded_rows)
        g, transposed = self.u.new_empty(at_once, padded_columns), self.u.new_empty(padded_columns, at_once)
        of_u, of_n = torch.empty_like(self.u), torch.empty_like(self.n)
        total = torch.zeros((), dtype=torch.float64, device=g.device)
        sums_tile = self._tile(
            "critic.sums",
            lambda tile: self._sum(self.n, self.u, g, torch.empty_like(of_n), 0, at_once, False, False, tile),
        )
        for first in range(0, padded_rows, at_once):
            count = min(at_once, padded_rows - first)
            with torch.cuda.device_of(g):
                _weigh[(count // tile.rows, padded_columns // tile.columns)](
                    self.u_transposed,
                    self.n_transposed,
                    self.weight,
                    self.row_offsets,
                    self.column_offsets,
                    *upstream,
                    g,
                    transposed,
                    first,
                    self.rows,
                    self.columns,
                    self.units,
                    padded_rows,
                    padded_columns,
                    padded_columns,
                    at_once,
                    clip,
                    offset,
                    softplus,
                    positive,
                    clip < math.inf,
                    both_ways,
                    tile.rows,
                    tile.columns,
                    _UNITS_TOGETHER,
                    num_warps=tile.warps,
                )
                u, of_own_u = self.u[first:], of_u[first:]
                self._sum(u[:count], self.n, transposed, of_own_u, 0, padded_columns, True, False, sums_tile)
                self._sum(self.n, self.u, g, of_n, first, count, False, first > 0, sums_tile)
            total += g[:count].sum(dtype=torch.float64)
        of_weight = (self.u * of_u).sum(0, dtype=torch.float64) - (self.n * of_n).sum(0, dtype=torch.float64)
        found = ((of_u * self.weight)[: self.rows, : self.h], (of_n * self.weight)[: self.columns, : self.h])
        return [z.to(x.dtype).contiguous() for z, x in zip((*found, of_weight[: self.h], total), like, strict=True)]

    def _sum(
        self,
        owners: Tensor,
        others: Tensor,
        g: Tensor,
        into: Tensor,
        first: int,
        count: int,
        of_rows: bool,
        add: bool,
        tile: Tile,
    ) -> None:
        """Active weights of owners, rows or columns, over `count` others from `first` on; g is [others, owners]."""
        _sum_active[(owners.shape[0] // tile.rows, self.units // tile.columns)](
            owners,
            others,
            g,
            into,
            first,
            count,
            self.units,
            g.shape[1],
            of_rows,
            add,
            _PIECE,
            tile.rows,
            tile.columns,
            num_warps=tile.warps,
        )


class _SecondLayerOperands(_Operands):
    """u, v, the weight and a second layer W and c, padded with zeros; what is multiplied in the dtype of x.

    Or in float32 for float16, which is too narrow.
    """

    def __init__(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, matrix: Tensor, offset: Tensor) -> None:
        (self.rows, self.h), self.columns, self._g = x.shape, y.shape[0], matrix.shape[0]
        dtype = engine.operand_dtype(x.dtype)
        self._precision = precision(dtype)
        self._together, self._second = min(_UNITS_OF_TWO, _UNIT_PADDING), _UNIT_PADDING
        self.units = _multiple(self.h, _UNIT_PADDING)
        self.u, self.n = self._padded(x.to(dtype)), self._padded(y.to(dtype))
        second_units = _multiple(self._g, _UNIT_PADDING)
        self.weight, c = torch.zeros(2, second_units, dtype=torch.float32, device=x.device).unbind()
        self.weight[: self._g], c[: self._g] = weight, offset
        self._matrix = self.u.new_zeros(second_units, self.units)
        self._matrix[: self._g, : self.h] = matrix
        self._hidden = (self._matrix, c, second_units)
        self.row_offsets = self.weight.new_zeros(self.u.shape[0])
        self.column_offsets = bias.float().expand(self.n.shape[0]).contiguous()

    def _sides(self) -> tuple[Tensor, Tensor]:
        return self.u, self.n

    def _tile_of_scores(self, softplus: bool, positive: bool, clip: float) -> Tile:
        """The table's, which divides the padding; it is not measured."""
        return shipped("critic.two_layers", capability(self.u.device), arithmetic(self.u.dtype), self.h)

    def gradients(
        self,
        of_positives: Tensor,
        of_rows: Tensor,
        of_columns: Tensor | None,
        row_lse: Tensor | None,
        column_lse: Tensor | None,
        positive: bool,
        clip: float,
        offset: int,
        like: Sequence[Tensor],
    ) -> list[Tensor]:
        """Gradients of x, y, weight, bias, W and c, in their dtypes."""
        softplus, both_ways = row_lse is None, column_lse is not None
        upstream = self._upstream(of_positives, of_rows, of_columns, row_lse, column_lse)
        tile = self._tile_of_scores(softplus, positive, clip)
        second_units, device = self.weight.shape[0], self.u.device
        # Rows and columns of a chunk.
        pairs = _PAIRS_BYTES // ((2 * self.units + second_units) * self.u.element_size())
        edge = max(1, math.isqrt(pairs) // _PADDING) * _PADDING
        edge = min(edge, max(self.u.shape[0], self.n.shape[0]))
        at_once = min(edge, self.u.shape[0]) * min(edge, self.n.shape[0])

        def sums(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float32, device=device)

        first_layers, of_first_layers = (self.u.new_empty(at_once, self.units) for _ in range(2))
        second_layers = self.u.new_empty(at_once, second_units)
        programs = at_once // (tile.rows * tile.columns)
        of_second, totals = sums(programs, 2, second_units), sums(programs)
        of_u, of_v = sums(*self.u.shape), sums(*self.n.shape)
        of_matrix = sums(*self._matrix.shape)
        with torch.cuda.device_of(self.u), torch.autocast(device.type, enabled=False):
            for first_row in range(0, self.u.shape[0], edge):
                for first_column in range(0, self.n.shape[0], edge):
                    height = min(edge, self.u.shape[0] - first_row)
                    breadth = min(edge, self.n.shape[0] - first_column)
                    chunk = tuple(x[: height * breadth] for x in (first_layers, second_layers))
                    of_first = of_first_layers[: height * breadth]
                    _weigh_second_layer[(height // tile.rows, breadth // tile.columns)](
                        self.u,
                        self.n,
                        self.weight,
                        self.row_offsets,
                        self.column_offsets,
                        *self._hidden[:2],
                        *upstream,
                        *chunk,
                        of_second,
                        totals,
                        first_row,
                        first_column,
                        self.rows,
                        self.columns,
                        breadth,
                        self.units,
                        second_units,
                        clip,
                        offset,
                        softplus,
                        positive,
                        clip < math.inf,
                        both_ways,
                        tile.rows,
                        tile.columns,
                        self._together,
                        self._second,
                        self._precision,
                        num_warps=tile.warps,
                    )
                    matrix_product(chunk[1].mT, chunk[0], of_matrix, add=True)
                    matrix_product(chunk[1], self._matrix, of_first)
                    u, v = self.u[first_row:], self.n[first_column:]
                    for owners, others, into, owned, count, strides in (
                        (u, v, of_u[first_row:], height, breadth, (breadth, 1)),
                        (v, u, of_v[first_column:], breadth, height, (1, breadth)),
                    ):
                        _sum_pairs[(owned, self.units // _UNIT_PADDING)](
                            owners,
                            others,
                            of_first,
                            into,
                            count,
                            self.units,
                            *strides,
                            _OTHERS,
                            _UNIT_PADDING,
                            num_warps=4,
                        )
        of_weight, of_offset = of_second.sum(0, dtype=torch.float64)[:, : self._g]
        found = (
            of_u[: self.rows, : self.h],
            of_v[: self.columns, : self.h],
            of_weight,
            totals.sum(dtype=torch.float64),
            of_matrix[: self._g, : self.h],
            of_offset,
        )
        return [z.to(x.dtype).contiguous() for z, x in zip(found, like, strict=True)]


def _operands(x: Tensor, y: Tensor, parameters: Sequence[Tensor]) -> _Operands:
    return _Operands(x, y, *parameters) if len(parameters) == 2 else _SecondLayerOperands(x, y, *parameters)


def _without_minus_infinity(lse: Tensor) -> Tensor:
    """+inf for -inf: what has no softmax has weights e^(s - inf) = 0."""
    return torch.where(lse == -torch.inf, torch.inf, lse)


def _pairs(x: Tensor, y: Tensor, clip: float = math.inf, offset: int = 0) -> engine.Pairs:
    """Pairs of inner products; a bound of their scores takes the place of a bias."""
    bound = engine.scalar(clip if clip < math.inf else 0.0)
    return engine.Pairs(engine.rows_in_place(x), engine.rows_in_place(y)[None], bias=bound, offset=offset)


def _flags(positive: bool, clip: float = math.inf, columns: bool = False) -> int:
    flags = 0 if positive else POSITIVE_EXCLUDED
    flags |= CLAMPED if clip < math.inf else 0
    return flags | (TWO_WAY if columns else 0)


def _results(gradients: engine.Gradients, x: Tensor, y: Tensor) -> list[Tensor]:
    """The gradients of x and y; one that was not needed is empty."""
    of_x = x.new_empty(x.shape) if gradients.rows is None else gradients.rows
    of_y = y.new_empty(y.shape) if gradients.operands is None else gradients.operands[0]
    return [of_x, of_y]


def log_sum_exp(
    x: Tensor, y: Tensor, parameters: list[Tensor], positive: bool, clip: float, columns: bool, offset: int
) -> list[Tensor]:
    """As `cpu.log_sum_exp`, of any parameters."""
    positives, *wide = _positives_and_log_sum_exps(x, y, parameters, positive, clip, columns, offset)
    return [positives, *(lse.to(positives.dtype, copy=True) for lse in wide), *wide]


def _positives_and_log_sum_exps(
    x: Tensor, y: Tensor, parameters: list[Tensor], positive: bool, clip: float, columns: bool, offset: int
) -> tuple[Tensor, Tensor, Tensor]:
    if not parameters:
        return pairwise.log_sum_exps(INNER_PRODUCT, _pairs(x, y, clip, offset), _flags(positive, clip, columns))
    operands = _operands(x, y, parameters)
    positives, row_lse = operands.log_sum_exp(positive, clip, offset)
    column_lse = operands.log_sum_exp(positive, clip, offset, transposed=True)[1] if columns else row_lse.new_empty(0)
    return positives, row_lse, column_lse


def log_sum_exp_backward(
    grad_positives: Tensor,
    grad_rows: Tensor,
    grad_columns: Tensor,
    x: Tensor,
    y: Tensor,
    parameters: list[Tensor],
    row_lse: Tensor,
    column_lse: Tensor,
    needed: list[bool],
    positive: bool,
    clip: float,
    columns: bool,
    offset: int,
) -> list[Tensor]:
    """As `cpu.log_sum_exp_backward`; all gradients are formed of additive scores."""
    both = (grad_columns, column_lse) if columns else (None, None)
    if not parameters:
        gradients = pairwise.log_sum_exps_gradient(
            INNER_PRODUCT,
            _pairs(x, y, clip, offset),
            _flags(positive, clip, columns),
            engine.Wanted(needed[0], needed[1]),
            grad_positives=grad_positives,
            grad_rows=grad_rows,
            grad_columns=both[0],
            row_lse=row_lse,
            column_lse=both[1],
        )
        return _results(gradients, x, y)
    operands, like = _operands(x, y, parameters), (x, y, *parameters)
    return operands.gradients(grad_positives, grad_rows, both[0], row_lse, both[1], positive, clip, offset, like)


def softplus(x: Tensor, y: Tensor, parameters: list[Tensor], positive: bool) -> tuple[Tensor, Tensor]:
    """As `cpu.softplus`."""
    if not parameters:
        states = engine.reduce(INNER_PRODUCT, _SOFTPLUS_SUMS, _pairs(x, y), _flags(positive))
        return states.positives, states.rows[0].sum(0, dtype=torch.float64).float()
    positives, _, totals = _operands(x, y, parameters).reduce(True, positive, math.inf)
    return positives, totals.sum(0, dtype=torch.float64).to(totals.dtype)


def softplus_backward(
    of_positives: Tensor,
    of_rows: Tensor,
    x: Tensor,
    y: Tensor,
    parameters: list[Tensor],
    needed: list[bool],
    positive: bool,
) -> list[Tensor]:
    """As `cpu.softplus_backward`; all gradients are formed of additive scores."""
    if not parameters:
        weights = engine.Weights(pairwise.apart(of_rows, of_positives, None))
        wanted = engine.Wanted(needed[0], needed[1])
        reduction, flags = _SOFTPLUS_SUMS, _flags(positive)
        return _results(engine.gradient(INNER_PRODUCT, reduction, _pairs(x, y), flags, weights, wanted), x, y)
    operands = _operands(x, y, parameters)
    return operands.gradients(of_positives, of_rows, None, None, None, positive, math.inf, 0, (x, y, *parameters))
