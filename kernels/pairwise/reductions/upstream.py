"""What the reductions of Triton share: upstream gradients that are apart."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

from mibfast.kernels.halves import gpu, tl


@gpu
def with_positives(w, upstream, upstream_stride, rows, positive):
    """Weights, and at positives their own upstream gradient besides."""
    return tl.where(positive, w + tl.load(upstream + tl.cast(upstream_stride, tl.int64) + rows), w)
