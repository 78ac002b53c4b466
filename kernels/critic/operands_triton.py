"""What critics of hidden layers share in Triton: padded operands, and reductions over the scores of all pairs.

`_reduce` holds a tile of scores in registers while it walks the hidden units, and keeps a log-sum-exp or softplus sum
of each row and share of the columns; sums over columns are those of the rows of the transpose. Every result has one
owner: nothing is added atomically.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mibfast.kernels.critic.scores_triton import one_layer_scores, two_layer_scores
from mibfast.kernels.launch_configuration import Tile

# Programs that keep a GPU busy: rows are cut into shares of columns up to this number.
_PROGRAMS = 528


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
    u,  # one layer: [units, padded N]; two: [padded N, units]
    n,  # the same of the columns
    weight,  # [units], or [second_units]
    row_offsets,  # [padded N]
    column_offsets,  # [padded N']
    hidden_weight,  # [second_units, units], or None
    hidden_bias,  # [second_units], or None
    positives,  # [N]
    maxima,  # [shares, N]
    totals,  # [shares, N]
    rows,
    columns,
    units,
    second_units,
    u_stride,
    n_stride,
    share,
    clip,
    offset,
    SOFTPLUS: tl.constexpr,
    POSITIVE: tl.constexpr,
    CLIPPED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNITS: tl.constexpr,
    SECOND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Maximum and sum of each row's scores over a share of the columns, and positives where they lie in it."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    begin = tl.program_id(1) * share
    number = row_offsets.dtype.element_ty
    maximum, total = tl.full((ROWS,), -float("inf"), number), tl.zeros((ROWS,), number)
    for first in range(begin, tl.minimum(begin + share, columns), COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        if hidden_weight is None:
            s = one_layer_scores(
                u, n, weight, row_offsets, column_offsets, row, column, units, u_stride, n_stride, UNITS=UNITS
            )
        else:
            s = two_layer_scores(
                u,
                n,
                weight,
                row_offsets,
                column_offsets,
                hidden_weight,
                hidden_bias,
                tl.program_id(0) * ROWS,
                first,
                units,
                second_units,
                layers=None,
                ROWS=ROWS,
                COLUMNS=COLUMNS,
                UNITS=UNITS,
                SECOND=SECOND,
                PRECISION=PRECISION,
            )
        own = row[:, None] + offset == column[None, :]
        has_own = (row + offset >= first) & (row + offset < first + COLUMNS) & (row < rows)
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


class Objective(NamedTuple):
    """What is formed of the scores of all pairs; the positive of row i is column i + offset."""

    softplus: bool
    positive: bool
    clip: float = math.inf
    offset: int = 0

    def arguments(self) -> dict[str, Any]:
        """Arguments that every kernel of scores takes."""
        return {
            "clip": self.clip,
            "offset": self.offset,
            "SOFTPLUS": self.softplus,
            "POSITIVE": self.positive,
            "CLIPPED": self.clip < math.inf,
        }


class Upstream(NamedTuple):
    """Gradients of positives and of the reductions of rows and columns, and log-sum-exps."""

    grad_positives: Tensor  # [N]
    grad_rows: Tensor  # [N]
    grad_columns: Tensor | None = None  # [N'], None one way
    row_lse: Tensor | None = None  # [N], float64, None of softplus sums
    column_lse: Tensor | None = None  # [N'], float64, None one way

    def arguments(self, dtype: torch.dtype) -> dict[str, Tensor | None]:
        """Arguments that every kernel of gradients takes, the gradients in a dtype."""
        values = self._asdict()
        for name, x in values.items():
            if x is not None and name.startswith("grad"):
                values[name] = x.to(dtype).contiguous()
            elif x is not None:
                # A row or column without a softmax then has weights e^(s - inf) = 0.
                values[name] = torch.where(x == -torch.inf, torch.inf, x)
        return values


def multiple(n: int, of: int) -> int:
    """The smallest multiple that is no less than n."""
    return -(-n // of) * of


class Operands:
    """Rows u and columns n of a critic, padded with zeros, its weight, and what scores have of rows or columns alone.

    Subclasses set them, and `layers`, the arguments of `_reduce` that say what the hidden layers are.
    """

    # Rows and columns, and units, are padded to multiples of these, which tiles divide: inner loops need no masks.
    padding, unit_padding = 64, 64
    layers: dict[str, Any]
    rows: int
    columns: int
    units: int
    u: Tensor
    n: Tensor
    weight: Tensor
    row_offsets: Tensor
    column_offsets: Tensor

    def padded(self, x: Tensor) -> Tensor:
        """A matrix of rows or columns and units, padded."""
        padded = x.new_zeros(multiple(x.shape[0], self.padding), self.units)
        padded[: x.shape[0], : x.shape[1]] = x
        return padded

    def sides(self) -> tuple[Tensor, Tensor]:
        """u and n as `_reduce` takes them."""
        raise NotImplementedError

    def tile(self, objective: Objective) -> Tile:
        """The tile of scores."""
        raise NotImplementedError

    def gradients(self, upstream: Upstream, objective: Objective, like: Sequence[Tensor]) -> list[Tensor]:
        """Gradients of x, y and the parameters, in their dtypes, which are those of `like`."""
        raise NotImplementedError

    def reduced(self, objective: Objective, tile: Tile, transposed: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Positives, and maxima and sums of rows [shares, N], or of columns, the rows of the transpose.

        Positives are of rows; those of columns that have one, where transposed.
        """
        row_side, column_side = self.sides()
        sides = [(row_side, self.row_offsets, self.rows), (column_side, self.column_offsets, self.columns)]
        (u, row_offsets, rows), (n, column_offsets, columns) = reversed(sides) if transposed else sides
        if transposed:
            objective = objective._replace(offset=-objective.offset)
        blocks = triton.cdiv(rows, tile.rows)
        share = multiple(triton.cdiv(columns, max(1, _PROGRAMS // blocks)), tile.columns)
        shares = triton.cdiv(columns, share)
        positives = row_offsets.new_empty(rows)
        maxima, totals = row_offsets.new_empty(shares, rows), row_offsets.new_empty(shares, rows)
        with torch.cuda.device_of(u):
            _reduce[(blocks, shares)](
                u=u,
                n=n,
                weight=self.weight,
                row_offsets=row_offsets,
                column_offsets=column_offsets,
                positives=positives,
                maxima=maxima,
                totals=totals,
                rows=rows,
                columns=columns,
                units=self.units,
                u_stride=u.shape[1],
                n_stride=n.shape[1],
                share=share,
                **self.layers,
                **objective.arguments(),
                **tile.arguments(),
            )
        return positives, maxima, totals

    def log_sum_exp(self, objective: Objective, transposed: bool = False) -> tuple[Tensor, Tensor]:
        """Positives, and log-sum-exps in float64, of rows or of columns."""
        positives, maxima, totals = self.reduced(objective, self.tile(objective), transposed)
        maxima, totals = maxima.double(), totals.double()
        highest = maxima.amax(0)
        level = torch.where(highest.isinf(), 0.0, highest)
        return positives, level + torch.log((totals * torch.exp(maxima - level)).sum(0))

    def softplus(self, objective: Objective) -> tuple[Tensor, Tensor]:
        """Positives, and sums of softplus of each row."""
        positives, _, totals = self.reduced(objective, self.tile(objective))
        return positives, totals.sum(0, dtype=torch.float64).to(totals.dtype)
