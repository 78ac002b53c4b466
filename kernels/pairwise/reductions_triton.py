"""Reductions of the Triton engine, one tile of pairs at a time.

A reduction is a pair of jit functions, which the engine's kernels take as `constexpr`, and what they keep:

- `add(row_state, column_state, s, scale, bias, valid, positive, FLAGS, SPECIAL)`: adds a tile of scores, and returns
  both states: tuples of `row_planes` [rows] and `column_planes` [columns] numbers, float32. Where `maximum`, plane 0
  starts at -inf; all others start at 0. Only where SPECIAL, `valid` and `positive` are tiles that say which pairs there
  are and which are positives; elsewhere all are valid and none is positive, and both are None.
- `weigh(s, scale, bias, rows, columns, n, n_columns, upstream, upstream_stride, row_lse, column_lse, smoothing, valid,
  positive, FLAGS, SPECIAL)`: a tile's dL/d(scale s), and its losses, of a reduction that has one a pair (any tile
  otherwise). Tiles may be [rows, columns] or the other way round: what is of a row is loaded at `rows`, an index in a
  shape that broadcasts, and so with `columns`. `upstream` None stands for ones; one that is of rows, positives and
  columns apart is three planes of `upstream_stride` numbers, at least N and N'. What it returns for pairs that are not
  there does not count, but NaN there would: rows and columns are in range for them too.

`scale` is 1 / temperature where the loss has one; `bias` is the bound of scores that are CLIPPED. To add a reduction:
write the two functions and name the triple here.
"""

# ruff: noqa: RUF005 - jit functions build tuples by addition
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,assignment"
from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

# Bits of FLAGS.
TWO_WAY = tl.constexpr(1)
POSITIVE_EXCLUDED = tl.constexpr(2)
TOTALS = tl.constexpr(4)
CLIPPED = tl.constexpr(8)
# Upstream gradients of rows, positives and columns are apart.
APART = tl.constexpr(16)

LOG2_E = tl.constexpr(1.4426950408889634)
# Powers of two that one exponential may lie from its reference: 2^-100 has 26 bits above the least float32.
_DEEPEST = tl.constexpr(100.0)
# e^(R_i - C_j) is formed as a product of two numbers while no R exceeds a C by more powers of two.
_LARGEST_EXCESS = tl.constexpr(80.0)


class Reduction(NamedTuple):
    """The jit functions of a reduction, the number of planes that it keeps, and whether the first holds a maximum.

    `light` says that its weights take few registers.
    """

    add: Any
    weigh: Any
    row_planes: int
    column_planes: int
    maximum: bool
    light: bool


@triton.jit
def finite(x):
    """x, or 0 where it is infinite: what exponents are taken relative to."""
    return tl.where(tl.abs(x) == float("inf"), 0.0, x)


@triton.jit
def _clamped(s, bound):
    """s in [-bound, bound]; NaN is kept."""
    s = tl.where(s < -bound, -bound, s)
    return tl.where(s > bound, bound, s)


@triton.jit
def _raised(maximum, total, highest, added, reference, c):
    """A maximum and a sum relative to it, after `added`, relative to `reference`, whose largest is `highest`."""
    raised = tl.maximum(maximum, highest)
    level = finite(raised)
    return raised, total * tl.exp2((maximum - level) * c) + added * tl.exp2((reference - level) * c)


@triton.jit
def _add_log_sum_exp(
    row_state, column_state, s, scale, bias, valid, positive, FLAGS: tl.constexpr, SPECIAL: tl.constexpr
):
    """States hold a maximum of s and a sum of 2^(c (s - maximum)), c = scale log2 e, and a sum of s where TOTALS.

    Maxima are of scores as they are: differences of scores that matter are exact, whatever is contracted into a
    multiply-add, so that a loss near zero is not what is left of two roundings.
    Two ways need e^s relative to row and to column. One exponential relative to the tile's largest score serves both
    while no row and no column of the tile lies 100 powers of two below it; elsewhere each has its own.
    """
    c = scale * LOG2_E
    if CLIPPED & FLAGS:
        s = _clamped(s, bias)
    if TOTALS & FLAGS:
        counted = tl.where(valid, s, 0.0) if SPECIAL else s
        row_total = row_state[2] + tl.sum(counted, 1)
    if SPECIAL:
        s = tl.where(valid, s, -float("inf"))
        if POSITIVE_EXCLUDED & FLAGS:
            s = tl.where(positive, -float("inf"), s)
    of_rows = tl.max(s, 1)
    new_columns = ()
    if TWO_WAY & FLAGS:
        of_columns = tl.max(s, 0)
        top = tl.max(of_rows, 0)
        lowest = tl.minimum(tl.min(of_rows, 0), tl.min(of_columns, 0))
        if ((lowest - top) * c >= -_DEEPEST) & (top > -float("inf")) & (top < float("inf")):
            e = tl.exp2((s - top) * c)
            row_maximum, row_sum = _raised(row_state[0], row_state[1], of_rows, tl.sum(e, 1), top, c)
            column_maximum, column_sum = _raised(column_state[0], column_state[1], of_columns, tl.sum(e, 0), top, c)
        else:
            level = finite(of_rows)
            added = tl.sum(tl.exp2((s - level[:, None]) * c), 1)
            row_maximum, row_sum = _raised(row_state[0], row_state[1], of_rows, added, level, c)
            level = finite(of_columns)
            added = tl.sum(tl.exp2((s - level[None, :]) * c), 0)
            column_maximum, column_sum = _raised(column_state[0], column_state[1], of_columns, added, level, c)
        new_columns = (column_maximum, column_sum)
        if TOTALS & FLAGS:
            new_columns = new_columns + (column_state[2] + tl.sum(counted, 0),)
    else:
        row_maximum = tl.maximum(row_state[0], of_rows)
        level = finite(row_maximum)
        row_sum = row_state[1] * tl.exp2((row_state[0] - level) * c) + tl.sum(tl.exp2((s - level[:, None]) * c), 1)
    new_rows = (row_maximum, row_sum)
    if TOTALS & FLAGS:
        new_rows = new_rows + (row_total,)
    return new_rows, new_columns


@triton.jit
def _saved(lse, index, inverse_scale):
    """Saved log-sum-exps, nats in float64, as scores in two float32 parts; +inf for -inf, which has no softmax."""
    level = tl.load(lse + index) * inverse_scale
    level = tl.where(level == -float("inf"), float("inf"), level)
    high = level.to(tl.float32)
    low = (level - high.to(tl.float64)).to(tl.float32)
    return level, high, tl.where(high == float("inf"), 0.0, low)


@triton.jit
def _weigh_log_sum_exp(
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
    of_row, high, low = _saved(row_lse, rows, inverse_scale)
    half: tl.constexpr = 0.5 if TWO_WAY & FLAGS and not APART & FLAGS else 1.0
    g = half if upstream is None else half * tl.load(upstream + rows)
    if CLIPPED & FLAGS:
        beyond = tl.abs(s) > bias
        s = _clamped(s, bias)
    e = tl.exp2((s - high) * c - low * c)
    if TWO_WAY & FLAGS:
        of_column, column_high, column_low = _saved(column_lse, columns, inverse_scale)
        if APART & FLAGS:
            b = tl.load(upstream + 2 * tl.cast(upstream_stride, tl.int64) + columns)
        else:
            b = half if upstream is None else half * tl.load(upstream + columns)
        highest = tl.max(tl.max(high, 0), 0)
        lowest = tl.min(tl.min(column_high, 0), 0)
        if (highest - lowest) * c <= _LARGEST_EXCESS:
            middle = (0.5 * (highest + lowest)).to(tl.float64)
            of_columns = b * tl.exp2((middle - of_column).to(tl.float32) * c)
            w = e * (g + tl.exp2((of_row - middle).to(tl.float32) * c) * of_columns)
        else:
            w = e * g + tl.exp2((s - column_high) * c - column_low * c) * b
    else:
        w = e * g
    if CLIPPED & FLAGS:
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
        w = _with_positives(w, upstream, upstream_stride, rows, positive)
    return w, w


@triton.jit
def _with_positives(w, upstream, upstream_stride, rows, positive):
    """Weights, and at positives their own upstream gradient besides."""
    return tl.where(positive, w + tl.load(upstream + tl.cast(upstream_stride, tl.int64) + rows), w)


@triton.jit
def _softplus_and_sigmoid(z):
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


@triton.jit
def _softplus_terms(s, scale, bias, valid, positive, SPECIAL: tl.constexpr):
    """softplus(z) and dL/dz of z = scale s + bias, of -z at positives; zeros where there is no pair."""
    z = s * scale + bias
    if SPECIAL:
        z = tl.where(positive, -z, z)
    losses, w = _softplus_and_sigmoid(z)
    if SPECIAL:
        w = tl.where(valid, tl.where(positive, -w, w), 0.0)
        losses = tl.where(valid, losses, 0.0)
    return losses, w


@triton.jit
def _add_softplus(row_state, column_state, s, scale, bias, valid, positive, FLAGS: tl.constexpr, SPECIAL: tl.constexpr):
    """The row's states are L, dL/dscale and dL/dbias."""
    losses, w = _softplus_terms(s, scale, bias, valid, positive, SPECIAL)
    along = tl.where(valid, w * s, 0.0) if SPECIAL else w * s
    return (row_state[0] + tl.sum(losses, 1), row_state[1] + tl.sum(along, 1), row_state[2] + tl.sum(w, 1)), ()


@triton.jit
def _weigh_softplus(
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
    losses, w = _softplus_terms(s, scale, bias, valid, positive, SPECIAL)
    if upstream is not None:
        g = tl.load(upstream + rows)
        losses, w = losses * g, w * g
    return w, losses


@triton.jit
def _add_softplus_sum(
    row_state, column_state, s, scale, bias, valid, positive, FLAGS: tl.constexpr, SPECIAL: tl.constexpr
):
    """The row's state is the sum of softplus(s), of positives as of all others or without them."""
    losses, _ = _softplus_and_sigmoid(s)
    if SPECIAL:
        counted = valid & ~positive if POSITIVE_EXCLUDED & FLAGS else valid
        losses = tl.where(counted, losses, 0.0)
    return (row_state[0] + tl.sum(losses, 1),), ()


@triton.jit
def _weigh_softplus_sum(
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
    _, w = _softplus_and_sigmoid(s)
    w = w * tl.load(upstream + rows)
    if SPECIAL:
        if POSITIVE_EXCLUDED & FLAGS:
            w = tl.where(positive, 0.0, w)
        w = _with_positives(w, upstream, upstream_stride, rows, positive)
    return w, w


@triton.jit
def _weigh_given(
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
    """dL/ds itself is the upstream gradient, [N, N']."""
    w = tl.load(upstream + tl.cast(rows, tl.int64) * upstream_stride + columns)
    return w, w


# Of dense scores, which are not reduced.
GIVEN = Reduction(None, _weigh_given, 0, 0, False, True)
SOFTPLUS_SUM = Reduction(_add_softplus_sum, _weigh_softplus_sum, 1, 0, False, False)
SOFTPLUS = Reduction(_add_softplus, _weigh_softplus, 3, 0, False, False)


def log_sum_exp(flags: int) -> Reduction:
    """Log-sum-exps of rows, and of columns where flags hold TWO_WAY, with sums of scores where they hold TOTALS.

    Scores are clamped in them, and have no gradient beyond the bound, where flags hold CLIPPED.
    """
    planes = 3 if flags & TOTALS.value else 2
    return Reduction(
        _add_log_sum_exp,
        _weigh_log_sum_exp,
        planes,
        planes if flags & TWO_WAY.value else 0,
        True,
        flags & ~POSITIVE_EXCLUDED.value == 0,
    )
