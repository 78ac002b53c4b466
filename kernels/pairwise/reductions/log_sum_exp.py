"""Log-sum-exps over rows and, with TWO_WAY, over columns in the same sweep.

With CLAMPED they are of scores brought into a range; with TOTALS sums of scores come too, for smoothed targets.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,assignment"
# ruff: noqa: RUF005 - jit functions build tuples by addition
from __future__ import annotations

import math
from typing import Any

import numpy as np

from mibfast.kernels.halves import cpu, gpu, tl, vm
from mibfast.kernels.pairwise.flags import (
    APART,
    CLAMPED,
    POSITIVE_EXCLUDED,
    SEPARATE_EXPONENTIALS,
    TOTALS,
    TWO_WAY,
    WITHOUT_TARGET,
)
from mibfast.kernels.pairwise.reductions import CpuHalf, Reduction
from mibfast.kernels.pairwise.reductions.rows import clamp, is_in_row, maximum_of, score_of_positive, set_positive
from mibfast.kernels.pairwise.reductions.upstream import with_positives

# A row's state. On the CPU [ROW_STATES, N], float64, of which CLIP is given; in Triton the first two are kept, and the
# third with TOTALS, as they are of columns.
MAXIMUM, SUM, TOTAL, LSE, POSITIVE, CLIP = range(6)
ROW_STATES = 6
# A column's state on the CPU [2, N'].
COLUMN_SUM, COLUMN_TOTAL = range(2)
# What gradients are made of on the CPU, [ROW_WEIGHTS, N] float64 and [COLUMN_WEIGHTS, N'] in the engine's dtype.
ROW_LSE, GRAD_LSE, FACTOR, GRAD_TOTAL, GRAD_POSITIVE, ROW_CLIP = range(6)
ROW_WEIGHTS = 6
COLUMN_LSE, GRAD_COLUMN_LSE, GRAD_COLUMN_TOTAL = range(3)
COLUMN_WEIGHTS = 3

LOG2_E = 1.4426950408889634
# Powers of two that one exponential may lie from its reference: 2^-100 has 26 bits above the least float32.
_DEEPEST = 100.0
# e^(R_i - C_j) is formed as a product of two numbers while no R exceeds a C by more powers of two.
_LARGEST_EXCESS = 80.0


@cpu
def _add_to_totals(scores: Any, columns: Any) -> float:
    """Add scores to their columns, and return their sum."""
    total = 0.0
    for start in range(0, scores.size, vm.PIECE):
        piece, column = scores[start : start + vm.PIECE], columns[start : start + vm.PIECE]
        partial = scores.dtype.type(0.0)
        for j in range(piece.size):
            partial += piece[j]
            column[j] += piece[j]
        total += partial
    return total


@cpu
def _exponentials(scores: Any, shift: Any) -> float:
    """Replace scores by exp_weight(score - shift) and return their sum."""
    total = 0.0
    for start in range(0, scores.size, vm.PIECE):
        piece = scores[start : start + vm.PIECE]
        partial = scores.dtype.type(0.0)
        for j in range(piece.size):
            e = vm.exp_weight(piece[j] - shift)
            piece[j] = e
            partial += e
        total += partial
    return total


@cpu
def _exponentials_and_columns(scores: Any, shift: Any, scale: Any, columns: Any) -> float:
    """Like `_exponentials`, and add `scale` times each to its column."""
    total = 0.0
    for start in range(0, scores.size, vm.PIECE):
        piece, column = scores[start : start + vm.PIECE], columns[start : start + vm.PIECE]
        partial = scores.dtype.type(0.0)
        for j in range(piece.size):
            e = vm.exp_weight(piece[j] - shift)
            piece[j] = e
            partial += e
            column[j] += e * scale
        total += partial
    return total


@cpu
def _start_row(scores: Any, row: Any, positive: Any, flags: Any, row_state: Any, column_state: Any) -> Any:
    """What rows have in common before their exponentials; returns the largest score."""
    row_state[POSITIVE, row] = score_of_positive(scores, positive)
    if flags & TOTALS:
        row_state[TOTAL, row] = _add_to_totals(scores, column_state[COLUMN_TOTAL])
    if flags & POSITIVE_EXCLUDED:
        set_positive(scores, positive, -np.inf)
    return maximum_of(scores)


@cpu
def _add_row(
    scores: Any, row: Any, positive: Any, flags: Any, row_state: Any, column_state: Any, reference: Any
) -> Any:
    largest = _start_row(scores, row, positive, flags, row_state, column_state)
    if largest > -np.inf:
        total = _exponentials(scores, largest)
        row_state[LSE, row] = largest + math.log(total / vm.weight_scale(largest))
        return total
    # Nothing but -inf and NaN: the log-sum-exp is one or the other, and the weights are zero or NaN.
    total = 0.0 * _exponentials(scores, scores.dtype.type(0.0))
    row_state[LSE, row] = total - np.inf
    return 1.0 + total


@cpu
def _add_row_two_way(
    scores: Any, row: Any, positive: Any, flags: Any, row_state: Any, column_state: Any, reference: Any
) -> Any:
    """The columns' sums are relative to `reference`, which follows the largest row maximum of the slot."""
    largest = _start_row(scores, row, positive, flags, row_state, column_state)
    columns = column_state[COLUMN_SUM]
    if largest > -np.inf:
        if largest > reference[0]:
            shrink = scores.dtype.type(math.exp(reference[0] - largest))
            for j in range(columns.size):
                columns[j] *= shrink
            reference[0] = largest
        scale = scores.dtype.type(math.exp(largest - reference[0]))
        total = _exponentials_and_columns(scores, largest, scale, columns)
        row_state[MAXIMUM, row], row_state[SUM, row] = largest, total
        row_state[LSE, row] = largest + math.log(total / vm.weight_scale(largest))
        return total
    zero = scores.dtype.type(0.0)
    total = 0.0 * _exponentials_and_columns(scores, zero, zero, columns)
    row_state[LSE, row] = total - np.inf
    row_state[MAXIMUM, row], row_state[SUM, row] = -np.inf, 1.0 + total
    return 1.0 + total


@cpu
def _add_row_clamped(
    scores: Any, row: Any, positive: Any, flags: Any, row_state: Any, column_state: Any, reference: Any
) -> Any:
    """The positive is kept as it is, and clamped in the log-sum-exp like all others."""
    own = score_of_positive(scores, positive)
    clamp(scores, scores.dtype.type(row_state[CLIP, row]))
    total = _add_row(scores, row, positive, flags, row_state, column_state, reference)
    row_state[POSITIVE, row] = own
    return total


@cpu
def _add_row_two_way_clamped(
    scores: Any, row: Any, positive: Any, flags: Any, row_state: Any, column_state: Any, reference: Any
) -> Any:
    own = score_of_positive(scores, positive)
    clamp(scores, scores.dtype.type(row_state[CLIP, row]))
    total = _add_row_two_way(scores, row, positive, flags, row_state, column_state, reference)
    row_state[POSITIVE, row] = own
    return total


@cpu
def _grad_added_row(scores: Any, positive: Any, flags: Any, total: Any, upstream: Any, label_smoothing: Any) -> Any:
    """upstream (softmax - target), divided by upstream / total."""
    if flags & POSITIVE_EXCLUDED:
        scores[positive] = 0.0
    if flags & WITHOUT_TARGET:
        return upstream / total
    scores[positive] -= (1.0 - label_smoothing) * total
    if label_smoothing > 0.0:
        even = scores.dtype.type(label_smoothing * total / scores.size)
        for j in range(scores.size):
            scores[j] -= even
    return upstream / total


@cpu
def _grad_merged_row(
    scores: Any,
    row: Any,
    positive: Any,
    flags: Any,
    row_state: Any,
    column_weights: Any,
    upstream: Any,
    label_smoothing: Any,
) -> Any:
    """upstream / 2 (softmax of the row + softmax of the column - 2 target), divided by upstream / (2 row sum).

    `scores` holds e_ij = exp_weight(s_ij - m_i). With a reference c of all columns and y_j = e^(c - C_j) / weight_scale
    in `column_weights`, the column's softmax is e_ij e^(m_i - c) y_j; MAXIMUM holds m_i - c.
    """
    number = scores.dtype.type
    total = row_state[SUM, row]
    x, y = number(math.exp(row_state[MAXIMUM, row]) * total), column_weights[GRAD_COLUMN_LSE]
    one = number(1.0)
    for j in range(scores.size):
        scores[j] *= one + x * y[j]
    if flags & POSITIVE_EXCLUDED:
        scores[positive] = 0.0
    scores[positive] -= 2.0 * (1.0 - label_smoothing) * total
    if label_smoothing > 0.0:
        even = number(2.0 * label_smoothing * total / scores.size)
        for j in range(scores.size):
            scores[j] -= even
    return 0.5 * upstream / total


@cpu
def _finish_grad_row(
    scores: Any, row: Any, positive: Any, flags: Any, row_weights: Any, column_weights: Any, unscaled: Any
) -> None:
    """Add u_i + v_j, and p_i at the positive, to weights that carry the factor `unscaled`."""
    number = scores.dtype.type
    if flags & POSITIVE_EXCLUDED:
        set_positive(scores, positive, 0.0)
    if flags & TOTALS:
        u, v = number(row_weights[GRAD_TOTAL, row]), column_weights[GRAD_COLUMN_TOTAL]
        for j in range(scores.size):
            scores[j] += (u + v[j]) * unscaled
    if is_in_row(scores, positive):
        scores[positive] += number(row_weights[GRAD_POSITIVE, row]) * unscaled


@cpu
def _grad_row(scores: Any, row: Any, positive: Any, flags: Any, row_weights: Any, column_weights: Any) -> Any:
    """dL/ds_ij = a_i e^(s - R_i) + u_i + v_j, and p_i at the positive; divided by 1 / weight_scale.

    `row_weights` holds R_i, a_i, -, u_i, p_i and `column_weights` -, -, v_j.
    """
    number = scores.dtype.type
    if flags & POSITIVE_EXCLUDED:
        set_positive(scores, positive, -np.inf)
    shift, a = number(row_weights[ROW_LSE, row]), number(row_weights[GRAD_LSE, row])
    for j in range(scores.size):
        scores[j] = vm.exp_weight(scores[j] - shift) * a
    unscaled = number(vm.weight_scale(shift))
    _finish_grad_row(scores, row, positive, flags, row_weights, column_weights, unscaled)
    return 1.0 / unscaled


@cpu
def _grad_row_two_way(scores: Any, row: Any, positive: Any, flags: Any, row_weights: Any, column_weights: Any) -> Any:
    """Like `_grad_row`, plus b_j e^(s - C_j).

    `row_weights` holds R_i, a_i, x_i, u_i, p_i and `column_weights` C_j, y_j, v_j. With one exponential for both ways,
    x_i = e^(R_i - c), y_j = b_j e^(c - C_j) for a c between: it holds while no R_i exceeds a C_j by far, and the caller
    sees to that. With separate exponentials y_j = b_j.
    """
    number = scores.dtype.type
    if flags & POSITIVE_EXCLUDED:
        set_positive(scores, positive, -np.inf)
    shift, a = number(row_weights[ROW_LSE, row]), number(row_weights[GRAD_LSE, row])
    if flags & SEPARATE_EXPONENTIALS:
        c, b = column_weights[COLUMN_LSE], column_weights[GRAD_COLUMN_LSE]
        for j in range(scores.size):
            s = scores[j]
            scores[j] = vm.exp_weight(s - shift) * a + vm.exp_weight(s - c[j]) * b[j]
    else:
        x, y = number(row_weights[FACTOR, row]), column_weights[GRAD_COLUMN_LSE]
        for j in range(scores.size):
            scores[j] = vm.exp_weight(scores[j] - shift) * (a + x * y[j])
    unscaled = number(vm.weight_scale(shift))
    _finish_grad_row(scores, row, positive, flags, row_weights, column_weights, unscaled)
    return 1.0 / unscaled


@cpu
def _grad_row_clamped(scores: Any, row: Any, positive: Any, flags: Any, row_weights: Any, column_weights: Any) -> Any:
    """Like `_grad_row`, with zero for what the clamp changed; ROW_CLIP holds its bound."""
    number, zero = scores.dtype.type, scores.dtype.type(0.0)
    shift, a = number(row_weights[ROW_LSE, row]), number(row_weights[GRAD_LSE, row])
    bound = number(row_weights[ROW_CLIP, row])
    for j in range(scores.size):
        s = scores[j]
        weight = vm.exp_weight(s - shift) * a
        scores[j] = zero if abs(s) > bound else weight
    unscaled = number(vm.weight_scale(shift))
    _finish_grad_row(scores, row, positive, flags, row_weights, column_weights, unscaled)
    return 1.0 / unscaled


@cpu
def _grad_row_two_way_clamped(
    scores: Any, row: Any, positive: Any, flags: Any, row_weights: Any, column_weights: Any
) -> Any:
    """Like `_grad_row_clamped`, plus b_j e^(s - C_j) by an exponential of its own."""
    number, zero = scores.dtype.type, scores.dtype.type(0.0)
    shift, a = number(row_weights[ROW_LSE, row]), number(row_weights[GRAD_LSE, row])
    bound = number(row_weights[ROW_CLIP, row])
    c, b = column_weights[COLUMN_LSE], column_weights[GRAD_COLUMN_LSE]
    for j in range(scores.size):
        s = scores[j]
        weight = vm.exp_weight(s - shift) * a + vm.exp_weight(s - c[j]) * b[j]
        scores[j] = zero if abs(s) > bound else weight
    unscaled = number(vm.weight_scale(shift))
    _finish_grad_row(scores, row, positive, flags, row_weights, column_weights, unscaled)
    return 1.0 / unscaled


@np.errstate(all="ignore")
def merge_columns(state: Any, references: Any, whole: Any, reference: float) -> float:
    """Add the slots' column states [slots, 2, N'] of a tile to the whole [2, N'] in float64; return its reference."""
    largest = max(reference, float(references.max()))
    if largest > -np.inf:
        if reference < largest:
            whole[COLUMN_SUM] *= math.exp(reference - largest)
        for slot in range(state.shape[0]):
            scale = math.exp(float(references[slot, 0]) - largest)
            # A slot that met nothing but -inf and NaN has the reference -inf; its NaN must get through.
            whole[COLUMN_SUM] += state[slot, COLUMN_SUM].astype(np.float64) * scale
    else:
        whole[COLUMN_SUM] += state[:, COLUMN_SUM].sum(0)
    whole[COLUMN_TOTAL] += state[:, COLUMN_TOTAL].sum(0)
    return largest


@gpu
def finite(x):
    """x, or 0 where it is infinite: what exponents are taken relative to."""
    return tl.where(tl.abs(x) == float("inf"), 0.0, x)


@gpu
def _clamped(s, bound):
    """s in [-bound, bound]; NaN is kept."""
    s = tl.where(s < -bound, -bound, s)
    return tl.where(s > bound, bound, s)


@gpu
def _raised(maximum, total, highest, added, reference, c):
    """A maximum and a sum relative to it, after `added`, relative to `reference`, whose largest is `highest`."""
    raised = tl.maximum(maximum, highest)
    level = finite(raised)
    return raised, total * tl.exp2((maximum - level) * c) + added * tl.exp2((reference - level) * c)


@gpu
def _add(row_state, column_state, s, scale, bias, valid, positive, FLAGS: tl.constexpr, SPECIAL: tl.constexpr):
    """States hold a maximum of s and a sum of 2^(c (s - maximum)), c = scale log2 e, and a sum of s where TOTALS.

    Maxima are of scores as they are: differences of scores that matter are exact, whatever is contracted into a
    multiply-add, so that a loss near zero is not what is left of two roundings.
    Two ways need e^s relative to row and to column. One exponential relative to the tile's largest score serves both
    while no row and no column of the tile lies 100 powers of two below it; elsewhere each has its own.
    """
    c = scale * LOG2_E
    if CLAMPED & FLAGS:
        s = _clamped(s, bias)
    if TOTALS & FLAGS:
        counted = tl.where(valid, s, 0.0) if SPECIAL else s
        row_total = row_state[TOTAL] + tl.sum(counted, 1)
    if SPECIAL:
        s = tl.where(valid, s, -float("inf"))
        if POSITIVE_EXCLUDED & FLAGS:
            s = tl.where(positive, -float("inf"), s)
    row_top = tl.max(s, 1)
    new_columns = ()
    if TWO_WAY & FLAGS:
        column_top = tl.max(s, 0)
        top = tl.max(row_top, 0)
        lowest = tl.minimum(tl.min(row_top, 0), tl.min(column_top, 0))
        if ((lowest - top) * c >= -_DEEPEST) & (top > -float("inf")) & (top < float("inf")):
            e = tl.exp2((s - top) * c)
            row_maximum, row_sum = _raised(row_state[MAXIMUM], row_state[SUM], row_top, tl.sum(e, 1), top, c)
            column_maximum, column_sum = _raised(
                column_state[MAXIMUM], column_state[SUM], column_top, tl.sum(e, 0), top, c
            )
        else:
            level = finite(row_top)
            added = tl.sum(tl.exp2((s - level[:, None]) * c), 1)
            row_maximum, row_sum = _raised(row_state[MAXIMUM], row_state[SUM], row_top, added, level, c)
            level = finite(column_top)
            added = tl.sum(tl.exp2((s - level[None, :]) * c), 0)
            column_maximum, column_sum = _raised(column_state[MAXIMUM], column_state[SUM], column_top, added, level, c)
        new_columns = (column_maximum, column_sum)
        if TOTALS & FLAGS:
            new_columns = new_columns + (column_state[TOTAL] + tl.sum(counted, 0),)
    else:
        row_maximum = tl.maximum(row_state[MAXIMUM], row_top)
        level = finite(row_maximum)
        row_sum = row_state[SUM] * tl.exp2((row_state[MAXIMUM] - level) * c) + tl.sum(
            tl.exp2((s - level[:, None]) * c), 1
        )
    new_rows = (row_maximum, row_sum)
    if TOTALS & FLAGS:
        new_rows = new_rows + (row_total,)
    return new_rows, new_columns


@gpu
def _saved(lse, index, inverse_scale):
    """Saved log-sum-exps, nats in float64, as scores in two float32 parts; +inf for -inf, which has no softmax."""
    level = tl.load(lse + index) * inverse_scale
    level = tl.where(level == -float("inf"), float("inf"), level)
    high = level.to(tl.float32)
    low = (level - high.to(tl.float64)).to(tl.float32)
    return level, high, tl.where(high == float("inf"), 0.0, low)


@gpu
def _grad(
    s,
    scale,
    bias,
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
    FLAGS: tl.constexpr,
    SPECIAL: tl.constexpr,
):
    """With g the upstream gradient, halved both ways: g_i e^(s - R_i) + g_j e^(s - C_j), less the targets.

    The target is 1 - smoothing at the positive and smoothing / N' everywhere, of the row and, both ways, smoothing / N
    of the column. Where upstream gradients are APART nothing is halved, and that of the positive takes the place of its
    target.
    """
    c = scale * LOG2_E
    inverse_scale = 1.0 / tl.cast(scale, tl.float64)
    row_level, high, low = _saved(row_lse, rows, inverse_scale)
    half: tl.constexpr = 0.5 if TWO_WAY & FLAGS and not APART & FLAGS else 1.0
    g = half if upstream is None else half * tl.load(upstream + rows)
    if CLAMPED & FLAGS:
        beyond = tl.abs(s) > bias
        s = _clamped(s, bias)
    e = tl.exp2((s - high) * c - low * c)
    if TWO_WAY & FLAGS:
        column_level, column_high, column_low = _saved(column_lse, columns, inverse_scale)
        if APART & FLAGS:
            b = tl.load(upstream + 2 * tl.cast(upstream_stride, tl.int64) + columns)
        else:
            b = half if upstream is None else half * tl.load(upstream + columns)
        highest = tl.max(tl.max(high, 0), 0)
        lowest = tl.min(tl.min(column_high, 0), 0)
        if (highest - lowest) * c <= _LARGEST_EXCESS:
            middle = (0.5 * (highest + lowest)).to(tl.float64)
            column_factor = b * tl.exp2((middle - column_level).to(tl.float32) * c)
            w = e * (g + tl.exp2((row_level - middle).to(tl.float32) * c) * column_factor)
        else:
            w = e * g + tl.exp2((s - column_high) * c - column_low * c) * b
    else:
        w = e * g
    if CLAMPED & FLAGS:
        w = tl.where(beyond, 0.0, w)
    if SPECIAL and POSITIVE_EXCLUDED & FLAGS:
        w = tl.where(positive, 0.0, w)
    if TOTALS & FLAGS:
        even = g * (smoothing / n_columns)
        if TWO_WAY & FLAGS:
            even += b * (smoothing / n)
        # One subtraction of both targets: of one sample alone nothing is left.
        if SPECIAL and not APART & FLAGS:
            even = tl.where(positive, even + (1.0 - smoothing) * (g / half), even)
        w -= even
    elif SPECIAL and not APART & FLAGS:
        w = tl.where(positive, w - (1.0 - smoothing) * (g / half), w)
    if SPECIAL and APART & FLAGS:
        w = with_positives(w, upstream, upstream_stride, rows, positive)
    return w, w


def planes(flags: int) -> int:
    """How many numbers Triton keeps of a row, and of a column both ways."""
    return 3 if flags & TOTALS else 2


REDUCTION = Reduction(
    {
        0: CpuHalf(_add_row, _grad_added_row, None, _grad_row),
        TWO_WAY: CpuHalf(_add_row_two_way, None, _grad_merged_row, _grad_row_two_way),
        CLAMPED: CpuHalf(_add_row_clamped, None, None, _grad_row_clamped),
        TWO_WAY | CLAMPED: CpuHalf(_add_row_two_way_clamped, None, None, _grad_row_two_way_clamped),
    },
    row_states=ROW_STATES,
    row_weights=ROW_WEIGHTS,
    add=_add,
    grad=_grad,
    row_planes=planes,
    column_planes=lambda flags: planes(flags) if flags & TWO_WAY else 0,
    keeps_maximum=True,
    is_light=lambda flags: flags & ~POSITIVE_EXCLUDED == 0,
)
