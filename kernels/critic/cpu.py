"""Critics over all pairs on the CPU: log-sum-exps and softplus sums by the reductions of the pairwise engine.

Scores of two embeddings are the engine's own: 1 GEMM of 2 N N' d FLOPs for the results and 3 for the gradients, since
an upstream gradient for each row is known only after all of them. A mean over all pairs has one upstream gradient, so
its gradient is formed in the sweep that finds it, 3 GEMMs in all: a softplus's weight depends on its own pair alone,
and those of a log-sum-exp over all pairs are a row's softmax times a factor that is known up to the largest row so
far, by which what is gathered is brought down where a larger row comes.

An additive score, w . relu(u_i + v_j) + b, has tiles of its own. relu(a + b) = max(a, -b) + b, so with the column's
w . v_j + b apart a score costs a maximum and a multiply-add for each of the h units, not three operations. With
G = dL/ds and D_ijk = 1[u_ik > -v_jk], two sums carry all gradients,

    A_ik = sum_j G_ij D_ijk,  B_jk = sum_i G_ij D_ijk:   du = A w,  dv = B w,  dw = sum_i u_i A_i + sum_j v_j B_j,

at a comparison and two masked additions for each unit of a pair. In vectors of 16: 2 operations forward, 5 backward
(the scores again, and the sums), 7 N N' h / 16 in all; at two a cycle and 3 GHz on two cores the floor is 10 ms for N =
1024, h = 256. Measured: 37 to 44 ms, 11 of them forward; LLVM takes vectors of 8, whose floor is 20 ms. Units are taken
eight at a time over a row's columns, rows eight at a time for the sums: what is loaded and stored is shared by eight.
Memory beyond operands and gradients: the columns' [h, N'] and their sums, and a tile of 1 MiB.

With a second hidden layer a block of pairs' relu(u_i + v_j) [P, h] goes through `torch.mm` by W, 1 GEMM of 2 N N' h g
FLOPs for the results and 3 for the gradients; nothing but a block is kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise as neighbours
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mibfast import _buffers
from mibfast._threads import parallel, slots
from mibfast.kernels.compilation import kernel
from mibfast.kernels.pairwise import cpu as pairwise
from mibfast.kernels.pairwise import engine_cpu as engine
from mibfast.kernels.pairwise import reductions
from mibfast.kernels.pairwise.flags import LOG_SUM_EXP_BESIDE, POSITIVE_EXCLUDED, POSITIVE_LOGISTIC
from mibfast.kernels.pairwise.reductions import softplus as softplus_sums
from mibfast.kernels.pairwise.rows_cpu import Rows
from mibfast.kernels.pairwise.scores import Score
from mibfast.kernels.pairwise.tiles_cpu import Gradients, Tiles
from mibfast.kernels.vector_math import sum_of

_SOFTPLUS = reductions.named("softplus")
# A tile of additive scores, which all h units pass over, stays in a core's second cache.
_TILE_BYTES = 2**20
# Columns at a time: eight vectors of them stay in the first cache.
_COLUMNS = 1024
# Rows and units that share what is loaded.
_TOGETHER = 8
# A block of pairs and its two layers of units.
_BLOCK_BYTES = 4 * 2**20
# Units of pairs a slot, at least: 30 microseconds of work.
_GRAIN = 2**19


@kernel
def _add_units(u: Any, negated: Any, weight: Any, offsets: Any, begin: int, end: int, out: Any) -> None:
    """out_ij = sum_k w_k max(u_ik, n_kj) + offset_j for some rows; a NaN of u stays, one of v is in the offset."""
    h, n = negated.shape
    for start in range(0, n, _COLUMNS):
        stop = min(start + _COLUMNS, n)
        column_offsets = offsets[start:stop]
        for i in range(begin, end):
            s = out[i, start:stop]
            for j in range(s.size):
                s[j] = column_offsets[j]
        for k in range(0, h - _TOGETHER + 1, _TOGETHER):
            n0, n1, n2, n3 = (
                negated[k, start:stop],
                negated[k + 1, start:stop],
                negated[k + 2, start:stop],
                negated[k + 3, start:stop],
            )
            n4, n5, n6, n7 = (
                negated[k + 4, start:stop],
                negated[k + 5, start:stop],
                negated[k + 6, start:stop],
                negated[k + 7, start:stop],
            )
            w0, w1, w2, w3 = weight[k], weight[k + 1], weight[k + 2], weight[k + 3]
            w4, w5, w6, w7 = weight[k + 4], weight[k + 5], weight[k + 6], weight[k + 7]
            for i in range(begin, end):
                s, x = out[i, start:stop], u[i]
                u0, u1, u2, u3 = x[k], x[k + 1], x[k + 2], x[k + 3]
                u4, u5, u6, u7 = x[k + 4], x[k + 5], x[k + 6], x[k + 7]
                for j in range(s.size):
                    a = w0 * (n0[j] if n0[j] > u0 else u0) + w1 * (n1[j] if n1[j] > u1 else u1)
                    b = w2 * (n2[j] if n2[j] > u2 else u2) + w3 * (n3[j] if n3[j] > u3 else u3)
                    c = w4 * (n4[j] if n4[j] > u4 else u4) + w5 * (n5[j] if n5[j] > u5 else u5)
                    d = w6 * (n6[j] if n6[j] > u6 else u6) + w7 * (n7[j] if n7[j] > u7 else u7)
                    s[j] += (a + b) + (c + d)
        for k in range(h - h % _TOGETHER, h):
            n0, w0 = negated[k, start:stop], weight[k]
            for i in range(begin, end):
                s, u0 = out[i, start:stop], u[i, k]
                for j in range(s.size):
                    s[j] += w0 * (n0[j] if n0[j] > u0 else u0)


@kernel
def _apply_factors(g: Any, factors: Any, begin: int, end: int, sums: Any) -> None:
    """Multiply rows by their factors, and sum them."""
    for i in range(begin, end):
        row, factor = g[i], factors[i]
        for j in range(row.size):
            row[j] *= factor
        sums[i] = sum_of(row)


@kernel
def _add_where_active(u: Any, negated: Any, g: Any, begin: int, end: int, row_sums: Any, column_sums: Any) -> None:
    """Of units begin to end: A_ik = sum_j g_ij D_ijk, and B_kj += sum_i g_ij D_ijk.

    At a tie D is 0, the derivative that torch gives; a NaN is no reason to leave a gradient out.
    """
    count, n = g.shape
    zero = g.dtype.type(0.0)
    for i in range(count):
        for k in range(begin, end):
            row_sums[i, k] = zero
    for start in range(0, n, _COLUMNS):
        stop = min(start + _COLUMNS, n)
        for i in range(0, count - _TOGETHER + 1, _TOGETHER):
            g0, g1, g2, g3 = g[i, start:stop], g[i + 1, start:stop], g[i + 2, start:stop], g[i + 3, start:stop]
            g4, g5, g6, g7 = g[i + 4, start:stop], g[i + 5, start:stop], g[i + 6, start:stop], g[i + 7, start:stop]
            for k in range(begin, end):
                negated_unit, b = negated[k, start:stop], column_sums[k, start:stop]
                u0, u1, u2, u3 = u[i, k], u[i + 1, k], u[i + 2, k], u[i + 3, k]
                u4, u5, u6, u7 = u[i + 4, k], u[i + 5, k], u[i + 6, k], u[i + 7, k]
                a0, a1, a2, a3, a4, a5, a6, a7 = zero, zero, zero, zero, zero, zero, zero, zero
                for j in range(b.size):
                    x = negated_unit[j]
                    t0, t1 = zero if u0 <= x else g0[j], zero if u1 <= x else g1[j]
                    t2, t3 = zero if u2 <= x else g2[j], zero if u3 <= x else g3[j]
                    t4, t5 = zero if u4 <= x else g4[j], zero if u5 <= x else g5[j]
                    t6, t7 = zero if u6 <= x else g6[j], zero if u7 <= x else g7[j]
                    a0 += t0
                    a1 += t1
                    a2 += t2
                    a3 += t3
                    a4 += t4
                    a5 += t5
                    a6 += t6
                    a7 += t7
                    b[j] += ((t0 + t1) + (t2 + t3)) + ((t4 + t5) + (t6 + t7))
                row_sums[i, k] += a0
                row_sums[i + 1, k] += a1
                row_sums[i + 2, k] += a2
                row_sums[i + 3, k] += a3
                row_sums[i + 4, k] += a4
                row_sums[i + 5, k] += a5
                row_sums[i + 6, k] += a6
                row_sums[i + 7, k] += a7
        for i in range(count - count % _TOGETHER, count):
            g0 = g[i, start:stop]
            for k in range(begin, end):
                negated_unit, b, u0, a0 = negated[k, start:stop], column_sums[k, start:stop], u[i, k], zero
                for j in range(b.size):
                    t0 = zero if u0 <= negated_unit[j] else g0[j]
                    a0 += t0
                    b[j] += t0
                row_sums[i, k] += a0


@kernel
def _first_layer(u: Any, v: Any, first: int, begin: int, end: int, columns: int, out: Any) -> None:
    """out_p = relu(u_i + v_j) for pairs p = begin to end, row by row of `columns` columns, the first being `first`."""
    zero = out.dtype.type(0.0)
    for p in range(begin, end):
        x, y, units = u[p // columns], v[first + p % columns], out[p]
        for k in range(units.size):
            s = x[k] + y[k]
            units[k] = zero if s <= zero else s


@kernel
def _second_layer(
    z: Any, offset: Any, weight: Any, bias: float, first: int, begin: int, end: int, columns: int, out: Any
) -> None:
    """Scores w . relu(z_p + c) + b of pairs begin to end."""
    zero = z.dtype.type(0.0)
    for p in range(begin, end):
        units, s = z[p], zero
        for k in range(units.size):
            x = units[k] + offset[k]
            s += weight[k] * (zero if x <= zero else x)
        out[p // columns, first + p % columns] = s + z.dtype.type(bias)


@kernel
def _second_layer_gradient(
    z: Any,
    offset: Any,
    weight: Any,
    g: Any,
    first: int,
    begin: int,
    end: int,
    columns: int,
    grad_weight: Any,
    grad_offset: Any,
) -> None:
    """Replace z_p by dL/dz_p = g w 1[z_p + c > 0], and add g relu(z_p + c) and dL/dz_p to sums of their own."""
    zero = z.dtype.type(0.0)
    for p in range(begin, end):
        units, upstream = z[p], g[p // columns, first + p % columns]
        for k in range(units.size):
            x = units[k] + offset[k]
            grad_weight[k] += zero if x <= zero else upstream * x
            t = zero if x <= zero else upstream * weight[k]
            grad_offset[k] += t
            units[k] = t


@kernel
def _first_layer_gradient(
    units: Any,
    gradient: Any,
    rows: int,
    columns: int,
    first: int,
    begin: int,
    end: int,
    grad_rows: Any,
    grad_columns: Any,
) -> None:
    """Add dL/dunits, where a unit is active, to its row and to its column, of units begin to end."""
    zero = gradient.dtype.type(0.0)
    for i in range(rows):
        a = grad_rows[i, begin:end]
        for j in range(columns):
            x, g = units[i * columns + j, begin:end], gradient[i * columns + j, begin:end]
            b = grad_columns[first + j, begin:end]
            for k in range(a.size):
                # A unit of NaN is active.
                t = zero if x[k] == zero else g[k]
                a[k] += t
                b[k] += t


def _shares(count: int, work: int) -> list[tuple[int, int]]:
    """Cut 0..count, each of `work` units of pairs, into shares for the threads."""
    number = slots(count, max(1, _GRAIN // max(1, work)))
    bounds = [count * share // number for share in range(number + 1)]
    return list(neighbours(bounds))


def _zeros(*shape: int, like: np.ndarray) -> np.ndarray:
    array = _buffers.empty(shape, like.dtype)
    array.fill(0.0)
    return array


class _AdditiveColumns:
    """The columns v [N', h] of an additive score with its weight and bias, and where their gradients gather."""

    def __init__(self, dtype: torch.dtype, y: Tensor, weight: Tensor, bias: Tensor) -> None:
        v, w = y.detach().to(dtype), weight.detach().to(dtype)
        h, self.count = v.shape[1], v.shape[0]
        self.weight = w.contiguous().numpy()
        self.negated = _buffers.empty((h, self.count), self.weight.dtype)
        torch.neg(v.T, out=torch.from_numpy(self.negated))
        # Into ready memory, which autocast leaves alone.
        self.offsets = torch.mv(v, w, out=v.new_empty(self.count)).add_(float(bias)).numpy()
        # Of the gradients: B [h, N'], and float64 sums.
        self.sums = np.empty((0, 0), self.weight.dtype)
        self.weight_gradient, self.bias_gradient = torch.zeros(h, dtype=torch.float64), 0.0

    def tiles(self, score: Score, rows: Rows) -> Tiles:
        return _AdditiveTiles(rows, self)

    def gradients(self) -> list[Tensor]:
        """Of v, weight and bias, after a sweep."""
        b, w = torch.from_numpy(self.sums), torch.from_numpy(self.weight)
        along = (torch.from_numpy(self.negated) * b).sum(1, dtype=torch.float64)
        return [
            (b.T * w).contiguous(),
            self.weight_gradient - along,
            torch.tensor(float(self.bias_gradient), dtype=torch.float64),
        ]


class _AdditiveTiles(Tiles):
    def __init__(self, rows: Rows, columns: _AdditiveColumns) -> None:
        self._own = columns
        h, n_columns = columns.negated.shape
        size = max(2 * _TOGETHER, _TILE_BYTES // (n_columns * columns.negated.itemsize) // _TOGETHER * _TOGETHER)
        statistics = torch.from_numpy(columns.negated[:0])
        super().__init__(rows, columns, min(rows.n, size), statistics, work=1)
        self._sums, self._row_sums = np.zeros(self.size), np.empty((self.size, h), columns.negated.dtype)
        self._tile = self.tile[:, 0]

    def load(self, first: int, count: int) -> None:
        own, u = self._own, self.rows.block(first, first + count).numpy()
        shares = _shares(count, own.negated.size)

        def add(share: int) -> None:
            _add_units(u, own.negated, own.weight, own.offsets, *shares[share], self._tile)

        parallel(add, len(shares))

    def scale_columns(self, factor: float, gradients: Gradients) -> None:
        own = self._own
        own.sums *= own.sums.dtype.type(factor)
        own.weight_gradient *= factor
        own.bias_gradient *= factor

    def backward(self, first: int, count: int, gradients: Gradients) -> None:
        own, u, g = self._own, self.rows.block(first, first + count).numpy(), self._tile[:count]
        if first == 0:
            own.sums = _zeros(*own.negated.shape, like=own.negated)
        self.each_slot(lambda _, begin, end, __: _apply_factors(g, self.factors, begin, end, self._sums), first, count)
        shares = _shares(u.shape[1], g.size)

        def add(share: int) -> None:
            _add_where_active(u, own.negated, g, *shares[share], self._row_sums, own.sums)

        parallel(add, len(shares))
        a = torch.from_numpy(self._row_sums[:count])
        own.weight_gradient += (torch.from_numpy(u) * a).sum(0, dtype=torch.float64)
        own.bias_gradient += self._sums[:count].sum()
        if gradients.rows is not None:
            torch.mul(a, torch.from_numpy(own.weight), out=gradients.rows[first : first + count])

    def finish(self, gradients: Gradients) -> None:
        pass


class _DeepColumns:
    """The columns v [N', h] of an additive score with a second hidden layer W [g, h], c [g], and their gradients."""

    def __init__(self, dtype: torch.dtype, y: Tensor, weight: Tensor, bias: Tensor, matrix: Tensor, offset: Tensor):
        v, w, self.matrix, c = (x.detach().to(dtype).contiguous() for x in (y, weight, matrix, offset))
        self.v, self.weight, self.offset, self.bias = v.numpy(), w.numpy(), c.numpy(), float(bias)
        self.count = self.v.shape[0]
        self.column_gradient = np.empty((0, 0), self.v.dtype)
        self.matrix_gradient = torch.empty(0)
        self.unit_gradients = np.zeros((2, self.weight.size))
        self.bias_gradient = 0.0

    def tiles(self, score: Score, rows: Rows) -> Tiles:
        return _DeepTiles(rows, self)

    def gradients(self) -> list[Tensor]:
        """Of v, weight, bias, W and c, after a sweep."""
        grad_weight, grad_offset = torch.from_numpy(self.unit_gradients)
        grad_v = torch.from_numpy(self.column_gradient)
        return [
            grad_v,
            grad_weight,
            torch.tensor(float(self.bias_gradient), dtype=torch.float64),
            self.matrix_gradient,
            grad_offset,
        ]


class _DeepTiles(Tiles):
    def __init__(self, rows: Rows, columns: _DeepColumns) -> None:
        self._own = columns
        own, dtype = columns, columns.v.dtype
        (g, h), n_columns = own.matrix.shape, own.count
        size = max(2 * _TOGETHER, _TILE_BYTES // (n_columns * dtype.itemsize))
        super().__init__(rows, columns, min(rows.n, size), own.matrix.new_empty(0, n_columns), work=1)
        self._tile, self._sums = self.tile[:, 0], np.zeros(self.size)
        # A block is some rows of all columns, or some columns of one row.
        pairs = max(64, _BLOCK_BYTES // ((2 * h + g) * dtype.itemsize))
        self._columns = min(n_columns, pairs)
        self._rows = min(self.size, max(1, pairs // n_columns))
        self._units = torch.empty(self._rows * self._columns, h, dtype=own.matrix.dtype)
        self._second = torch.empty(self._rows * self._columns, g, dtype=own.matrix.dtype)
        self._unit_gradient = torch.empty(0, dtype=own.matrix.dtype)
        self._row_gradient = np.empty((self._rows, h), dtype)

    def _blocks(self, count: int) -> list[tuple[int, int, int, int]]:
        """Rows and columns of the blocks of a tile: first and number of each."""
        return [
            (i, min(self._rows, count - i), j, min(self._columns, self._own.count - j))
            for i in range(0, count, self._rows)
            for j in range(0, self._own.count, self._columns)
        ]

    def _layers(self, u: np.ndarray, first: int, columns: int) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
        """A block's units, W times them, and its pairs cut into shares."""
        pairs = u.shape[0] * columns
        units, second = self._units[:pairs], self._second[:pairs]
        shares, out = _shares(pairs, u.shape[1]), units.numpy()
        parallel(lambda share: _first_layer(u, self._own.v, first, *shares[share], columns, out), len(shares))
        torch.mm(units, self._own.matrix.T, out=second)
        return units, second, shares

    def load(self, first: int, count: int) -> None:
        u = self.rows.block(first, first + count).numpy()
        for i, rows, j, columns in self._blocks(count):
            self._load_block(u[i : i + rows], self._tile[i : i + rows], j, columns)

    def _load_block(self, u: np.ndarray, out: np.ndarray, first: int, columns: int) -> None:
        own = self._own
        _, second, shares = self._layers(u, first, columns)
        z = second.numpy()

        def score(share: int) -> None:
            _second_layer(z, own.offset, own.weight, own.bias, first, *shares[share], columns, out)

        parallel(score, len(shares))

    def scale_columns(self, factor: float, gradients: Gradients) -> None:
        own = self._own
        own.column_gradient *= own.column_gradient.dtype.type(factor)
        own.matrix_gradient *= factor
        own.unit_gradients *= factor
        own.bias_gradient *= factor

    def backward(self, first: int, count: int, gradients: Gradients) -> None:
        own, u, g = self._own, self.rows.block(first, first + count).numpy(), self._tile[:count]
        if first == 0:
            own.column_gradient = _zeros(*own.v.shape, like=own.v)
            own.matrix_gradient = torch.zeros_like(own.matrix)
            self._unit_gradient = torch.empty_like(self._units)
        self.each_slot(lambda _, begin, end, __: _apply_factors(g, self.factors, begin, end, self._sums), first, count)
        own.bias_gradient += self._sums[:count].sum()
        for i, rows, j, columns in self._blocks(count):
            grad_rows = self._backward_block(u[i : i + rows], g[i : i + rows], j, columns)
            if gradients.rows is not None:
                gradients.rows[first + i : first + i + rows] += torch.from_numpy(grad_rows)

    def _backward_block(self, u: np.ndarray, g: np.ndarray, first: int, columns: int) -> np.ndarray:
        own, rows = self._own, u.shape[0]
        units, second, shares = self._layers(u, first, columns)
        # In float64: tens of thousands of pairs are added one by one.
        z, sums = second.numpy(), np.zeros((len(shares), 2, own.weight.size))

        def backward_second_layer(share: int) -> None:
            grad_weight, grad_offset = sums[share]
            _second_layer_gradient(
                z, own.offset, own.weight, g, first, *shares[share], columns, grad_weight, grad_offset
            )

        parallel(backward_second_layer, len(shares))
        own.unit_gradients += sums.sum(0)
        own.matrix_gradient.addmm_(second.T, units)
        grad_units = torch.mm(second, own.matrix, out=self._unit_gradient[: rows * columns]).numpy()
        grad_rows, active = self._row_gradient[:rows], units.numpy()
        grad_rows.fill(0.0)
        unit_shares = _shares(units.shape[1], rows * columns)

        def add(share: int) -> None:
            _first_layer_gradient(
                active, grad_units, rows, columns, first, *unit_shares[share], grad_rows, own.column_gradient
            )

        parallel(add, len(unit_shares))
        return grad_rows

    def finish(self, gradients: Gradients) -> None:
        pass


class _Critic:
    """The pairs of a critic: of two embeddings without parameters, else additive scores of one or two hidden layers."""

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        parameters: Sequence[Tensor],
        score: str,
        *,
        offset: int = 0,
        needed: Sequence[bool] = (False, False),
    ) -> None:
        self._x, self._y, self._parameters = x, y, parameters
        if not parameters:
            self._embeddings = pairwise.Embeddings(x, y, None, score, offset, needed)
            self.pairs, self.gradients = self._embeddings.pairs, self._embeddings.gradients
            return
        rows = Rows(x.detach())
        additive = _AdditiveColumns if len(parameters) == 2 else _DeepColumns
        self._columns: _AdditiveColumns | _DeepColumns = additive(rows.dtype, y, *parameters)
        # The tiles are the scores.
        self.pairs = engine.Pairs(pairwise.INNER_PRODUCT, rows, self._columns, offset=offset)
        self.gradients = Gradients(pairwise.zeros(x.shape, rows) if needed[0] else None, None, None)

    def results(self, dtype: torch.dtype | None = None, column_factor: float = 1.0) -> list[Tensor]:
        """The gradients of x, y and the parameters in a dtype, or each in its own; all but x's times a factor.

        One of x or y that was not needed is empty.
        """
        x, y, others = self._x, self._y, []
        if self._parameters:
            grad_x = x.new_empty(x.shape) if self.gradients.rows is None else self.gradients.rows
            others = self._columns.gradients()
        else:
            grad_x, *others = self._embeddings.embedding_results(self.pairs.rows.dtype)
        if column_factor != 1.0:
            others = [g.mul_(column_factor) for g in others]
        pairs = zip([grad_x, *others], (x, y, *self._parameters), strict=True)
        return [g.to(z.dtype if dtype is None else dtype) for g, z in pairs]


def log_sum_exp(
    x: Tensor, y: Tensor, parameters: list[Tensor], score: str, positive: bool, clip: float, columns: bool, offset: int
) -> list[Tensor]:
    """Positives [N], log-sum-exps of rows [N] and of columns [N'] (or [0]), and both once more in float64."""
    critic = _Critic(x, y, parameters, score, offset=offset)
    return pairwise.positives_and_log_sum_exps(critic.pairs, pairwise.Objective(positive, columns, clip=clip))


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
    score: str,
    positive: bool,
    clip: float,
    columns: bool,
    offset: int,
) -> list[Tensor]:
    """Gradients of x, y and the parameters for upstream gradients [N], [N] and [N'] (or [0])."""
    critic = _Critic(x, y, parameters, score, offset=offset, needed=needed)
    pairwise.log_sum_exps_gradient(
        critic.pairs,
        pairwise.Objective(positive, columns, clip=clip),
        row_lse=row_lse.numpy(),
        column_lse=column_lse.numpy(),
        grad_rows=grad_rows.double().numpy(),
        grad_columns=grad_columns.double().numpy(),
        grad_positives=grad_positives.double().numpy(),
        gradients=critic.gradients,
    )
    return critic.results()


def _softplus_flags(positive: bool) -> int:
    return 0 if positive else POSITIVE_EXCLUDED


def softplus(x: Tensor, y: Tensor, parameters: list[Tensor], score: str, positive: bool) -> tuple[Tensor, Tensor]:
    """Positives [N] and sums of softplus over rows [N], in the engine's dtype."""
    critic = _Critic(x, y, parameters, score)
    state, dtype = engine.reduce(critic.pairs, _SOFTPLUS, _softplus_flags(positive)).rows, critic.pairs.rows.dtype
    positives, sums = (torch.from_numpy(state[r]) for r in (softplus_sums.POSITIVE, softplus_sums.SUM))
    return positives.to(dtype, copy=True), sums.to(dtype, copy=True)


def softplus_backward(
    grad_positives: Tensor,
    grad_rows: Tensor,
    x: Tensor,
    y: Tensor,
    parameters: list[Tensor],
    needed: list[bool],
    score: str,
    positive: bool,
) -> list[Tensor]:
    """Gradients of x, y and the parameters for upstream gradients [N] and [N]."""
    critic = _Critic(x, y, parameters, score, needed=needed)
    row_weights = np.zeros((softplus_sums.ROW_WEIGHTS, critic.pairs.rows.n))
    row_weights[softplus_sums.GRAD_SUM] = grad_rows.double().numpy()
    row_weights[softplus_sums.GRAD_POSITIVE] = grad_positives.double().numpy()
    engine.gradient(
        critic.pairs, _SOFTPLUS, _softplus_flags(positive), row_weights=row_weights, gradients=critic.gradients
    )
    return critic.results()


def log_mean_exp_with_gradient(
    x: Tensor, y: Tensor, parameters: list[Tensor], needed: list[bool], score: str
) -> list[Tensor]:
    """The logarithm of the mean of e^s over negatives, and its gradients, all in the engine's dtype."""
    critic = _Critic(x, y, parameters, score, needed=needed)
    total, column_factor = pairwise.log_sum_exp_of_all_with_gradient(critic.pairs, critic.gradients)
    value = torch.tensor(float(total - math.log(_negatives(x, y))), dtype=critic.pairs.rows.dtype)
    return [value, *critic.results(critic.pairs.rows.dtype, column_factor)]


def mean_softplus_with_gradient(
    x: Tensor,
    y: Tensor,
    parameters: list[Tensor],
    needed: list[bool],
    score: str,
    positives: bool,
    log_mean_exp: bool,
    clip: float,
) -> list[Tensor]:
    """A loss, `log_mean_exp` of clamped negatives (NaN where unwanted), the mean of positives, the loss's gradients.

    The loss is the mean softplus of negatives, and with `positives` that of their negated scores beside it. All in the
    engine's dtype.
    """
    critic, count = _Critic(x, y, parameters, score, needed=needed), _negatives(x, y)
    dtype = critic.pairs.rows.dtype
    state = np.zeros((softplus_sums.ROW_STATES, critic.pairs.rows.n))
    state[softplus_sums.CLIP] = clip
    flags = POSITIVE_EXCLUDED | (POSITIVE_LOGISTIC if positives else 0)
    engine.reduce_with_gradient(
        critic.pairs,
        _SOFTPLUS,
        flags | (LOG_SUM_EXP_BESIDE if log_mean_exp else 0),
        upstream=1.0 / count,
        gradients=critic.gradients,
        row_state=state,
    )
    mean = torch.tensor(float(state[softplus_sums.SUM].sum()) / count, dtype=dtype)
    found = pairwise.log_sum_exp_of_rows(state[softplus_sums.LSE]) - math.log(count) if log_mean_exp else math.nan
    beside = (torch.tensor(float(z), dtype=dtype) for z in (found, state[softplus_sums.POSITIVE].mean()))
    return [mean, *beside, *critic.results(dtype)]


def _negatives(x: Tensor, y: Tensor) -> int:
    return x.shape[0] * (y.shape[0] - 1)
