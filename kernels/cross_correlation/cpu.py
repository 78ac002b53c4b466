"""Barlow Twins on the CPU, through d x d cross-correlations or N x N inner products, whichever is smaller.

    Z = standardised columns        C = Za^T Zb / N        invariance = sum_i (C_ii - 1)^2
    redundancy = sum_{i != j} C_ij^2 = tr((Za Za^T) (Zb Zb^T)) / N^2 - sum_i C_ii^2

Cost in GEMMs: with N < d 4 of 2 N^2 d FLOPs (two of inner products, one of each gradient) and no d x d matrix; with
N >= d 3 of 2 N d^2. The released code spends 3 of 2 N d^2 always, and passes over d x d several times: at N = 256, d =
8192 24 times the FLOPs, and 256 MiB a matrix. Besides, columns are read three times forward and gradients twice
backward, a range of columns that stays in cache. Memory: Za, Zb and the smaller matrices, kept for the backward.

With G = dL/dC, dL/dZa = Zb G^T / N: its part off the diagonal is a GEMM, the diagonal's a multiple of Zb, t_i zb_i.
Then dL/da = (dL/dZ - mean dL/dZ - Z mean(Z dL/dZ)) / sqrt(variance + eps), over each column.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mibfast import _buffers
from mibfast._threads import parallel, slots
from mibfast.kernels.compilation import kernel
from mibfast.kernels.cross_correlation.reference import EPS
from mibfast.kernels.row_addresses import RowAddresses, row_at

# Columns a slot, and numbers a slot, at least: narrower ranges spend their time between rows.
_COLUMNS, _GRAIN = 128, 32768
# Sums within a row are float32 in pieces of this length, float64 over them.
_PIECE = 2048


@kernel
def _standardise(address: int, stride: int, begin: int, end: int, eps: float, z: Any, inverse: Any) -> None:
    """Write columns begin to end of z [N, d], and their 1 / sqrt(variance + eps), all moments in float64."""
    n, d = z.shape
    width = end - begin
    mean, scale = np.zeros(width), np.zeros(width)
    for i in range(n):
        x = row_at(address, i, stride, d, z)[begin:end]
        for j in range(width):
            mean[j] += x[j]
    for j in range(width):
        mean[j] /= n
    for i in range(n):
        x = row_at(address, i, stride, d, z)[begin:end]
        for j in range(width):
            difference = x[j] - mean[j]
            scale[j] += difference * difference
    for j in range(width):
        scale[j] = 1.0 / math.sqrt(scale[j] / n + eps)
        inverse[begin + j] = scale[j]
    for i in range(n):
        x, out = row_at(address, i, stride, d, z)[begin:end], z[i, begin:end]
        for j in range(width):
            out[j] = (x[j] - mean[j]) * scale[j]


@kernel
def _correlate(za: Any, zb: Any, begin: int, end: int, diagonal: Any) -> None:
    """diagonal[j] = mean over n of za[n, j] zb[n, j], float64, for columns begin to end."""
    n = za.shape[0]
    out = diagonal[begin:end]
    out[:] = 0.0
    for i in range(n):
        x, y = za[i, begin:end], zb[i, begin:end]
        for j in range(end - begin):
            out[j] += np.float64(x[j]) * np.float64(y[j])
    for j in range(end - begin):
        out[j] /= n


@kernel
def _inner_product(x: Any, y: Any, begin: int, end: int) -> float:
    """Sum of x y over rows begin to end."""
    total = 0.0
    for i in range(begin, end):
        for start in range(0, x.shape[1], _PIECE):
            p, q = x[i, start : start + _PIECE], y[i, start : start + _PIECE]
            partial = x.dtype.type(0.0)
            for j in range(p.size):
                partial += p[j] * q[j]
            total += partial
    return total


@kernel
def _standardise_backward(
    z: Any, other: Any, begin: int, end: int, factor: float, along: Any, inverse: Any, gradient: Any
) -> None:
    """Turn `gradient` [N, d], of which factor * gradient + along * other is dL/dZ, into dL/dx: columns begin to end."""
    n = z.shape[0]
    width, scale = end - begin, z.dtype.type(factor)
    mean, mean_along = np.zeros(width), np.zeros(width)
    t = along[begin:end]
    for i in range(n):
        g, x, y = gradient[i, begin:end], z[i, begin:end], other[i, begin:end]
        for j in range(width):
            g[j] = scale * g[j] + t[j] * y[j]
        for j in range(width):
            mean[j] += g[j]
            mean_along[j] += np.float64(g[j]) * np.float64(x[j])
    for j in range(width):
        mean[j] /= n
        mean_along[j] /= n
    for i in range(n):
        g, x = gradient[i, begin:end], z[i, begin:end]
        for j in range(width):
            g[j] = (g[j] - mean[j] - x[j] * mean_along[j]) * inverse[begin + j]


def _by_columns(d: int, function: Callable[[int, int], None]) -> None:
    """Call `function(begin, end)` for each slot of the columns."""
    count = slots(d, _COLUMNS)
    parallel(lambda slot: function(d * slot // count, d * (slot + 1) // count), count)


def _sum_of_products(x: np.ndarray, y: np.ndarray) -> float:
    count = slots(x.shape[0], max(1, _GRAIN // x.shape[1]))
    partial: dict[int, float] = {}

    def work(slot: int) -> None:
        begin, end = x.shape[0] * slot // count, x.shape[0] * (slot + 1) // count
        partial[slot] = _inner_product(x, y, begin, end)

    parallel(work, count)
    return sum(partial[slot] for slot in sorted(partial))


def _standardised(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    source = RowAddresses([x])
    z, inverse = source.empty(source.n, source.d), np.empty(source.d)

    def work(begin: int, end: int) -> None:
        _standardise(int(source.addresses[0]), int(source.strides[0]), begin, end, EPS, z, inverse)

    _by_columns(source.d, work)
    return z, inverse


def _gemm(x: Tensor, y: Tensor) -> Tensor:
    """x @ y into kept memory."""
    shape = (x.shape[0], y.shape[1])
    return torch.mm(
        x, y, out=torch.from_numpy(_buffers.empty(shape, np.float64 if x.dtype == torch.float64 else np.float32))
    )


def barlow_twins(a: Tensor, b: Tensor) -> list[Tensor]:
    """Invariance and redundancy [2], and what the backward needs: Za, Zb, inverse deviations, C_ii, and the GEMMs'.

    Those are Za Za^T and Zb Zb^T where N < d; else N C with zeros on its diagonal, and nothing.
    """
    (za, inverse_a), (zb, inverse_b) = _standardised(a), _standardised(b)
    n, d = za.shape
    diagonal = np.empty(d)
    _by_columns(d, lambda begin, end: _correlate(za, zb, begin, end, diagonal))
    x, y = torch.from_numpy(za), torch.from_numpy(zb)
    if n < d:
        first, second = _gemm(x, x.T), _gemm(y, y.T)
        # Rounding may leave a sum of squares that is zero a little below it.
        squares = _sum_of_products(first.numpy(), second.numpy()) / n**2 - float(diagonal @ diagonal)
        redundancy = squares if not squares < 0.0 else 0.0
    else:
        first, second = _gemm(x.T, y), x.new_empty(0)
        first.fill_diagonal_(0.0)
        redundancy = _sum_of_products(first.numpy(), first.numpy()) / n**2
    invariance = float(np.square(diagonal - 1.0).sum())
    values = torch.tensor([invariance, redundancy], dtype=x.dtype)
    inverses = torch.from_numpy(np.stack([inverse_a, inverse_b]))
    return [values, x, y, inverses, torch.from_numpy(diagonal), first, second]


def barlow_twins_backward(
    upstream: Tensor,
    za: Tensor,
    zb: Tensor,
    inverses: Tensor,
    diagonal: Tensor,
    first: Tensor,
    second: Tensor,
    needed: Sequence[bool],
) -> list[Tensor]:
    """Gradients of `barlow_twins` for an upstream gradient [2], in the dtype of Za; empty where not needed."""
    n, d = za.shape
    grad_invariance, grad_redundancy = upstream.double().tolist()
    along = 2.0 * grad_invariance * (diagonal - 1.0) / n
    factor = 2.0 * grad_redundancy / n**2
    if n < d:
        # The inner products hold the diagonal too.
        along -= 2.0 * grad_redundancy * diagonal / n
    weights = along.to(za.dtype).numpy()
    results = []
    for side, (z, other) in enumerate(((za, zb), (zb, za))):
        if not needed[side]:
            results.append(z.new_empty(z.shape))
            continue
        gradient = _gemm(second if side == 0 else first, z) if n < d else _gemm(other, first.T if side == 0 else first)
        arrays = (z.numpy(), other.numpy(), weights, inverses[side].numpy(), gradient.numpy())

        def work(begin: int, end: int, arrays: Any = arrays) -> None:
            x, y, t, inverse, g = arrays
            _standardise_backward(x, y, begin, end, factor, t, inverse, g)

        _by_columns(d, work)
        results.append(gradient)
    return results
