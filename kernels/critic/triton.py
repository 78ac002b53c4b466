"""Critics of inner products and of one hidden layer over all pairs in Triton; `cpu.py` has the formulas.

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
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mibfast.kernels.launch_configuration import Problem, Tile, choose
from mibfast.kernels.pairwise import engine_triton as engine
from mibfast.kernels.pairwise import reductions_triton as reductions
from mibfast.kernels.pairwise import triton as pairwise
from mibfast.kernels.pairwise.scores_triton import INNER_PRODUCT

# Rows, columns and units are padded to multiples of these, so that no load in an inner loop has a mask, and tiles
# divide them.
_PADDING, _UNITS_TOGETHER, _UNIT_PADDING = 64, 8, 64
# Pairs that a sum takes before it is added to the whole.
_PIECE = 64
# Programs that keep a GPU busy: rows are cut into shares of columns up to this number.
_PROGRAMS = 528
# Bytes of a chunk of G and its transpose.
_CHUNK_BYTES = 2**26


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
    SOFTPLUS: tl.constexpr,
    POSITIVE: tl.constexpr,
    CLIPPED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """Maximum and sum of each row's scores over a share of the columns, and positives where they lie in it."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    begin = tl.program_id(1) * share
    number = u.dtype.element_ty
    maximum, total = tl.full((ROWS,), -float("inf"), number), tl.zeros((ROWS,), number)
    for first in range(begin, tl.minimum(begin + share, columns), COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        s = _scores(u, n, weight, row_offsets, column_offsets, row, column, units, u_stride, n_stride, TOGETHER)
        own = row[:, None] == column[None, :]
        has_own = (row >= first) & (row < first + COLUMNS) & (row < rows)
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
    own = row[:, None] == column[None, :]
    if CLIPPED:
        weights = tl.where(tl.abs(s) > clip, 0.0, weights)
    if not POSITIVE:
        weights = tl.where(own, 0.0, weights)
    of_own = tl.load(of_positives + row, mask=in_rows, other=0.0)
    weights += tl.where(own, of_own[:, None], 0.0)
    weights = tl.where(in_rows[:, None] & in_columns[None, :], weights, 0.0)
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


def _multiple(n: int, of: int) -> int:
    return -(-n // of) * of


class _Operands:
    """u, n = -v and the weight, padded with zeros, and what a score has of its row and column alone."""

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
        return self._tile("critic.scores", lambda tile: self._reduced(softplus, positive, clip, False, tile))

    def reduce(
        self, softplus: bool, positive: bool, clip: float, transposed: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Positives, and maxima and sums of rows [shares, N], or of columns, the rows of the transpose."""
        return self._reduced(softplus, positive, clip, transposed, self._tile_of_scores(softplus, positive, clip))

    def _reduced(
        self, softplus: bool, positive: bool, clip: float, transposed: bool, tile: Tile
    ) -> tuple[Tensor, Tensor, Tensor]:
        sides = [
            (self.u_transposed, self.row_offsets, self.rows),
            (self.n_transposed, self.column_offsets, self.columns),
        ]
        (u, row_offsets, rows), (n, column_offsets, columns) = reversed(sides) if transposed else sides
        blocks = triton.cdiv(rows, tile.rows)
        share = _multiple(triton.cdiv(columns, max(1, _PROGRAMS // blocks)), tile.columns)
        shares = triton.cdiv(columns, share)
        positives = u.new_empty(rows)
        maxima, totals = u.new_empty(shares, rows), u.new_empty(shares, rows)
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
                softplus,
                positive,
                clip < math.inf,
                tile.rows,
                tile.columns,
                _UNITS_TOGETHER,
                num_warps=tile.warps,
            )
        return positives, maxima, totals

    def log_sum_exp(self, positive: bool, clip: float, transposed: bool = False) -> tuple[Tensor, Tensor]:
        """Positives, and log-sum-exps in float64, of rows or of columns."""
        positives, maxima, totals = self.reduce(False, positive, clip, transposed)
        maxima, totals = maxima.double(), totals.double()
        highest = maxima.amax(0)
        level = torch.where(highest.isinf(), 0.0, highest)
        return positives, level + torch.log((totals * torch.exp(maxima - level)).sum(0))

    def gradients(
        self,
        of_positives: Tensor,
        of_rows: Tensor,
        of_columns: Tensor | None,
        row_lse: Tensor | None,
        column_lse: Tensor | None,
        positive: bool,
        clip: float,
        like: Sequence[Tensor],
    ) -> list[Tensor]:
        """Gradients of x, y, weight and bias, in their dtypes; those of softplus sums without `row_lse`."""
        of_positives, of_rows = (z.to(self.u.dtype).contiguous() for z in (of_positives, of_rows))
        softplus, both_ways = row_lse is None, column_lse is not None
        # What has no part in a kernel may be any tensor.
        of_columns = of_rows if of_columns is None else of_columns.to(self.u.dtype).contiguous()
        row_lse = of_rows if row_lse is None else _without_minus_infinity(row_lse)
        column_lse = row_lse if column_lse is None else _without_minus_infinity(column_lse)
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
                    of_positives,
                    of_rows,
                    of_columns,
                    row_lse,
                    column_lse,
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
        of_weight = ((self.u * of_u).sum(0, dtype=torch.float64) - (self.n * of_n).sum(0, dtype=torch.float64))[
            : self.h
        ]
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


def _without_minus_infinity(lse: Tensor) -> Tensor:
    """+inf for -inf: what has no softmax has weights e^(s - inf) = 0."""
    return torch.where(lse == -torch.inf, torch.inf, lse)


def _pairs(x: Tensor, y: Tensor, clip: float = math.inf) -> engine.Pairs:
    """Pairs of inner products; a bound of their scores takes the place of a bias."""
    bound = engine.scalar(clip if clip < math.inf else 0.0)
    return engine.Pairs(engine.rows_in_place(x), engine.rows_in_place(y)[None], bias=bound)


def _flags(positive: bool, clip: float = math.inf, columns: bool = False) -> int:
    flags = 0 if positive else reductions.POSITIVE_EXCLUDED.value
    flags |= reductions.CLIPPED.value if clip < math.inf else 0
    return int(flags | (reductions.TWO_WAY.value if columns else 0))


def _upstream(of_rows: Tensor, of_positives: Tensor, of_columns: Tensor | None, count: int) -> Tensor:
    """Upstream gradients of rows, positives and columns, as the engine takes them: [3, N'] float32."""
    upstream = torch.zeros(3, count, dtype=torch.float32, device=of_rows.device)
    for plane, given in zip(upstream, (of_rows, of_positives, of_columns), strict=True):
        if given is not None:
            plane[: given.shape[0]] = given
    return upstream


def _results(gradients: engine.Gradients, x: Tensor, y: Tensor) -> list[Tensor]:
    """The gradients of x and y; one that was not needed is empty."""
    of_x = x.new_empty(x.shape) if gradients.rows is None else gradients.rows
    of_y = y.new_empty(y.shape) if gradients.operands is None else gradients.operands[0]
    return [of_x, of_y]


def log_sum_exp(
    x: Tensor, y: Tensor, parameters: list[Tensor], positive: bool, clip: float, columns: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As `cpu.log_sum_exp`, of no parameters or of weight and bias."""
    if not parameters:
        flags = _flags(positive, clip, columns)
        return pairwise.losses_and_positives(INNER_PRODUCT, _pairs(x, y, clip), flags, 0.0)[1:]
    operands = _Operands(x, y, *parameters)
    positives, row_lse = operands.log_sum_exp(positive, clip)
    column_lse = operands.log_sum_exp(positive, clip, transposed=True)[1] if columns else row_lse.new_empty(0)
    return positives, row_lse, column_lse


def log_sum_exp_backward(
    of_positives: Tensor,
    of_rows: Tensor,
    of_columns: Tensor,
    x: Tensor,
    y: Tensor,
    parameters: list[Tensor],
    row_lse: Tensor,
    column_lse: Tensor,
    needed: list[bool],
    positive: bool,
    clip: float,
    columns: bool,
) -> list[Tensor]:
    """As `cpu.log_sum_exp_backward`; all gradients are formed of additive scores."""
    if not parameters:
        flags = _flags(positive, clip, columns) | reductions.APART.value
        upstream = _upstream(of_rows, of_positives, of_columns if columns else None, y.shape[0])
        weights = engine.Weights(upstream, 1.0, row_lse, column_lse if columns else None)
        wanted = engine.Wanted(needed[0], needed[1])
        gradients = pairwise.losses_gradient(INNER_PRODUCT, _pairs(x, y, clip), flags, weights, wanted)
        return _results(gradients, x, y)
    both = (of_columns, column_lse) if columns else (None, None)
    operands = _Operands(x, y, *parameters)
    return operands.gradients(of_positives, of_rows, both[0], row_lse, both[1], positive, clip, (x, y, *parameters))


def softplus(x: Tensor, y: Tensor, parameters: list[Tensor], positive: bool) -> tuple[Tensor, Tensor]:
    """As `cpu.softplus`."""
    if not parameters:
        states = engine.reduce(INNER_PRODUCT, reductions.SOFTPLUS_SUM, _pairs(x, y), _flags(positive))
        return states.positives, states.rows[0].sum(0, dtype=torch.float64).float()
    positives, _, totals = _Operands(x, y, *parameters).reduce(True, positive, math.inf)
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
        weights = engine.Weights(_upstream(of_rows, of_positives, None, y.shape[0]))
        wanted = engine.Wanted(needed[0], needed[1])
        reduction, flags = reductions.SOFTPLUS_SUM, _flags(positive)
        return _results(engine.gradient(INNER_PRODUCT, reduction, _pairs(x, y), flags, weights, wanted), x, y)
    operands = _Operands(x, y, *parameters)
    return operands.gradients(of_positives, of_rows, None, None, None, positive, math.inf, (x, y, *parameters))
