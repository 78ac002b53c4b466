"""SigLIP's loss of each row: softplus(-z) of the positive and softplus(z) of all others, z = scale s + bias."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,assignment"
from __future__ import annotations

from typing import Any

from mibfast.kernels.halves import cpu, gpu, tl, vm
from mibfast.kernels.pairwise.reductions import CpuHalf, Reduction
from mibfast.kernels.pairwise.reductions.softplus import softplus_and_sigmoid

# A row's state: the loss and its derivatives, which Triton keeps; on the CPU [ROW_STATES, N], where scale and bias are
# given too.
LOSS, GRAD_SCALE, GRAD_BIAS, SCALE, BIAS = range(5)
ROW_STATES = 5
# What gradients are made of on the CPU [ROW_WEIGHTS, N].
UPSTREAM, WEIGHT_SCALE, WEIGHT_BIAS = range(3)
ROW_WEIGHTS = 3


@cpu
def _softplus_terms(scores: Any, scale: Any, bias: Any) -> Any:
    """Sums of softplus(z), w and w s for z = scale s + bias and w = sigmoid(z), which replaces s."""
    losses, weights, along = 0.0, 0.0, 0.0
    for start in range(0, scores.size, vm.PIECE):
        piece = scores[start : start + vm.PIECE]
        zero = scores.dtype.type(0.0)
        some_losses, some_weights, some_along = zero, zero, zero
        for j in range(piece.size):
            s = piece[j]
            softplus, w = vm.softplus_and_sigmoid(scale * s + bias)
            piece[j] = w
            some_losses += softplus
            some_weights += w
            some_along += w * s
        losses += some_losses
        weights += some_weights
        along += some_along
    return losses, weights, along


@cpu
def _sigmoid_loss_row(scores: Any, positive: Any, scale: Any, bias: Any) -> Any:
    """Replace scores by dL/dz, and return L, dL/dscale and dL/dbias of the row.

    L = softplus(-z_p) + sum over the others of softplus(z_j). The positive has another sign than its neighbours: in the
    vector loop a score of 0 stands in its place, of which nothing but softplus(bias) and sigmoid(bias) is to be taken
    off again.
    """
    own = scores[positive]
    scores[positive] = 0.0
    loss, weights, along = _softplus_terms(scores, scale, bias)
    stand_in, stand_in_weight = vm.softplus_and_sigmoid(bias)
    softplus, w = vm.softplus_and_sigmoid(-(scale * own + bias))
    scores[positive] = -w
    return loss - stand_in + softplus, along - w * own, weights - stand_in_weight - w


@cpu
def _add_row(
    scores: Any, row: Any, positive: Any, flags: Any, row_state: Any, column_state: Any, reference: Any
) -> Any:
    number = scores.dtype.type
    scale, bias = number(row_state[SCALE, row]), number(row_state[BIAS, row])
    loss, scale_gradient, bias_gradient = _sigmoid_loss_row(scores, positive, scale, bias)
    row_state[LOSS, row] = loss
    row_state[GRAD_SCALE, row], row_state[GRAD_BIAS, row] = scale_gradient, bias_gradient
    return row_state[SCALE, row]


@cpu
def _grad_added_row(scores: Any, positive: Any, flags: Any, total: Any, upstream: Any, label_smoothing: Any) -> Any:
    """The row holds dL/dz, and its total is dz/ds."""
    return upstream * total


@cpu
def _grad_row(scores: Any, row: Any, positive: Any, flags: Any, row_weights: Any, column_weights: Any) -> Any:
    number = scores.dtype.type
    scale, bias = number(row_weights[WEIGHT_SCALE, row]), number(row_weights[WEIGHT_BIAS, row])
    _sigmoid_loss_row(scores, positive, scale, bias)
    return row_weights[UPSTREAM, row] * row_weights[WEIGHT_SCALE, row]


@gpu
def _terms_of_tile(s, scale, bias, valid, positive, SPECIAL: tl.constexpr):
    """softplus(z) and dL/dz of z = scale s + bias, of -z at positives; zeros where there is no pair."""
    z = s * scale + bias
    if SPECIAL:
        z = tl.where(positive, -z, z)
    losses, w = softplus_and_sigmoid(z)
    if SPECIAL:
        w = tl.where(valid, tl.where(positive, -w, w), 0.0)
        losses = tl.where(valid, losses, 0.0)
    return losses, w


@gpu
def _add(row_state, column_state, s, scale, bias, valid, positive, FLAGS: tl.constexpr, SPECIAL: tl.constexpr):
    """The row's states are L, dL/dscale and dL/dbias."""
    losses, w = _terms_of_tile(s, scale, bias, valid, positive, SPECIAL)
    along = tl.where(valid, w * s, 0.0) if SPECIAL else w * s
    return (
        row_state[LOSS] + tl.sum(losses, 1),
        row_state[GRAD_SCALE] + tl.sum(along, 1),
        row_state[GRAD_BIAS] + tl.sum(w, 1),
    ), ()


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
    losses, w = _terms_of_tile(s, scale, bias, valid, positive, SPECIAL)
    if upstream is not None:
        g = tl.load(upstream + rows)
        losses, w = losses * g, w * g
    return w, losses


REDUCTION = Reduction(
    {0: CpuHalf(_add_row, _grad_added_row, None, _grad_row)},
    row_states=ROW_STATES,
    row_weights=ROW_WEIGHTS,
    add=_add,
    grad=_grad,
    row_planes=lambda flags: 3,
)
