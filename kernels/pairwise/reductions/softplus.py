"""Sums of softplus over rows; with LOG_SUM_EXP_BESIDE, log-sum-exps of clamped scores come with them, on the CPU."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,assignment"
from __future__ import annotations

import math
from typing import Any

import numpy as np

from mibfast.kernels.halves import cpu, gpu, tl, vm
from mibfast.kernels.pairwise.flags import LOG_SUM_EXP_BESIDE, POSITIVE_EXCLUDED, POSITIVE_LOGISTIC
from mibfast.kernels.pairwise.reductions import CpuHalf, Reduction
from mibfast.kernels.pairwise.reductions.rows import maximum_of
from mibfast.kernels.pairwise.reductions.upstream import with_positives

# A row's state: the sum, which Triton keeps; on the CPU [ROW_STATES, N], where CLIP is given.
SUM, POSITIVE, LSE, CLIP = range(4)
ROW_STATES = 4
# What gradients are made of on the CPU [ROW_WEIGHTS, N].
GRAD_SUM, GRAD_POSITIVE = range(2)
ROW_WEIGHTS = 2

# Up to this bound, sums of e^s of clamped scores need no maximum taken off.
_SMALL_CLIP = 40.0


@cpu
def _softplus_row(scores: Any, positive: Any, flags: Any) -> Any:
    """Replace scores by the derivatives of their softplus, zero at a positive that is left out; return the sum."""
    if flags & POSITIVE_EXCLUDED:
        # Not taken off again: next to it a sum of small terms would be lost.
        scores[positive] = -np.inf
    total = 0.0
    for start in range(0, scores.size, vm.PIECE):
        piece = scores[start : start + vm.PIECE]
        partial = scores.dtype.type(0.0)
        for j in range(piece.size):
            softplus, piece[j] = vm.softplus_and_sigmoid(piece[j])
            partial += softplus
        total += partial
    if flags & POSITIVE_EXCLUDED:
        scores[positive] = 0.0
    return total


@cpu
def _logistic_loss_of_positive(scores: Any, positive: Any, own: Any, flags: Any) -> Any:
    """The loss of a positive of score `own`, as heavy as all the negatives; its derivative is put in its place."""
    if not flags & POSITIVE_LOGISTIC:
        return 0.0
    weight = scores.dtype.type(scores.size - 1)
    softplus, sigmoid = vm.softplus_and_sigmoid(-own)
    scores[positive] = -weight * sigmoid
    return weight * softplus


@cpu
def _add_row(
    scores: Any, row: Any, positive: Any, flags: Any, row_state: Any, column_state: Any, reference: Any
) -> Any:
    own = scores[positive]
    losses = _softplus_row(scores, positive, flags)
    losses += _logistic_loss_of_positive(scores, positive, own, flags)
    row_state[POSITIVE, row], row_state[SUM, row] = own, losses
    return 1.0


@cpu
def _grad_added_row(scores: Any, positive: Any, flags: Any, total: Any, upstream: Any, label_smoothing: Any) -> Any:
    """The row holds the derivatives, that of a positive too."""
    return upstream


@cpu
def _clamped_exponentials_sum(scores: Any, bound: Any, shift: Any) -> float:
    """The sum of exp_weight(score - shift) of clamped scores, which are left as they are."""
    total = 0.0
    for start in range(0, scores.size, vm.PIECE):
        piece = scores[start : start + vm.PIECE]
        partial = scores.dtype.type(0.0)
        for j in range(piece.size):
            s = piece[j]
            s = -bound if s < -bound else s
            s = bound if s > bound else s
            partial += vm.exp_weight(s - shift)
        total += partial
    return total


@cpu
def _softplus_and_clamped_exponentials(scores: Any, bound: Any) -> Any:
    """Sums of softplus and of e^s of clamped scores; replaces scores by the derivatives of their softplus."""
    high, low = vm.exp(bound), vm.exp(-bound)
    losses, total = 0.0, 0.0
    for start in range(0, scores.size, vm.PIECE):
        piece = scores[start : start + vm.PIECE]
        some_losses, partial = scores.dtype.type(0.0), scores.dtype.type(0.0)
        for j in range(piece.size):
            s = piece[j]
            softplus, piece[j], e = vm.softplus_sigmoid_and_exp(s)
            some_losses += softplus
            e = low if s < -bound else e
            partial += high if s > bound else e
        losses += some_losses
        total += partial
    return losses, total


@cpu
def _add_row_with_log_sum_exp(
    scores: Any, row: Any, positive: Any, flags: Any, row_state: Any, column_state: Any, reference: Any
) -> Any:
    """A positive that is left out is clamped to -bound like any score of -inf, and taken off: no term is smaller."""
    number = scores.dtype.type
    own, bound = scores[positive], number(row_state[CLIP, row])
    if flags & POSITIVE_EXCLUDED:
        scores[positive] = -np.inf
    if bound <= _SMALL_CLIP:
        losses, total = _softplus_and_clamped_exponentials(scores, bound)
        if flags & POSITIVE_EXCLUDED:
            total -= vm.exp(-bound)
            scores[positive] = 0.0
        row_state[LSE, row] = math.log(total)
    else:
        largest = maximum_of(scores)
        largest = -bound if largest < -bound else largest
        largest = bound if largest > bound else largest
        # Nothing but -inf and NaN: the sum is zero or NaN.
        shift = largest if largest > -np.inf else number(0.0)
        total = _clamped_exponentials_sum(scores, bound, shift)
        if flags & POSITIVE_EXCLUDED:
            total -= vm.exp_weight(-bound - shift)
        row_state[LSE, row] = (shift if largest > -np.inf else largest) + math.log(total / vm.weight_scale(shift))
        losses = _softplus_row(scores, positive, flags)
    losses += _logistic_loss_of_positive(scores, positive, own, flags)
    row_state[POSITIVE, row], row_state[SUM, row] = own, losses
    return 1.0


@cpu
def _grad_row(scores: Any, row: Any, positive: Any, flags: Any, row_weights: Any, column_weights: Any) -> Any:
    """dL/ds_ij = a_i sigmoid(s), and p_i at the positive."""
    number = scores.dtype.type
    _softplus_row(scores, positive, flags)
    a = number(row_weights[GRAD_SUM, row])
    for j in range(scores.size):
        scores[j] *= a
    scores[positive] += number(row_weights[GRAD_POSITIVE, row])
    return 1.0


@gpu
def softplus_and_sigmoid(z):
    """log(1 + e^z) and its derivative.

    log(1 + t) of t = e^-|z| is t times a polynomial, 1.5e-7 in relative error: a logarithm of 1 + t would have lost t.
    """
    t = tl.exp(-tl.abs(z))
    p = -0.0031760570127516985 * t + 0.019542528316378593
    p = p * t - 0.05637361481785774
    p = p * t + 0.10543623566627502
    p = p * t - 0.1526966691017151
    p = p * t + 0.1966327428817749
    p = p * t - 0.24951615929603577
    p = p * t + 0.33329710364341736
    p = p * t - 0.49999892711639404
    p = p * t + 1.0
    inverse = 1.0 / (1.0 + t)
    return tl.maximum(z, 0.0) + t * p, tl.where(z >= 0.0, inverse, t * inverse)


@gpu
def _add(row_state, column_state, s, scale, bias, valid, positive, FLAGS: tl.constexpr, SPECIAL: tl.constexpr):
    """The row's state is the sum of softplus(s), of positives as of all others or without them."""
    losses, _ = softplus_and_sigmoid(s)
    if SPECIAL:
        counted = valid & ~positive if POSITIVE_EXCLUDED & FLAGS else valid
        losses = tl.where(counted, losses, 0.0)
    return (row_state[SUM] + tl.sum(losses, 1),), ()


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
    _, w = softplus_and_sigmoid(s)
    w = w * tl.load(upstream + rows)
    if SPECIAL:
        if POSITIVE_EXCLUDED & FLAGS:
            w = tl.where(positive, 0.0, w)
        w = with_positives(w, upstream, upstream_stride, rows, positive)
    return w, w


REDUCTION = Reduction(
    {
        0: CpuHalf(_add_row, _grad_added_row, None, _grad_row),
        LOG_SUM_EXP_BESIDE: CpuHalf(_add_row_with_log_sum_exp, _grad_added_row, None, None),
    },
    row_states=ROW_STATES,
    row_weights=ROW_WEIGHTS,
    add=_add,
    grad=_grad,
    row_planes=lambda flags: 1,
)
