"""Scores of critics of one or two hidden layers in Triton, a tile of pairs at a time, and what their gradients are."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def one_layer_scores(
    u,  # [units, padded N]
    n,  # [units, padded N']
    weight,  # [units]
    row_offsets,  # [padded N]
    column_offsets,  # [padded N']
    row,  # [ROWS]
    column,  # [COLUMNS]
    units,
    u_stride,
    n_stride,
    UNITS: tl.constexpr,
):
    """Scores [ROWS, COLUMNS], UNITS hidden units at a time."""
    s = tl.load(row_offsets + row)[:, None] + tl.load(column_offsets + column)[None, :]
    for first in range(0, units, UNITS):
        for k in tl.static_range(UNITS):
            unit = tl.cast(first + k, tl.int64)
            x, y = tl.load(u + unit * u_stride + row), tl.load(n + unit * n_stride + column)
            s += tl.load(weight + unit) * tl.maximum(x[:, None], y[None, :])
    return s


@triton.jit
def two_layer_scores(
    u,  # [padded N, units]
    v,  # [padded N', units]
    weight,  # [second_units]
    row_offsets,  # [padded N]
    column_offsets,  # [padded N']
    hidden_weight,  # [second_units, units]
    hidden_bias,  # [second_units]
    first_row,
    first_column,
    units,
    second_units,
    layers,  # both layers of a chunk [pairs, units] and [pairs, second_units], its first row and column, its columns
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNITS: tl.constexpr,
    SECOND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Scores [ROWS, COLUMNS], UNITS and SECOND units at a time; both layers are stored unless `layers` is None."""
    pair = tl.arange(0, ROWS * COLUMNS)
    row, column = first_row + pair // COLUMNS, first_column + pair % COLUMNS
    s = tl.load(row_offsets + row) + tl.load(column_offsets + column)
    row_units, column_units = u + row[:, None].to(tl.int64) * units, v + column[:, None].to(tl.int64) * units
    if layers is not None:
        first_layer, second_layer, chunk_row, chunk_column, chunk_columns = layers
        place = ((row - chunk_row).to(tl.int64) * chunk_columns + (column - chunk_column))[:, None]
    for first in range(0, second_units, SECOND):
        second = first + tl.arange(0, SECOND)
        z = tl.zeros((ROWS * COLUMNS, SECOND), tl.float32)
        for start in range(0, units, UNITS):
            unit = (start + tl.arange(0, UNITS))[None, :]
            x = tl.load(row_units + unit).to(tl.float32) + tl.load(column_units + unit).to(tl.float32)
            # NaN is kept.
            x = tl.where(x <= 0.0, 0.0, x).to(hidden_weight.dtype.element_ty)
            if layers is not None:
                tl.store(first_layer + place * units + unit, x, mask=first == 0)
            block = tl.load(hidden_weight + second[:, None].to(tl.int64) * units + unit)
            z = tl.dot(x, tl.trans(block), z, input_precision=PRECISION)
        z += tl.load(hidden_bias + second)[None, :]
        if layers is not None:
            tl.store(second_layer + place * second_units + second[None, :], z.to(hidden_weight.dtype.element_ty))
        s += tl.sum(tl.load(weight + second)[None, :] * tl.where(z <= 0.0, 0.0, z), 1)
    return tl.reshape(s, (ROWS, COLUMNS))


@triton.jit
def _parts(lse, dtype: tl.constexpr):
    """A float64 log-sum-exp in two numbers of a dtype: that of large scores has no digits to spare."""
    high = lse.to(dtype)
    return high, tl.where(tl.abs(lse) == float("inf"), 0.0, lse - high.to(tl.float64)).to(dtype)


@triton.jit
def grad_scores(
    s,  # [ROWS, COLUMNS]
    row,  # [ROWS]
    column,  # [COLUMNS]
    rows,
    columns,
    upstream,  # gradients of positives [N], rows [N] and columns [N'], log-sum-exps [N] and [N'] in float64
    clip,
    offset,
    SOFTPLUS: tl.constexpr,
    POSITIVE: tl.constexpr,
    CLIPPED: tl.constexpr,
):
    """dL/ds, zero where there is no pair. Of softplus sums there are no log-sum-exps, and one way no columns."""
    grad_positives, grad_rows, grad_columns, row_lse, column_lse = upstream
    in_rows, in_columns = row < rows, column < columns
    row_upstream = tl.load(grad_rows + row, mask=in_rows, other=0.0)
    if SOFTPLUS:
        gradient = row_upstream[:, None] / (1.0 + tl.exp(-s))
    else:
        high, low = _parts(tl.load(row_lse + row, mask=in_rows, other=0.0), s.dtype)
        gradient = row_upstream[:, None] * tl.exp((s - high[:, None]) - low[:, None])
        if column_lse is not None:
            high, low = _parts(tl.load(column_lse + column, mask=in_columns, other=0.0), s.dtype)
            column_upstream = tl.load(grad_columns + column, mask=in_columns, other=0.0)
            gradient += column_upstream[None, :] * tl.exp((s - high[None, :]) - low[None, :])
    positive = row[:, None] + offset == column[None, :]
    if CLIPPED:
        gradient = tl.where(tl.abs(s) > clip, 0.0, gradient)
    if not POSITIVE:
        gradient = tl.where(positive, 0.0, gradient)
    positive_upstream = tl.load(grad_positives + row, mask=in_rows, other=0.0)
    gradient += tl.where(positive, positive_upstream[:, None], 0.0)
    return tl.where(in_rows[:, None] & in_columns[None, :], gradient, 0.0)
