"""Leave-one-out projections on NVIDIA GPUs: launches the kernels of `csrc/projection.cuh`, whose head has their cost.

Nothing is read back and nothing waits, so that CUDA graphs can hold the calls.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# By name, for it may be missing; then nothing imports this file.
_cuda: Any = importlib.import_module("mibfast._cuda")

_DTYPES = {
    torch.float64: _cuda.Dtype.float64,
    torch.float32: _cuda.Dtype.float32,
    torch.float16: _cuda.Dtype.float16,
    torch.bfloat16: _cuda.Dtype.bfloat16,
}


class _Rows:
    """M matrices [N, d] with unit stride within a row; copies, where any are needed, live as long as this object."""

    def __init__(self, matrices: Sequence[Tensor]) -> None:
        self._kept = [x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous() for x in matrices]
        self.addresses = [x.data_ptr() for x in self._kept]
        self.strides = [x.stride(0) for x in self._kept]


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream


def leave_one_out(z: Sequence[Tensor], ridge: float) -> tuple[Tensor, Tensor]:
    """All M projections [M, N, d] in the dtype of the embeddings, and H of each sample [N, M, M], float64."""
    first, m = z[0], len(z)
    n, d = first.shape
    with torch.cuda.device_of(first):  # type: ignore[no-untyped-call]
        rows = _Rows(z)
        out, inverse = first.new_empty(m, n, d), first.new_empty((n, m, m), dtype=torch.float64)
        _cuda.leave_one_out(
            device=first.device.index,
            dtype=_DTYPES[first.dtype],
            z=rows.addresses,
            strides=rows.strides,
            n=n,
            d=d,
            ridge=ridge,
            out=out.data_ptr(),
            inverse=inverse.data_ptr(),
            stream=_stream(first.device),
        )
    return out, inverse


def leave_one_out_backward(
    upstream: Tensor, z: Sequence[Tensor], inverse: Tensor, needed: Sequence[bool], ridge: float
) -> list[Tensor]:
    """Gradients of `leave_one_out` for an upstream gradient [M, N, d]."""
    first = z[0]
    n, d = first.shape
    with torch.cuda.device_of(first):  # type: ignore[no-untyped-call]
        rows, upstream_rows = _Rows(z), _Rows(upstream.to(first.dtype).unbind())
        gradients = [first.new_empty(n, d) for _ in z]
        _cuda.leave_one_out_backward(
            device=first.device.index,
            dtype=_DTYPES[first.dtype],
            upstream=upstream_rows.addresses,
            upstream_strides=upstream_rows.strides,
            z=rows.addresses,
            strides=rows.strides,
            n=n,
            d=d,
            inverse=inverse.data_ptr(),
            gradients=[x.data_ptr() for x in gradients],
            stream=_stream(first.device),
        )
    return gradients
