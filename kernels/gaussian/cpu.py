"""Gaussian terms on the CPU: one pass over the inputs forward, one over inputs and gradients backward.

The arithmetic (one exponential a number, 0.4 ns on one core) hides behind the memory traffic, which is the floor:

    KL, two inputs of B bytes each      forward reads 2 B; backward reads 2 B and writes 2 B
    minimality, M inputs                forward reads M B; backward reads M B and writes M B

against 2 B read and 2 B written by a copy. Page faults of fresh outputs cost more than both, so outputs come from
numpy, which asks for huge pages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mibfast._threads import parallel, slots
from mibfast.kernels.compilation import inline, kernel
from mibfast.kernels.row_addresses import RowAddresses, row_at
from mibfast.kernels.vector_math import exp, exp_of_negative, half_expm1, half_expm1_minus_x, half_square

# Numbers a slot, at least: 20 microseconds of work.
_GRAIN = 32768
# Sums within a row are float32 in pieces of this length, float64 over them.
_PIECE = 2048


# Terms are halved, and a distance is multiplied with the square root of a precision, before anything is summed or
# squared: a divergence overflows where it is beyond the dtype, not where twice it or a part of it is.


@inline
def _standard_terms(mean: Any, logvar: Any) -> float:
    total = 0.0
    for start in range(0, mean.size, _PIECE):
        mu, lv = mean[start : start + _PIECE], logvar[start : start + _PIECE]
        partial = mean.dtype.type(0.0)
        for j in range(mu.size):
            partial += half_square(mu[j]) + half_expm1_minus_x(lv[j])
        total += partial
    return total


@inline
def _prior_terms(mean: Any, logvar: Any, prior_mean: Any, prior_logvar: Any) -> float:
    total, half = 0.0, mean.dtype.type(0.5)
    for start in range(0, mean.size, _PIECE):
        mu, lv = mean[start : start + _PIECE], logvar[start : start + _PIECE]
        prior_mu, prior_lv = prior_mean[start : start + _PIECE], prior_logvar[start : start + _PIECE]
        partial = mean.dtype.type(0.0)
        for j in range(mu.size):
            distance = (mu[j] - prior_mu[j]) * exp(-half * prior_lv[j])
            partial += half_square(distance) + half_expm1_minus_x(lv[j] - prior_lv[j])
        total += partial
    return total


@kernel
def _kl(addresses: Any, strides: Any, begin: int, end: int, d: int, out: Any) -> None:
    for i in range(begin, end):
        mean = row_at(addresses[0], i, strides[0], d, out)
        logvar = row_at(addresses[1], i, strides[1], d, out)
        if addresses.size == 2:
            out[i] = _standard_terms(mean, logvar)
        else:
            prior_mean = row_at(addresses[2], i, strides[2], d, out)
            prior_logvar = row_at(addresses[3], i, strides[3], d, out)
            out[i] = _prior_terms(mean, logvar, prior_mean, prior_logvar)


@kernel
def _kl_backward(addresses: Any, strides: Any, begin: int, end: int, d: int, upstream: Any, gradients: Any) -> None:
    """Writes the gradients [2 or 4, N, d], given by their addresses."""
    half = upstream.dtype.type(0.5)
    for i in range(begin, end):
        g = upstream[i]
        mean = row_at(addresses[0], i, strides[0], d, upstream)
        logvar = row_at(addresses[1], i, strides[1], d, upstream)
        d_mean = row_at(gradients[0], i, d, d, upstream)
        d_logvar = row_at(gradients[1], i, d, d, upstream)
        if addresses.size == 2:
            for j in range(d):
                d_mean[j] = g * mean[j]
            for j in range(d):
                d_logvar[j] = g * half_expm1(logvar[j])
        else:
            prior_mean = row_at(addresses[2], i, strides[2], d, upstream)
            prior_logvar = row_at(addresses[3], i, strides[3], d, upstream)
            d_prior_mean = row_at(gradients[2], i, d, d, upstream)
            d_prior_logvar = row_at(gradients[3], i, d, d, upstream)
            for j in range(d):
                d_logvar[j] = g * half_expm1(logvar[j] - prior_logvar[j])
            for j in range(d):
                root = exp(-half * prior_logvar[j])
                distance = (mean[j] - prior_mean[j]) * root
                scaled = g * distance * root
                d_mean[j] = scaled
                d_prior_mean[j] = -scaled
                d_prior_logvar[j] = -d_logvar[j] - g * half_square(distance)


@kernel
def _product(
    addresses: Any, strides: Any, begin: int, end: int, d: int, product_mean: Any, product_logvar: Any
) -> None:
    """Means at addresses[:M], log-variances at addresses[M:]; precisions relative to the largest of each component."""
    m = addresses.size // 2
    for i in range(begin, end):
        mean, logvar = product_mean[i], product_logvar[i]
        first = row_at(addresses[m], i, strides[m], d, product_mean)
        for j in range(d):
            logvar[j] = first[j]
        for k in range(1, m):
            other = row_at(addresses[m + k], i, strides[m + k], d, product_mean)
            for j in range(d):
                logvar[j] = logvar[j] if logvar[j] <= other[j] else other[j]
        for j in range(d):
            # log-sum-exp of the negative log-variances; the maximum is minus the smallest.
            total, weighted = 0.0, 0.0
            for k in range(m):
                other = row_at(addresses[m + k], i, strides[m + k], d, product_mean)
                weight = math.exp(logvar[j] - other[j])
                # Of an infinite precision the difference is NaN: the sum is infinite, and the mean's weight unknown.
                total += 1.0 if other[j] == logvar[j] else weight
                weighted += weight * row_at(addresses[k], i, strides[k], d, product_mean)[j]
            mean[j] = weighted / total
            logvar[j] = logvar[j] - math.log(total)


@kernel
def _product_backward(
    addresses: Any,
    strides: Any,
    begin: int,
    end: int,
    product_mean: Any,
    product_logvar: Any,
    mean_upstream: Any,
    logvar_upstream: Any,
    gradients: Any,
) -> None:
    """With w_m = precision_m / precision: dmu_m = w_m g, dlogvar_m = w_m (h - g (mu_m - mu))."""
    m, d = addresses.size // 2, product_mean.shape[1]
    for i in range(begin, end):
        mean, logvar, g, h = product_mean[i], product_logvar[i], mean_upstream[i], logvar_upstream[i]
        for k in range(m):
            mu = row_at(addresses[k], i, strides[k], d, product_mean)
            lv = row_at(addresses[m + k], i, strides[m + k], d, product_mean)
            d_mu = row_at(gradients[k], i, d, d, product_mean)
            d_lv = row_at(gradients[m + k], i, d, d, product_mean)
            for j in range(d):
                weight = exp_of_negative(logvar[j] - lv[j])
                d_mu[j] = weight * g[j]
                d_lv[j] = weight * (h[j] - g[j] * (mu[j] - mean[j]))


@kernel
def _minimality(addresses: Any, strides: Any, begin: int, end: int, d: int, mean: Any) -> float:
    """Sum over samples and modalities of |z_m - mean of all z|^2. `mean` [d] is scratch."""
    m = addresses.size
    share = mean.dtype.type(1.0 / m)
    total = 0.0
    for i in range(begin, end):
        _mean_of(addresses, strides, i, share, mean)
        for k in range(m):
            z = row_at(addresses[k], i, strides[k], d, mean)
            for start in range(0, d, _PIECE):
                piece, centre = z[start : start + _PIECE], mean[start : start + _PIECE]
                partial = mean.dtype.type(0.0)
                for j in range(piece.size):
                    difference = piece[j] - centre[j]
                    partial += difference * difference
                total += partial
    return total


@inline
def _mean_of(addresses: Any, strides: Any, i: Any, share: Any, mean: Any) -> None:
    """Mean of sample i over modalities, four to a write of `mean`."""
    d, m, zero = mean.size, addresses.size, mean.dtype.type(0.0)
    for j in range(d):
        mean[j] = zero
    for k in range(0, m, 4):
        # Where fewer than four are left, the first is read again and counts nothing.
        k1, k2, k3 = (k + 1 if k + 1 < m else k), (k + 2 if k + 2 < m else k), (k + 3 if k + 3 < m else k)
        w1, w2, w3 = (share if k1 > k else zero), (share if k2 > k else zero), (share if k3 > k else zero)
        z0, z1 = row_at(addresses[k], i, strides[k], d, mean), row_at(addresses[k1], i, strides[k1], d, mean)
        z2, z3 = row_at(addresses[k2], i, strides[k2], d, mean), row_at(addresses[k3], i, strides[k3], d, mean)
        for j in range(d):
            mean[j] += share * z0[j] + w1 * z1[j] + w2 * z2[j] + w3 * z3[j]


@kernel
def _minimality_backward(
    addresses: Any, strides: Any, begin: int, end: int, d: int, mean: Any, factor: float, gradients: Any
) -> None:
    """dz_m = factor (z_m - mean of all z)."""
    share, scale = mean.dtype.type(1.0 / addresses.size), mean.dtype.type(factor)
    for i in range(begin, end):
        _mean_of(addresses, strides, i, share, mean)
        for k in range(addresses.size):
            z, out = row_at(addresses[k], i, strides[k], d, mean), row_at(gradients[k], i, d, d, mean)
            for j in range(d):
                out[j] = scale * (z[j] - mean[j])


def _by_slot(sources: RowAddresses, function: Any) -> None:
    """Call `function(slot, begin, end)` for each slot of the samples."""
    count = slots(sources.n, max(1, _GRAIN // (sources.m * sources.d)))
    parallel(lambda slot: function(slot, sources.n * slot // count, sources.n * (slot + 1) // count), count)


def _matrices(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [x.reshape(-1, x.shape[-1]) for x in tensors]


def _fresh(sources: RowAddresses, count: int) -> tuple[list[np.ndarray], np.ndarray]:
    """New matrices [N, d] and their addresses."""
    arrays = [sources.empty(sources.n, sources.d) for _ in range(count)]
    return arrays, np.array([x.ctypes.data for x in arrays], np.int64)


def _tensors(arrays: Sequence[np.ndarray], like: Sequence[Tensor]) -> list[Tensor]:
    return [torch.from_numpy(a).to(x.dtype).view(x.shape) for a, x in zip(arrays, like, strict=True)]


def kl(tensors: Sequence[Tensor]) -> Tensor:
    """KL [...] of mean and logvar [..., d], or of mean, logvar, prior mean and prior logvar; float32 or float64."""
    sources = RowAddresses(_matrices(tensors))
    out = sources.empty(sources.n)

    def work(slot: int, begin: int, end: int) -> None:
        _kl(sources.addresses, sources.strides, begin, end, sources.d, out)

    _by_slot(sources, work)
    return torch.from_numpy(out).view(tensors[0].shape[:-1])


def kl_backward(upstream: Tensor, tensors: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor]:
    """Gradients of `kl` for an upstream gradient [...]."""
    sources = RowAddresses(_matrices(tensors))
    g = upstream.to(sources.torch_dtype).reshape(-1).contiguous().numpy()
    arrays, addresses = _fresh(sources, len(tensors))

    def work(slot: int, begin: int, end: int) -> None:
        _kl_backward(sources.addresses, sources.strides, begin, end, sources.d, g, addresses)

    _by_slot(sources, work)
    return _tensors(arrays, tensors)


def product(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and log-variance [N, d] of the product of M experts: M means, then M log-variances."""
    sources = RowAddresses(tensors)
    mean, logvar = sources.empty(sources.n, sources.d), sources.empty(sources.n, sources.d)

    def work(slot: int, begin: int, end: int) -> None:
        _product(sources.addresses, sources.strides, begin, end, sources.d, mean, logvar)

    _by_slot(sources, work)
    return torch.from_numpy(mean).to(tensors[0].dtype), torch.from_numpy(logvar).to(tensors[0].dtype)


def product_backward(
    mean_upstream: Tensor, logvar_upstream: Tensor, tensors: Sequence[Tensor], needed: Sequence[bool]
) -> list[Tensor]:
    """Gradients of `product` for upstream gradients of its mean and its log-variance."""
    sources = RowAddresses(tensors)
    g, h = (x.to(sources.torch_dtype).contiguous().numpy() for x in (mean_upstream, logvar_upstream))
    mean, logvar = sources.empty(sources.n, sources.d), sources.empty(sources.n, sources.d)
    arrays, addresses = _fresh(sources, len(tensors))

    def work(slot: int, begin: int, end: int) -> None:
        _product(sources.addresses, sources.strides, begin, end, sources.d, mean, logvar)
        _product_backward(sources.addresses, sources.strides, begin, end, mean, logvar, g, h, addresses)

    _by_slot(sources, work)
    return _tensors(arrays, tensors)


def minimality(z: Sequence[Tensor]) -> Tensor:
    """M / (M - 1)^2 times the mean over samples of sum_m |z_m - mean of all z|^2: OVA-IB's minimality."""
    sources = RowAddresses(z)
    partial: dict[int, float] = {}

    def work(slot: int, begin: int, end: int) -> None:
        scratch = sources.empty(sources.d)
        partial[slot] = _minimality(sources.addresses, sources.strides, begin, end, sources.d, scratch)

    _by_slot(sources, work)
    m = len(z)
    total = sum(partial[slot] for slot in sorted(partial))
    return torch.tensor(float(total * m / ((m - 1) ** 2 * sources.n)), dtype=sources.torch_dtype)


def minimality_backward(upstream: Tensor, z: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor]:
    """Gradients of `minimality`: 2 M / ((M - 1)^2 N) (z_m - mean of all z), times the upstream gradient."""
    sources = RowAddresses(z)
    m = len(z)
    factor = float(upstream) * 2.0 * m / ((m - 1) ** 2 * sources.n)
    arrays, addresses = _fresh(sources, m)

    def work(slot: int, begin: int, end: int) -> None:
        scratch = sources.empty(sources.d)
        _minimality_backward(sources.addresses, sources.strides, begin, end, sources.d, scratch, factor, addresses)

    _by_slot(sources, work)
    return _tensors(arrays, z)
