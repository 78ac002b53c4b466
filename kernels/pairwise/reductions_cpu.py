"""Reductions of the CPU engine, one row of scores at a time.

A reduction consists of

- `add_row(scores, row, positive, flags, row_state, column_state, reference)`: adds a row of scores, overwriting it with
  what `weigh_added_row` starts from, and returns the row's total. `positive` is the column of the row's positive, which
  log-sum-exps without `weigh_added_row` may find outside the row: it is then in another block of columns;
  `row_state` [5, N] float64 holds results, and what the caller put there for the reduction to start from;
  `column_state` [2, N'] and `reference` [1] are the slot's, started at 0 and -inf for each tile and merged by
  :func:`merge_columns`;
- `weigh_added_row(scores, positive, flags, total, upstream, label_smoothing)`: turns what `add_row` left into dL/ds,
  up to a factor, which it returns (the fused sweep);
- `weigh_merged_row(scores, row, positive, flags, row_state, column_weights, upstream, label_smoothing)`: the same where
  columns matter too, after all rows of the only tile have been added and merged;
- `weigh_row(scores, row, positive, flags, row_weights, column_weights)`: turns scores into dL/ds, up to a factor, which
  it returns, from the results of an earlier sweep.

`flags` says what is asked for: the positive left out, running sums of scores, the gradient of a log-sum-exp alone, and
in the fused sweep the loss of positives beside the softplus of negatives. To
add a reduction: write those of them whose sweeps it takes, give them a code, and list them in `_ADD_ROWS`,
`_WEIGH_ADDED_ROWS`, `_WEIGH_MERGED_ROWS` and `_WEIGH_ROWS`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba.core import types
from numba.extending import overload

from mibfast.kernels.compilation import INLINED, inline, inline_maximum
from mibfast.kernels.vector_math import (
    exp,
    exp_weight,
    maximum,
    softplus_and_sigmoid,
    softplus_sigmoid_and_exp,
    weight_scale,
)

# Log-sum-exps over rows alone, and over rows and columns in one sweep; SigLIP's losses of rows; softplus sums over
# rows; both log-sum-exps of clamped scores.
LOG_SUM_EXP, TWO_WAY_LOG_SUM_EXP, SIGMOID_LOSS, SOFTPLUS, CLAMPED_LOG_SUM_EXP, TWO_WAY_CLAMPED_LOG_SUM_EXP = range(6)
# Softplus sums, whose gradient is formed, beside log-sum-exps of clamped scores, whose gradient is not.
SOFTPLUS_AND_LOG_SUM_EXP = 6

# Bits of `flags`.
POSITIVE_EXCLUDED = 1
TOTALS = 2
SEPARATE_EXPONENTIALS = 4
WITHOUT_TARGET = 8
# Of softplus sums: a positive that is left out counts as softplus(-s), N' - 1 times.
POSITIVE_LOGISTIC = 16

# Rows of `row_state` and `column_state`.
LSE, POSITIVE, TOTAL, ROW_MAXIMUM, ROW_SUM = 0, 1, 2, 3, 4
ROW_STATES = 5
COLUMN_SUM, COLUMN_TOTAL = 0, 1
# Those of SigLIP: the first two are given, in `row_weights` too, the others found.
SCALE, BIAS, SOFTPLUS_SUM, SCALE_GRADIENT, BIAS_GRADIENT = 0, 1, 2, 3, 4
# Clamped scores have no totals: the bound is given in their place; next to softplus sums, in that of the maximum.
CLIP = TOTAL
SOFTPLUS_CLIP = ROW_MAXIMUM

# Rows of `row_weights` and of `column_weights`; see `weigh_row`.
ROW_LSE, ROW_SOFTMAX, ROW_FACTOR, ROW_SHIFT, ROW_POSITIVE = 0, 1, 2, 3, 4
# Without totals there is no shift.
ROW_CLIP = ROW_SHIFT
# After SCALE and BIAS; of softplus sums, whose other weight is ROW_POSITIVE, the only one there.
ROW_UPSTREAM = 2
COLUMN_LSE, COLUMN_SOFTMAX, COLUMN_SHIFT = 0, 1, 2

# float32 sums are cut into pieces of this length, which are added in float64.
_PIECE = 2048
# Up to this bound, sums of e^s of clamped scores need no maximum taken off.
_SMALL_CLIP = 40.0


@inline_maximum
def _maximum_of(scores: Any) -> Any:
    largest = scores.dtype.type(-np.inf)
    for j in range(scores.size):
        largest = maximum(largest, scores[j])
    return largest


@inline
def sum_of(scores: Any) -> float:
    """The sum of numbers, in float64 between pieces of 2048."""
    total = 0.0
    for start in range(0, scores.size, _PIECE):
        piece = scores[start : start + _PIECE]
        partial = scores.dtype.type(0.0)
        for j in range(piece.size):
            partial += piece[j]
        total += partial
    return total


@inline
def _add_to_totals(scores: Any, columns: Any) -> float:
    """Add scores to their columns, and return their sum."""
    total = 0.0
    for start in range(0, scores.size, _PIECE):
        piece, column = scores[start : start + _PIECE], columns[start : start + _PIECE]
        partial = scores.dtype.type(0.0)
        for j in range(piece.size):
            partial += piece[j]
            column[j] += piece[j]
        total += partial
    return total


@inline
def _exponentials(scores: Any, shift: Any) -> float:
    """Replace scores by exp_weight(score - shift) and return their sum."""
    total = 0.0
    for start in range(0, scores.size, _PIECE):
        piece = scores[start : start + _PIECE]
        partial = scores.dtype.type(0.0)
        for j in range(piece.size):
            e = exp_weight(piece[j] - shift)
            piece[j] = e
            partial += e
        total += partial
    return total


@inline
def _exponentials_and_columns(scores: Any, shift: Any, scale: Any, columns: Any) -> float:
    """Like `_exponentials`, and add `scale` times each to its column."""
    total = 0.0
    for start in range(0, scores.size, _PIECE):
        piece, column = scores[start : start + _PIECE], columns[start : start + _PIECE]
        partial = scores.dtype.type(0.0)
        for j in range(piece.size):
            e = exp_weight(piece[j] - shift)
            piece[j] = e
            partial += e
            column[j] += e * scale
        total += partial
    return total


@inline_maximum
def raise_maxima(scores: Any, maxima: Any) -> None:
    """maxima = max(maxima, scores)."""
    for j in range(scores.size):
        maxima[j] = maximum(maxima[j], scores[j])


@inline
def add_to_sums(scores: Any, maxima: Any, sums: Any) -> None:
    """sums += exp_weight(scores - maxima), and nothing for a score of -inf."""
    zero, lowest = scores.dtype.type(0.0), scores.dtype.type(-np.inf)
    for j in range(scores.size):
        s = scores[j]
        sums[j] += zero if s == lowest else exp_weight(s - maxima[j])


@inline
def clamp(scores: Any, bound: Any) -> None:
    """Bring scores into [-bound, bound]; NaN fails both comparisons and stays."""
    for j in range(scores.size):
        s = scores[j]
        s = -bound if s < -bound else s
        scores[j] = bound if s > bound else s


@inline
def _is_in_row(scores: Any, positive: Any) -> Any:
    return 0 <= positive < scores.size


@inline
def _score_of_positive(scores: Any, positive: Any) -> Any:
    """The positive's score, 0 where the positive is in no column of the row."""
    return scores[positive] if _is_in_row(scores, positive) else scores.dtype.type(0.0)


@inline
def set_positive(scores: Any, positive: Any, value: Any) -> None:
    """Put a value in place of the positive's, where the positive is in a column of the row."""
    if _is_in_row(scores, positive):
        scores[positive] = value


@inline
def _start_row(scores: Any, row: Any, positive: Any, flags: Any, row_state: Any, column_state: Any) -> Any:
    """What rows have in common before their exponentials; returns the largest score."""
    row_state[POSITIVE, row] = _score_of_positive(scores, positive)
    if flags & TOTALS:
        row_state[TOTAL, row] = _add_to_totals(scores, column_state[COLUMN_TOTAL])
    if flags & POSITIVE_EXCLUDED:
        set_positive(scores, positive, -np.inf)
    return _maximum_of(scores)


@inline
def _log_sum_exp_add_row(
    scores: Any, row: Any, positive: Any, flags: Any, row_state: Any, column_state: Any, reference: Any
) -> Any:
    largest = _start_row(scores, row, positive, flags, row_state, column_state)
    if largest > -np.inf:
        total = _exponentials(scores, largest)
        row_state[LSE, row] = largest + math.log(total / weight_scale(largest))
        return total
    # Nothing but -inf and NaN: the log-sum-exp is one or the other, and the weights are zero or NaN.
    total = 0.0 * _exponentials(scores, scores.dtype.type(0.0))
    row_state[LSE, row] = total - np.inf
    return 1.0 + total


@inline
def _two_way_log_sum_exp_add_row(
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
        row_state[ROW_MAXIMUM, row], row_state[ROW_SUM, row] = largest, total
        row_state[LSE, row] = largest + math.log(total / weight_scale(largest))
        return total
    zero = scores.dtype.type(0.0)
    total = 0.0 * _exponentials_and_columns(scores, zero, zero, columns)
    row_state[LSE, row] = total - np.inf
    row_state[ROW_MAXIMUM, row], row_state[ROW_SUM, row] = -np.inf, 1.0 + total
    return 1.0 + total


@inline
def _clamped_log_sum_exp_add_row(
    scores: Any, row: Any, positive: Any, flags: Any, row_state: Any, column_state: Any, reference: Any
) -> Any:
    """The positive is kept as it is, and clamped in the log-sum-exp like all others."""
    own = _score_of_positive(scores, positive)
    clamp(scores, scores.dtype.type(row_state[CLIP, row]))
    total = _log_sum_exp_add_row(scores, row, positive, flags, row_state, column_state, reference)
    row_state[POSITIVE, row] = own
    return total


@inline
def _two_way_clamped_log_sum_exp_add_row(
    scores: Any, row: Any, positive: Any, flags: Any, row_state: Any, column_state: Any, reference: Any
) -> Any:
    own = _score_of_positive(scores, positive)
    clamp(scores, scores.dtype.type(row_state[CLIP, row]))
    total = _two_way_log_sum_exp_add_row(scores, row, positive, flags, row_state, column_state, reference)
    row_state[POSITIVE, row] = own
    return total


@inline
def _log_sum_exp_weigh_added_row(
    scores: Any, positive: Any, flags: Any, total: Any, upstream: Any, label_smoothing: Any
) -> Any:
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


@inline
def _two_way_log_sum_exp_weigh_merged_row(
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
    in `column_weights`, the column's softmax is e_ij e^(m_i - c) y_j; ROW_MAXIMUM holds m_i - c.
    """
    number = scores.dtype.type
    total = row_state[ROW_SUM, row]
    x, y = number(math.exp(row_state[ROW_MAXIMUM, row]) * total), column_weights[COLUMN_SOFTMAX]
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


@inline
def _finish_weights(
    scores: Any, row: Any, positive: Any, flags: Any, row_weights: Any, column_weights: Any, unscaled: Any
) -> None:
    """Add u_i + v_j, and p_i at the positive, to weights that carry the factor `unscaled`."""
    number = scores.dtype.type
    if flags & POSITIVE_EXCLUDED:
        set_positive(scores, positive, 0.0)
    if flags & TOTALS:
        u, v = number(row_weights[ROW_SHIFT, row]), column_weights[COLUMN_SHIFT]
        for j in range(scores.size):
            scores[j] += (u + v[j]) * unscaled
    if _is_in_row(scores, positive):
        scores[positive] += number(row_weights[ROW_POSITIVE, row]) * unscaled


@inline
def _log_sum_exp_weigh_row(
    scores: Any, row: Any, positive: Any, flags: Any, row_weights: Any, column_weights: Any
) -> Any:
    """dL/ds_ij = a_i e^(s - R_i) + u_i + v_j, and p_i at the positive; divided by 1 / weight_scale.

    `row_weights` holds R_i, a_i, -, u_i, p_i and `column_weights` -, -, v_j.
    """
    number = scores.dtype.type
    if flags & POSITIVE_EXCLUDED:
        set_positive(scores, positive, -np.inf)
    shift, a = number(row_weights[ROW_LSE, row]), number(row_weights[ROW_SOFTMAX, row])
    for j in range(scores.size):
        scores[j] = exp_weight(scores[j] - shift) * a
    unscaled = number(weight_scale(shift))
    _finish_weights(scores, row, positive, flags, row_weights, column_weights, unscaled)
    return 1.0 / unscaled


@inline
def _two_way_log_sum_exp_weigh_row(
    scores: Any, row: Any, positive: Any, flags: Any, row_weights: Any, column_weights: Any
) -> Any:
    """Like `_log_sum_exp_weigh_row`, plus b_j e^(s - C_j).

    `row_weights` holds R_i, a_i, x_i, u_i, p_i and `column_weights` C_j, y_j, v_j. With one exponential for both ways,
    x_i = e^(R_i - c), y_j = b_j e^(c - C_j) for a c between: it holds while no R_i exceeds a C_j by far, and the caller
    sees to that. With separate exponentials y_j = b_j.
    """
    number = scores.dtype.type
    if flags & POSITIVE_EXCLUDED:
        set_positive(scores, positive, -np.inf)
    shift, a = number(row_weights[ROW_LSE, row]), number(row_weights[ROW_SOFTMAX, row])
    if flags & SEPARATE_EXPONENTIALS:
        c, b = column_weights[COLUMN_LSE], column_weights[COLUMN_SOFTMAX]
        for j in range(scores.size):
            s = scores[j]
            scores[j] = exp_weight(s - shift) * a + exp_weight(s - c[j]) * b[j]
    else:
        x, y = number(row_weights[ROW_FACTOR, row]), column_weights[COLUMN_SOFTMAX]
        for j in range(scores.size):
            scores[j] = exp_weight(scores[j] - shift) * (a + x * y[j])
    unscaled = number(weight_scale(shift))
    _finish_weights(scores, row, positive, flags, row_weights, column_weights, unscaled)
    return 1.0 / unscaled


@inline
def _clamped_log_sum_exp_weigh_row(
    scores: Any, row: Any, positive: Any, flags: Any, row_weights: Any, column_weights: Any
) -> Any:
    """Like `_log_sum_exp_weigh_row`, with zero for what the clamp changed; ROW_CLIP holds its bound."""
    number, zero = scores.dtype.type, scores.dtype.type(0.0)
    shift, a = number(row_weights[ROW_LSE, row]), number(row_weights[ROW_SOFTMAX, row])
    bound = number(row_weights[ROW_CLIP, row])
    for j in range(scores.size):
        s = scores[j]
        weight = exp_weight(s - shift) * a
        scores[j] = zero if abs(s) > bound else weight
    unscaled = number(weight_scale(shift))
    _finish_weights(scores, row, positive, flags, row_weights, column_weights, unscaled)
    return 1.0 / unscaled


@inline
def _two_way_clamped_log_sum_exp_weigh_row(
    scores: Any, row: Any, positive: Any, flags: Any, row_weights: Any, column_weights: Any
) -> Any:
    """Like `_clamped_log_sum_exp_weigh_row`, plus b_j e^(s - C_j) by an exponential of its own."""
    number, zero = scores.dtype.type, scores.dtype.type(0.0)
    shift, a = number(row_weights[ROW_LSE, row]), number(row_weights[ROW_SOFTMAX, row])
    bound = number(row_weights[ROW_CLIP, row])
    c, b = column_weights[COLUMN_LSE], column_weights[COLUMN_SOFTMAX]
    for j in range(scores.size):
        s = scores[j]
        weight = exp_weight(s - shift) * a + exp_weight(s - c[j]) * b[j]
        scores[j] = zero if abs(s) > bound else weight
    unscaled = number(weight_scale(shift))
    _finish_weights(scores, row, positive, flags, row_weights, column_weights, unscaled)
    return 1.0 / unscaled


@inline
def _softplus_terms(scores: Any, scale: Any, bias: Any) -> Any:
    """Sums of softplus(z), w and w s for z = scale s + bias and w = sigmoid(z), which replaces s."""
    losses, weights, along = 0.0, 0.0, 0.0
    for start in range(0, scores.size, _PIECE):
        piece = scores[start : start + _PIECE]
        zero = scores.dtype.type(0.0)
        of_losses, of_weights, of_along = zero, zero, zero
        for j in range(piece.size):
            s = piece[j]
            softplus, w = softplus_and_sigmoid(scale * s + bias)
            piece[j] = w
            of_losses += softplus
            of_weights += w
            of_along += w * s
        losses += of_losses
        weights += of_weights
        along += of_along
    return losses, weights, along


@inline
def _sigmoid_loss_row(scores: Any, positive: Any, scale: Any, bias: Any) -> Any:
    """Replace scores by dL/dz, and return L, dL/dscale and dL/dbias of the row.

    L = softplus(-z_p) + sum over the others of softplus(z_j). The positive has another sign than its neighbours: in the
    vector loop a score of 0 stands in its place, of which nothing but softplus(bias) and sigmoid(bias) is to be taken
    off again.
    """
    own = scores[positive]
    scores[positive] = 0.0
    loss, weights, along = _softplus_terms(scores, scale, bias)
    stand_in, stand_in_weight = softplus_and_sigmoid(bias)
    softplus, w = softplus_and_sigmoid(-(scale * own + bias))
    scores[positive] = -w
    return loss - stand_in + softplus, along - w * own, weights - stand_in_weight - w


@inline
def _sigmoid_loss_add_row(
    scores: Any, row: Any, positive: Any, flags: Any, row_state: Any, column_state: Any, reference: Any
) -> Any:
    number = scores.dtype.type
    scale, bias = number(row_state[SCALE, row]), number(row_state[BIAS, row])
    loss, scale_gradient, bias_gradient = _sigmoid_loss_row(scores, positive, scale, bias)
    row_state[SOFTPLUS_SUM, row] = loss
    row_state[SCALE_GRADIENT, row], row_state[BIAS_GRADIENT, row] = scale_gradient, bias_gradient
    return row_state[SCALE, row]


@inline
def _sigmoid_loss_weigh_added_row(
    scores: Any, positive: Any, flags: Any, total: Any, upstream: Any, label_smoothing: Any
) -> Any:
    """The row holds dL/dz, and its total is dz/ds."""
    return upstream * total


@inline
def _sigmoid_loss_weigh_row(
    scores: Any, row: Any, positive: Any, flags: Any, row_weights: Any, column_weights: Any
) -> Any:
    number = scores.dtype.type
    scale, bias = number(row_weights[SCALE, row]), number(row_weights[BIAS, row])
    _sigmoid_loss_row(scores, positive, scale, bias)
    return row_weights[ROW_UPSTREAM, row] * row_weights[SCALE, row]


@inline
def _softplus_row(scores: Any, positive: Any, flags: Any) -> Any:
    """Replace scores by the derivatives of their softplus, zero at a positive that is left out; return the sum."""
    if flags & POSITIVE_EXCLUDED:
        # Not taken off again: next to it a sum of small terms would be lost.
        scores[positive] = -np.inf
    total = 0.0
    for start in range(0, scores.size, _PIECE):
        piece = scores[start : start + _PIECE]
        partial = scores.dtype.type(0.0)
        for j in range(piece.size):
            softplus, piece[j] = softplus_and_sigmoid(piece[j])
            partial += softplus
        total += partial
    if flags & POSITIVE_EXCLUDED:
        scores[positive] = 0.0
    return total


@inline
def _logistic_loss_of_positive(scores: Any, positive: Any, own: Any, flags: Any) -> Any:
    """The loss of a positive of score `own`, as heavy as all the negatives; its derivative is put in its place."""
    if not flags & POSITIVE_LOGISTIC:
        return 0.0
    weight = scores.dtype.type(scores.size - 1)
    softplus, sigmoid = softplus_and_sigmoid(-own)
    scores[positive] = -weight * sigmoid
    return weight * softplus


@inline
def _softplus_add_row(
    scores: Any, row: Any, positive: Any, flags: Any, row_state: Any, column_state: Any, reference: Any
) -> Any:
    own = scores[positive]
    losses = _softplus_row(scores, positive, flags)
    losses += _logistic_loss_of_positive(scores, positive, own, flags)
    row_state[POSITIVE, row], row_state[SOFTPLUS_SUM, row] = own, losses
    return 1.0


@inline
def _softplus_weigh_added_row(
    scores: Any, positive: Any, flags: Any, total: Any, upstream: Any, label_smoothing: Any
) -> Any:
    """The row holds the derivatives, that of a positive too."""
    return upstream


@inline
def _clamped_exponentials_sum(scores: Any, bound: Any, shift: Any) -> float:
    """The sum of exp_weight(score - shift) of clamped scores, which are left as they are."""
    total = 0.0
    for start in range(0, scores.size, _PIECE):
        piece = scores[start : start + _PIECE]
        partial = scores.dtype.type(0.0)
        for j in range(piece.size):
            s = piece[j]
            s = -bound if s < -bound else s
            s = bound if s > bound else s
            partial += exp_weight(s - shift)
        total += partial
    return total


@inline
def _softplus_and_clamped_exponentials(scores: Any, bound: Any) -> Any:
    """Sums of softplus and of e^s of clamped scores; replaces scores by the derivatives of their softplus."""
    high, low = exp(bound), exp(-bound)
    losses, total = 0.0, 0.0
    for start in range(0, scores.size, _PIECE):
        piece = scores[start : start + _PIECE]
        of_losses, partial = scores.dtype.type(0.0), scores.dtype.type(0.0)
        for j in range(piece.size):
            s = piece[j]
            softplus, piece[j], e = softplus_sigmoid_and_exp(s)
            of_losses += softplus
            e = low if s < -bound else e
            partial += high if s > bound else e
        losses += of_losses
        total += partial
    return losses, total


@inline
def _softplus_and_log_sum_exp_add_row(
    scores: Any, row: Any, positive: Any, flags: Any, row_state: Any, column_state: Any, reference: Any
) -> Any:
    """A positive that is left out is clamped to -bound like any score of -inf, and taken off: no term is smaller."""
    number = scores.dtype.type
    own, bound = scores[positive], number(row_state[SOFTPLUS_CLIP, row])
    if flags & POSITIVE_EXCLUDED:
        scores[positive] = -np.inf
    if bound <= _SMALL_CLIP:
        losses, total = _softplus_and_clamped_exponentials(scores, bound)
        if flags & POSITIVE_EXCLUDED:
            total -= exp(-bound)
            scores[positive] = 0.0
        row_state[LSE, row] = math.log(total)
    else:
        largest = _maximum_of(scores)
        largest = -bound if largest < -bound else largest
        largest = bound if largest > bound else largest
        # Nothing but -inf and NaN: the sum is zero or NaN.
        shift = largest if largest > -np.inf else number(0.0)
        total = _clamped_exponentials_sum(scores, bound, shift)
        if flags & POSITIVE_EXCLUDED:
            total -= exp_weight(-bound - shift)
        row_state[LSE, row] = (shift if largest > -np.inf else largest) + math.log(total / weight_scale(shift))
        losses = _softplus_row(scores, positive, flags)
    losses += _logistic_loss_of_positive(scores, positive, own, flags)
    row_state[POSITIVE, row], row_state[SOFTPLUS_SUM, row] = own, losses
    return 1.0


@inline
def _softplus_weigh_row(scores: Any, row: Any, positive: Any, flags: Any, row_weights: Any, column_weights: Any) -> Any:
    """dL/ds_ij = a_i sigmoid(s), and p_i at the positive."""
    number = scores.dtype.type
    _softplus_row(scores, positive, flags)
    a = number(row_weights[ROW_UPSTREAM, row])
    for j in range(scores.size):
        scores[j] *= a
    scores[positive] += number(row_weights[ROW_POSITIVE, row])
    return 1.0


_ADD_ROWS = {
    LOG_SUM_EXP: _log_sum_exp_add_row,
    TWO_WAY_LOG_SUM_EXP: _two_way_log_sum_exp_add_row,
    SIGMOID_LOSS: _sigmoid_loss_add_row,
    SOFTPLUS: _softplus_add_row,
    CLAMPED_LOG_SUM_EXP: _clamped_log_sum_exp_add_row,
    TWO_WAY_CLAMPED_LOG_SUM_EXP: _two_way_clamped_log_sum_exp_add_row,
    SOFTPLUS_AND_LOG_SUM_EXP: _softplus_and_log_sum_exp_add_row,
}
_WEIGH_ADDED_ROWS = {
    LOG_SUM_EXP: _log_sum_exp_weigh_added_row,
    SIGMOID_LOSS: _sigmoid_loss_weigh_added_row,
    SOFTPLUS: _softplus_weigh_added_row,
    SOFTPLUS_AND_LOG_SUM_EXP: _softplus_weigh_added_row,
}
# A column is not summed before the last row: with more than one tile two ways take a second sweep for the gradient.
_WEIGH_MERGED_ROWS = {TWO_WAY_LOG_SUM_EXP: _two_way_log_sum_exp_weigh_merged_row}
_WEIGH_ROWS = {
    LOG_SUM_EXP: _log_sum_exp_weigh_row,
    TWO_WAY_LOG_SUM_EXP: _two_way_log_sum_exp_weigh_row,
    SIGMOID_LOSS: _sigmoid_loss_weigh_row,
    SOFTPLUS: _softplus_weigh_row,
    CLAMPED_LOG_SUM_EXP: _clamped_log_sum_exp_weigh_row,
    TWO_WAY_CLAMPED_LOG_SUM_EXP: _two_way_clamped_log_sum_exp_weigh_row,
}
# Those that sum columns too, in the same sweep.
OVER_COLUMNS = (TWO_WAY_LOG_SUM_EXP, TWO_WAY_CLAMPED_LOG_SUM_EXP)


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


def add_row(
    reduction: int, scores: Any, row: Any, positive: Any, flags: Any, row_state: Any, column_state: Any, reference: Any
) -> Any:
    """Add a row of scores, by the reduction's code."""
    raise NotImplementedError("called from kernels only")


@overload(add_row, jit_options=INLINED, prefer_literal=True, strict=False)  # type: ignore[untyped-decorator]
def _add_row(
    reduction: Any, scores: Any, row: Any, positive: Any, flags: Any, row_state: Any, column_state: Any, reference: Any
) -> Any:
    if not isinstance(reduction, types.IntegerLiteral):
        return None  # the engine gives a constant; Numba also tries without
    function = _ADD_ROWS[reduction.literal_value]

    def implementation(
        reduction: Any,
        scores: Any,
        row: Any,
        positive: Any,
        flags: Any,
        row_state: Any,
        column_state: Any,
        reference: Any,
    ) -> Any:
        return function(scores, row, positive, flags, row_state, column_state, reference)

    return implementation


def weigh_added_row(
    reduction: int, scores: Any, positive: Any, flags: Any, total: Any, upstream: Any, label_smoothing: Any
) -> Any:
    """Turn an added row into dL/ds, by the reduction's code."""
    raise NotImplementedError("called from kernels only")


@overload(weigh_added_row, jit_options=INLINED, prefer_literal=True, strict=False)  # type: ignore[untyped-decorator]
def _weigh_added_row(
    reduction: Any, scores: Any, positive: Any, flags: Any, total: Any, upstream: Any, label_smoothing: Any
) -> Any:
    if not isinstance(reduction, types.IntegerLiteral):
        return None  # the engine gives a constant; Numba also tries without
    function = _WEIGH_ADDED_ROWS[reduction.literal_value]

    def implementation(
        reduction: Any, scores: Any, positive: Any, flags: Any, total: Any, upstream: Any, label_smoothing: Any
    ) -> Any:
        return function(scores, positive, flags, total, upstream, label_smoothing)

    return implementation


def weigh_merged_row(
    reduction: int,
    scores: Any,
    row: Any,
    positive: Any,
    flags: Any,
    row_state: Any,
    column_weights: Any,
    upstream: Any,
    label_smoothing: Any,
) -> Any:
    """Turn an added row into dL/ds after the merge, by the reduction's code."""
    raise NotImplementedError("called from kernels only")


@overload(weigh_merged_row, jit_options=INLINED, prefer_literal=True, strict=False)  # type: ignore[untyped-decorator]
def _weigh_merged_row(
    reduction: Any,
    scores: Any,
    row: Any,
    positive: Any,
    flags: Any,
    row_state: Any,
    column_weights: Any,
    upstream: Any,
    label_smoothing: Any,
) -> Any:
    if not isinstance(reduction, types.IntegerLiteral):
        return None  # the engine gives a constant; Numba also tries without
    function = _WEIGH_MERGED_ROWS[reduction.literal_value]

    def implementation(
        reduction: Any,
        scores: Any,
        row: Any,
        positive: Any,
        flags: Any,
        row_state: Any,
        column_weights: Any,
        upstream: Any,
        label_smoothing: Any,
    ) -> Any:
        return function(scores, row, positive, flags, row_state, column_weights, upstream, label_smoothing)

    return implementation


def weigh_row(
    reduction: int, scores: Any, row: Any, positive: Any, flags: Any, row_weights: Any, column_weights: Any
) -> Any:
    """Turn a row of scores into dL/ds, by the reduction's code."""
    raise NotImplementedError("called from kernels only")


@overload(weigh_row, jit_options=INLINED, prefer_literal=True, strict=False)  # type: ignore[untyped-decorator]
def _weigh_row(
    reduction: Any, scores: Any, row: Any, positive: Any, flags: Any, row_weights: Any, column_weights: Any
) -> Any:
    if not isinstance(reduction, types.IntegerLiteral):
        return None  # the engine gives a constant; Numba also tries without
    function = _WEIGH_ROWS[reduction.literal_value]

    def implementation(
        reduction: Any, scores: Any, row: Any, positive: Any, flags: Any, row_weights: Any, column_weights: Any
    ) -> Any:
        return function(scores, row, positive, flags, row_weights, column_weights)

    return implementation
