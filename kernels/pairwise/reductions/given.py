"""No reduction: dL/ds itself is the upstream gradient [N, N'], of scores that are stored. Triton's alone."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

from mibfast.kernels.halves import gpu, tl
from mibfast.kernels.pairwise.reductions import Reduction


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
    """dL/ds itself is the upstream gradient, [N, N']."""
    w = tl.load(upstream + tl.cast(rows, tl.int64) * upstream_stride + columns)
    return w, w


REDUCTION = Reduction({}, row_states=0, row_weights=0, add=None, grad=_grad, is_light=lambda flags: True)
