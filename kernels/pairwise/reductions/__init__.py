"""Reductions over all pairs, a file each; this file is the list of them and says what a reduction is.

A reduction's file names what it keeps of rows and columns, in one place for both backends, and has

- on the CPU, a row of scores at a time, marked `cpu` and bound in a `CpuHalf` for each combination of the flags in
  `STATIC_FLAGS` that it knows:
  `add_row(scores, row, positive, flags, row_state, column_state, reference)` adds a row of scores, overwriting it with
  what `grad_added_row` starts from, and returns the row's total. `positive` is the column of the row's positive, which
  log-sum-exps without `grad_added_row` may find outside the row: it is then in another block of columns. `row_state`
  [row_states, N] float64 holds results, and what the caller put there for the reduction to start from; `column_state`
  [2, N'] and `reference` [1] are the slot's, started at 0 and -inf for each tile and merged by
  `log_sum_exp.merge_columns`.
  `grad_added_row(scores, positive, flags, total, upstream, label_smoothing)` turns what `add_row` left into dL/ds, up
  to a factor, which it returns: gradients formed with the values, in one sweep.
  `grad_merged_row(scores, row, positive, flags, row_state, column_weights, upstream, label_smoothing)` does the same
  where columns matter too, after all rows of the only tile have been added and merged.
  `grad_row(scores, row, positive, flags, row_weights, column_weights)` turns scores into dL/ds, up to a factor, which
  it returns, from the results of an earlier sweep.
- in Triton, a tile of pairs at a time, marked `gpu`:
  `add(row_state, column_state, s, scale, bias, valid, positive, FLAGS, SPECIAL)` adds a tile of scores, and returns
  both states: tuples of `row_planes` [rows] and `column_planes` [columns] numbers, float32. Where `keeps_maximum`, the
  first starts at -inf; all others start at 0. Only where SPECIAL, `valid` and `positive` are tiles that say which pairs
  there are and which are positives; elsewhere all are valid and none is positive, and both are None.
  `grad(s, scale, bias, rows, columns, n, n_columns, upstream, upstream_stride, row_lse, column_lse, smoothing, valid,
  positive, FLAGS, SPECIAL)` returns a tile's dL/d(scale s), and its losses, of a reduction that has one a pair (any
  tile otherwise). Tiles may be [rows, columns] or the other way round: what is of a row is loaded at `rows`, an index
  in a shape that broadcasts, and so with `columns`. `upstream` None stands for ones; one that is of rows, positives and
  columns APART is three planes of `upstream_stride` numbers, at least N and N'. What it returns for pairs that are not
  there does not count, but NaN there would: rows and columns are in range for them too.
- `REDUCTION`, which names these.

In Triton `scale` is 1 / temperature where the loss has one, and `bias` the bound of CLAMPED scores. To add a reduction:
write its file and list it in `REDUCTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from mibfast.kernels.halves import compiled
from mibfast.kernels.pairwise.flags import CLAMPED, LOG_SUM_EXP_BESIDE, TWO_WAY

# Flags for which the CPU has functions of their own.
STATIC_FLAGS = TWO_WAY | CLAMPED | LOG_SUM_EXP_BESIDE


class CpuHalf(NamedTuple):
    """The functions of a reduction on the CPU, None for those whose sweeps it does not take."""

    add_row: Callable[..., Any]
    grad_added_row: Callable[..., Any] | None
    grad_merged_row: Callable[..., Any] | None
    grad_row: Callable[..., Any] | None


@dataclass(frozen=True, eq=False)
class Reduction:
    """What the engines ask a reduction for; what depends on flags is a function of them."""

    cpu: Mapping[int, CpuHalf]
    row_states: int
    row_weights: int
    add: Callable[..., Any] | None
    grad: Callable[..., Any]
    row_planes: Callable[[int], int] = lambda flags: 0
    column_planes: Callable[[int], int] = lambda flags: 0
    keeps_maximum: bool = False
    # Whether Triton's weights take few registers.
    is_light: Callable[[int], bool] = lambda flags: False

    @property
    def triton(self) -> tuple[Any, Any]:
        """The two functions of the Triton engine."""
        return None if self.add is None else compiled(self.add), compiled(self.grad)


# Behind the classes, which the files take from here.
from mibfast.kernels.pairwise.reductions import given, log_sum_exp, sigmoid_loss, softplus  # noqa: E402

REDUCTIONS: dict[str, Reduction] = {
    module.__name__.rpartition(".")[2]: module.REDUCTION for module in (log_sum_exp, softplus, sigmoid_loss, given)
}
_NUMBERED = tuple(REDUCTIONS.values())
_LARGEST_FLAGS = 1024


def named(name: str) -> Reduction:
    """Return a reduction by its name."""
    return REDUCTIONS[name]


def code(reduction: Reduction, flags: int) -> int:
    """Return the number that the CPU's kernels know a reduction by, with the flags that choose its functions."""
    return _NUMBERED.index(reduction) * _LARGEST_FLAGS + (flags & STATIC_FLAGS)


def cpu_half(coded: int) -> CpuHalf:
    """Return the functions of a code."""
    return _NUMBERED[coded // _LARGEST_FLAGS].cpu[coded % _LARGEST_FLAGS]
