"""Critics of one hidden layer over all pairs in Triton, and their gradients; `cpu.py` has the formulas.

With n_jk = -v_jk a score is sum_k w_k max(u_ik, n_jk) and a number of its column; its gradients are made of A_ik =
sum_j G_ij D_ijk and B_jk = sum_i G_ij D_ijk, D_ijk = 1[u_ik > n_jk], G = dL/ds. No tensor core serves: a score costs a
maximum and a multiply-add a unit, a sum a comparison and a masked addition.

The backward forms the scores once more: `_grad_scores` writes G and its transpose for a chunk of rows, 64 MiB at most,
and `_sum_active` gives A and B from it, each number by one program that takes all pairs in order. Memory beyond
operands and gradients: padded copies of u and n in both orders, the chunk, and vectors.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mibfast.kernels.critic.operands_triton import Objective, Operands, Upstream, multiple
from mibfast.kernels.critic.scores_triton import grad_scores, one_layer_scores
from mibfast.kernels.launch_configuration import Problem, Tile, choose

# Hidden units that a tile of scores takes at once.
UNITS_AT_ONCE = 8
# Pairs that a sum takes before it is added to the whole.
_PIECE = 64
# Bytes of a chunk of G and its transpose.
_CHUNK_BYTES = 2**26


@triton.jit
def _grad_scores(
    u,  # [units, padded N]
    n,  # [units, padded N']
    weight,  # [units]
    row_offsets,  # [padded N]
    column_offsets,  # [padded N']
    grad_positives,  # [N]
    grad_rows,  # [N]
    grad_columns,  # [N'], or None
    row_lse,  # [N], float64, or None
    column_lse,  # [N'], float64, or None
    g,  # [chunk's rows, padded N']
    g_transposed,  # [padded N', chunk's rows]
    first,
    rows,
    columns,
    units,
    u_stride,
    n_stride,
    g_stride,
    transposed_stride,
    clip,
    offset,
    SOFTPLUS: tl.constexpr,
    POSITIVE: tl.constexpr,
    CLIPPED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNITS: tl.constexpr,
):
    """dL/ds of a tile of pairs, and its transpose; zero where there is no pair."""
    local = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row, column = first + local, tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    s = one_layer_scores(u, n, weight, row_offsets, column_offsets, row, column, units, u_stride, n_stride, UNITS=UNITS)
    upstream = (grad_positives, grad_rows, grad_columns, row_lse, column_lse)
    gradient = grad_scores(
        s, row, column, rows, columns, upstream, clip, offset, SOFTPLUS=SOFTPLUS, POSITIVE=POSITIVE, CLIPPED=CLIPPED
    )
    tl.store(g + local[:, None].to(tl.int64) * g_stride + column[None, :], gradient)
    place = column[:, None].to(tl.int64) * transposed_stride + local[None, :]
    tl.store(g_transposed + place, tl.trans(gradient))


@triton.jit
def _sum_active(
    owners,  # [padded count of owners, units]
    others,  # [padded count of others, units]
    g,  # [others, owners]
    sums,  # [padded count of owners, units]
    first,
    count,
    units,
    g_stride,
    OF_ROWS: tl.constexpr,
    ADD: tl.constexpr,
    PIECE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """sums_pk = sum_q g_qp 1[u > n] of owners p, rows (u) or columns (n), over `count` others q from `first`."""
    owner, unit = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    place = owner[:, None].to(tl.int64) * units + unit[None, :]
    own = tl.load(owners + place)
    total = tl.load(sums + place) if ADD else tl.zeros((ROWS, COLUMNS), own.dtype)
    for start in range(0, count, PIECE):
        partial = tl.zeros((ROWS, COLUMNS), own.dtype)
        for q in range(start, start + PIECE):
            other = tl.cast(q, tl.int64)
            theirs = tl.load(others + (first + other) * units + unit)[None, :]
            weights = tl.load(g + other * g_stride + owner)[:, None]
            # At a tie there is no gradient; a NaN is no reason to leave one out.
            inactive = (own <= theirs) if OF_ROWS else (theirs <= own)
            partial += tl.where(inactive, 0.0, weights)
        total += partial
    tl.store(sums + place, total)


class OneLayer(Operands):
    """u, n = -v and the weight, in float64 or float32."""

    def __init__(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> None:
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        (self.rows, self._h), self.columns = x.shape, y.shape[0]
        self.units = multiple(self._h, self.unit_padding)
        self.u, self.n = self.padded(x.to(dtype)), self.padded(-y.to(dtype))
        self._transposed = self.u.mT.contiguous(), self.n.mT.contiguous()
        self.weight = self.u.new_zeros(self.units)
        self.weight[: self._h] = weight
        # A NaN of v comes with this sum; one of u would be lost in the maxima.
        self.column_offsets = torch.mv(self.n, self.weight, out=self.n.new_empty(self.n.shape[0]))
        self.column_offsets = bias.to(dtype) - self.column_offsets
        self.row_offsets = torch.where(self.u.isnan().any(1), torch.nan, 0.0).to(dtype)
        self.layers = {"hidden_weight": None, "hidden_bias": None, "second_units": 0}
        self.layers |= {"UNITS": UNITS_AT_ONCE, "SECOND": 1, "PRECISION": "ieee"}

    def sides(self) -> tuple[Tensor, Tensor]:
        return self._transposed

    def _choose(self, kernel: str, launch: Callable[[Tile], object]) -> Tile:
        return choose(kernel, Problem(self.u.device, self.u.dtype, self.rows, self.columns, self._h), launch)

    def tile(self, objective: Objective) -> Tile:
        return self._choose("critic.scores", lambda tile: self.reduced(objective._replace(offset=0), tile))

    def gradients(self, upstream: Upstream, objective: Objective, like: Sequence[Tensor]) -> list[Tensor]:
        tile, (u, n) = self.tile(objective), self._transposed
        padded_rows, padded_columns = self.u.shape[0], self.n.shape[0]
        at_once = max(1, _CHUNK_BYTES // (2 * padded_columns * self.u.element_size()) // self.padding) * self.padding
        at_once = min(at_once, padded_rows)
        g, transposed = self.u.new_empty(at_once, padded_columns), self.u.new_empty(padded_columns, at_once)
        grad_u, grad_n = torch.empty_like(self.u), torch.empty_like(self.n)
        total = torch.zeros((), dtype=torch.float64, device=g.device)

        def sum_columns(out: Tensor, first: int, count: int, tile: Tile) -> None:
            self._sum(self.n, self.u, g, out, tile, first=first, count=count, OF_ROWS=False, ADD=first > 0)

        sums_tile = self._choose("critic.sums", lambda tile: sum_columns(torch.empty_like(grad_n), 0, at_once, tile))
        arguments = {**upstream.arguments(self.weight.dtype), **objective.arguments(), **tile.arguments()}
        for first in range(0, padded_rows, at_once):
            count = min(at_once, padded_rows - first)
            with torch.cuda.device_of(g):
                _grad_scores[(count // tile.rows, padded_columns // tile.columns)](
                    u=u,
                    n=n,
                    weight=self.weight,
                    row_offsets=self.row_offsets,
                    column_offsets=self.column_offsets,
                    g=g,
                    g_transposed=transposed,
                    first=first,
                    rows=self.rows,
                    columns=self.columns,
                    units=self.units,
                    u_stride=padded_rows,
                    n_stride=padded_columns,
                    g_stride=padded_columns,
                    transposed_stride=at_once,
                    UNITS=UNITS_AT_ONCE,
                    **arguments,
                )
                some, out = self.u[first : first + count], grad_u[first:]
                self._sum(
                    some, self.n, transposed, out, sums_tile, first=0, count=padded_columns, OF_ROWS=True, ADD=False
                )
                sum_columns(grad_n, first, count, sums_tile)
            total += g[:count].sum(dtype=torch.float64)
        grad_weight = (self.u * grad_u).sum(0, dtype=torch.float64) - (self.n * grad_n).sum(0, dtype=torch.float64)
        grad_x, grad_y = (grad_u * self.weight)[: self.rows], (grad_n * self.weight)[: self.columns]
        results = grad_x[:, : self._h], grad_y[:, : self._h], grad_weight[: self._h], total
        return [z.to(x.dtype).contiguous() for z, x in zip(results, like, strict=True)]

    def _sum(self, owners: Tensor, others: Tensor, g: Tensor, out: Tensor, tile: Tile, **options: int) -> None:
        """Sum active weights of owners, rows or columns, over `count` others from `first` on; g is [others, owners]."""
        _sum_active[(owners.shape[0] // tile.rows, self.units // tile.columns)](
            owners=owners,
            others=others,
            g=g,
            sums=out,
            units=self.units,
            g_stride=g.shape[1],
            PIECE=_PIECE,
            **options,
            **tile.arguments(),
        )
