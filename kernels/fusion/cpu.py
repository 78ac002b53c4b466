"""The operations of a fusion of Gaussian latents between its matrix products, on the CPU: each input is read once.

For inputs of B bytes each (of all modalities together), what must move is the floor:

    reparameterised Gaussian   forward reads 3 B, writes B; backward reads 4 B, writes 2 B
    attention of M tokens      forward reads 3 B, writes B; backward reads 4 B, writes 3 B

Both samples and divergences come from one exponential a number, of half the log-variance: with e = exp(l / 2) - 1 the
variance less one is e (e + 2), and exp(l) - 1 - l = e^2 + 2 (e - l / 2), whose second term has no cancellation of its
own. Both are formed halved: a divergence overflows where it is beyond the dtype, not where twice it is. Attention costs
4 M^2 k FLOPs a sample forward and 10 M^2 k backward, on 4 M and 7 M rows of k that lie in the first cache; its M x M
weights are formed again backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numba import carray
from torch import Tensor

from mibfast._threads import slots
from mibfast.kernels.callback import array_at, callback, next_slot, run
from mibfast.kernels.compilation import inline
from mibfast.kernels.row_addresses import RowAddresses, row_at
from mibfast.kernels.vector_math import exp_and_remainders, exp_of_negative, half_square

# Numbers a slot, at least: 20 microseconds of work.
_GRAIN = 32768
# Sums within a row are float32 in pieces of this length, float64 over them.
_PIECE = 2048


@inline
def _sample(mean: Any, logvar: Any, noise: Any, low: Any, high: Any, out: Any) -> float:
    """Write a sample [d], return its divergence, whose terms are halved before they could overflow."""
    total, half = 0.0, mean.dtype.type(0.5)
    for start in range(0, mean.size, _PIECE):
        mu, lv, eps = mean[start : start + _PIECE], logvar[start : start + _PIECE], noise[start : start + _PIECE]
        sample = out[start : start + _PIECE]
        partial = mean.dtype.type(0.0)
        for j in range(mu.size):
            # Comparisons, not min and max: a NaN fails them and stays.
            x = low if lv[j] < low else lv[j]
            x = half * (high if x > high else x)
            deviation, e, rest = exp_and_remainders(x)
            sample[j] = mu[j] + deviation * eps[j]
            partial += half_square(mu[j]) + (half_square(e) + rest)
        total += partial
    return total


@inline
def _samples(
    addresses: Any, strides: Any, begin: int, end: int, d: int, low: Any, high: Any, samples: Any, divergences: Any
) -> None:
    """M means, M log-variances and M noises to samples [N, M, d] and divergences [M, N]."""
    m = addresses.size // 3
    for i in range(begin, end):
        for k in range(m):
            mean = row_at(addresses[k], i, strides[k], d, samples)
            logvar = row_at(addresses[m + k], i, strides[m + k], d, samples)
            noise = row_at(addresses[2 * m + k], i, strides[2 * m + k], d, samples)
            divergences[k, i] = _sample(mean, logvar, noise, low, high, samples[i, k])


@inline
def _samples_backward(
    addresses: Any,
    strides: Any,
    begin: int,
    end: int,
    d: int,
    low: Any,
    high: Any,
    sample_upstream: Any,
    sample_stride: int,
    divergence_upstream: Any,
    gradients: Any,
) -> None:
    """Writes the gradients of means and log-variances, and where there is room for 3 M those of noises.

    With g upstream of the sample and h of the divergence: dmean = g + h mean, dlogvar = g noise std / 2 +
    h (e^logvar - 1) / 2, dnoise = g std. Beyond a bound dlogvar is kept only where descent along it leads back.
    """
    m = addresses.size // 3
    number = divergence_upstream.dtype.type
    half, zero = number(0.5), number(0.0)
    for i in range(begin, end):
        for k in range(m):
            h = divergence_upstream[k, i]
            g = row_at(sample_upstream, i * m + k, sample_stride, d, divergence_upstream)
            mean = row_at(addresses[k], i, strides[k], d, divergence_upstream)
            logvar = row_at(addresses[m + k], i, strides[m + k], d, divergence_upstream)
            noise = row_at(addresses[2 * m + k], i, strides[2 * m + k], d, divergence_upstream)
            d_mean = row_at(gradients[k], i, d, d, divergence_upstream)
            d_logvar = row_at(gradients[m + k], i, d, d, divergence_upstream)
            for j in range(d):
                d_mean[j] = g[j] + h * mean[j]
            for j in range(d):
                below, above = logvar[j] < low, logvar[j] > high
                x = low if below else logvar[j]
                x = half * (high if above else x)
                deviation, e, _ = exp_and_remainders(x)
                # A divergence that nothing is made of, h = 0, adds nothing where it is infinite.
                divergence_part = zero if h == zero else h * (half_square(e) + e)
                gradient = half * g[j] * noise[j] * deviation + divergence_part
                gradient = zero if below and gradient > zero else gradient
                d_logvar[j] = zero if above and gradient < zero else gradient
            if gradients.size == 3 * m:
                d_noise = row_at(gradients[2 * m + k], i, d, d, divergence_upstream)
                for j in range(d):
                    x = low if logvar[j] < low else logvar[j]
                    deviation, _, _ = exp_and_remainders(half * (high if x > high else x))
                    d_noise[j] = g[j] * deviation


@callback
def _samples_on_threads(record: Any) -> None:
    given = carray(record, (1,))[0]
    n, m, d = given.n, given.m, given.d
    addresses, strides = array_at(given.addresses, (3 * m,), n), array_at(given.strides, (3 * m,), n)
    samples, divergences = array_at(given.samples, (n, m, d), given.low), array_at(given.divergences, (m, n), given.low)
    slot = next_slot(record)
    while slot < given.slots:
        begin, end = n * slot // given.slots, n * (slot + 1) // given.slots
        _samples(addresses, strides, begin, end, d, given.low, given.high, samples, divergences)
        slot = next_slot(record)


@callback
def _samples_backward_on_threads(record: Any) -> None:
    given = carray(record, (1,))[0]
    n, m, d, low, high = given.n, given.m, given.d, given.low, given.high
    addresses, strides = array_at(given.addresses, (3 * m,), n), array_at(given.strides, (3 * m,), n)
    sample_upstream, sample_stride = given.sample_upstream, given.sample_stride
    divergence_upstream = array_at(given.divergence_upstream, (m, n), low)
    gradients = array_at(given.gradients, (given.gradient_count,), n)
    slot = next_slot(record)
    while slot < given.slots:
        begin, end = n * slot // given.slots, n * (slot + 1) // given.slots
        _samples_backward(
            addresses, strides, begin, end, d, low, high, sample_upstream, sample_stride, divergence_upstream, gradients
        )
        slot = next_slot(record)


@inline
def _products(a: Any, address: int, first: int, stride: int, out: Any) -> None:
    """out [M] = inner products of a [k] with M rows, two rows at a time."""
    m, d = out.size, a.size
    if m % 2:
        x, total = row_at(address, first, stride, d, out), out.dtype.type(0.0)
        for j in range(d):
            total += a[j] * x[j]
        out[0] = total
    for b in range(m % 2, m, 2):
        x, total = row_at(address, first + b, stride, d, out), out.dtype.type(0.0)
        x1, total1 = row_at(address, first + b + 1, stride, d, out), out.dtype.type(0.0)
        for j in range(d):
            total += a[j] * x[j]
            total1 += a[j] * x1[j]
        out[b], out[b + 1] = total, total1


@inline
def _weights(query: Any, address: int, first: int, stride: int, scale: Any, out: Any) -> None:
    """Attention [M] of one query on the keys whose first row is `first`."""
    _products(query, address, first, stride, out)
    largest = out[0]
    for b in range(1, out.size):
        # A NaN fails the comparison and comes back by its exponential.
        largest = out[b] if out[b] > largest else largest
    total = out.dtype.type(0.0)
    for b in range(out.size):
        out[b] = exp_of_negative((out[b] - largest) * scale)
        total += out[b]
    for b in range(out.size):
        out[b] /= total


@inline
def _weighted_sum(weights: Any, address: int, first: int, stride: int, out: Any) -> None:
    """out [k] = sum over rows b of weights[b] x_b, two rows at a time."""
    m, d = weights.size, out.size
    if m % 2:
        w, x = weights[0], row_at(address, first, stride, d, out)
        for j in range(d):
            out[j] = w * x[j]
    else:
        w, x = weights[0], row_at(address, first, stride, d, out)
        w1, x1 = weights[1], row_at(address, first + 1, stride, d, out)
        for j in range(d):
            out[j] = w * x[j] + w1 * x1[j]
    for b in range(2 - m % 2, m, 2):
        w, x = weights[b], row_at(address, first + b, stride, d, out)
        w1, x1 = weights[b + 1], row_at(address, first + b + 1, stride, d, out)
        for j in range(d):
            out[j] += w * x[j] + w1 * x1[j]


@inline
def _attend(addresses: Any, strides: Any, begin: int, end: int, scale: Any, weights: Any, out: Any) -> None:
    """Rows n M + a are the tokens of sample n: out [N M, k]. `weights` [M] is scratch."""
    m, d = weights.size, out.shape[1]
    for first in range(begin * m, end * m, m):
        for a in range(m):
            query = row_at(addresses[0], first + a, strides[0], d, out)
            _weights(query, addresses[1], first, strides[1], scale, weights)
            _weighted_sum(weights, addresses[2], first, strides[2], out[first + a])


@inline
def _attend_backward(
    addresses: Any, strides: Any, begin: int, end: int, d: int, scale: Any, weights: Any, slopes: Any, gradients: Any
) -> None:
    """Writes the gradients of queries, keys and values [N M, d]; the fourth address is that of the upstream gradient.

    `weights` and `slopes` [M, M] are scratch: what a query gives to each key, transposed, and the loss's slope along
    their inner product.
    """
    m = weights.shape[0]
    for first in range(begin * m, end * m, m):
        for a in range(m):
            query = row_at(addresses[0], first + a, strides[0], d, weights)
            g = row_at(addresses[3], first + a, strides[3], d, weights)
            row = slopes[a]
            _weights(query, addresses[1], first, strides[1], scale, row)
            for b in range(m):
                weights[b, a] = row[b]
            _products(g, addresses[2], first, strides[2], row)
            mean = weights.dtype.type(0.0)
            for b in range(m):
                mean += weights[b, a] * row[b]
            for b in range(m):
                row[b] = weights[b, a] * (row[b] - mean) * scale
            d_query = row_at(gradients[0], first + a, d, d, weights)
            _weighted_sum(row, addresses[1], first, strides[1], d_query)
        for b in range(m):
            _weighted_sum(slopes[:, b], addresses[0], first, strides[0], row_at(gradients[1], first + b, d, d, weights))
            _weighted_sum(weights[b], addresses[3], first, strides[3], row_at(gradients[2], first + b, d, d, weights))


@callback
def _attend_on_threads(record: Any) -> None:
    given = carray(record, (1,))[0]
    n, m, d = given.n, given.m, given.d
    addresses, strides = array_at(given.addresses, (3,), n), array_at(given.strides, (3,), n)
    out, scratch = array_at(given.out, (n * m, d), given.scale), array_at(given.scratch, (given.slots, m), given.scale)
    slot = next_slot(record)
    while slot < given.slots:
        begin, end = n * slot // given.slots, n * (slot + 1) // given.slots
        _attend(addresses, strides, begin, end, given.scale, scratch[slot], out)
        slot = next_slot(record)


@callback
def _attend_backward_on_threads(record: Any) -> None:
    given = carray(record, (1,))[0]
    n, m, d, scale = given.n, given.m, given.d, given.scale
    addresses, strides = array_at(given.addresses, (4,), n), array_at(given.strides, (4,), n)
    gradients, scratch = array_at(given.gradients, (3,), n), array_at(given.scratch, (given.slots, 2, m, m), scale)
    slot = next_slot(record)
    while slot < given.slots:
        begin, end = n * slot // given.slots, n * (slot + 1) // given.slots
        _attend_backward(addresses, strides, begin, end, d, scale, scratch[slot, 0], scratch[slot, 1], gradients)
        slot = next_slot(record)


def _slots(n: int, numbers: int) -> int:
    """The number of slots that n samples of so many numbers are cut into."""
    return slots(n, max(1, _GRAIN // numbers))


def _arguments(sources: RowAddresses, n: int, m: int) -> dict[str, Any]:
    """Fields of every record: N samples of M matrices or tokens [d], and where their rows are."""
    return {"n": n, "m": m, "d": sources.d, "addresses": sources.addresses, "strides": sources.strides}


def _matrices(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [x if x.ndim == 2 else x.reshape(-1, x.shape[-1]) for x in tensors]


def _fresh(sources: RowAddresses, count: int) -> tuple[list[np.ndarray], np.ndarray]:
    """New matrices [N, d] and their addresses."""
    arrays = [sources.empty(sources.n, sources.d) for _ in range(count)]
    return arrays, np.array([x.ctypes.data for x in arrays], np.int64)


def _tensors(arrays: Sequence[np.ndarray], like: Sequence[Tensor]) -> list[Tensor]:
    return [torch.from_numpy(a).to(x.dtype).view(x.shape) for a, x in zip(arrays, like, strict=False)]


def samples(tensors: Sequence[Tensor], low: float, high: float) -> tuple[Tensor, Tensor]:
    """Samples and divergences of M means, M log-variances and M noises, log-variances clamped to [low, high].

    Of three tensors [..., d] a sample [..., d] and a divergence [...]; of 3 M tensors [N, d] samples [N, M, d] and
    divergences [M, N].
    """
    sources = RowAddresses(_matrices(tensors))
    m = sources.m // 3
    out, divergences = sources.empty(sources.n, m, sources.d), sources.empty(m, sources.n)
    run(
        _samples_on_threads,
        _slots(sources.n, m * sources.d),
        **_arguments(sources, sources.n, m),
        low=sources.dtype(low),
        high=sources.dtype(high),
        samples=out,
        divergences=divergences,
    )
    sample, divergence = torch.from_numpy(out).to(tensors[0].dtype), torch.from_numpy(divergences)
    return (sample.view(tensors[0].shape), divergence.view(tensors[0].shape[:-1])) if m == 1 else (sample, divergence)


def samples_backward(
    sample_upstream: Tensor,
    divergence_upstream: Tensor,
    tensors: Sequence[Tensor],
    needed: Sequence[bool],
    low: float,
    high: float,
) -> list[Tensor | None]:
    """Gradients of `samples` in the order of its tensors, those of the noises where any is needed."""
    wants_noise = any(needed[len(tensors) // 3 * 2 :])
    sources, upstream = RowAddresses(_matrices(tensors)), RowAddresses(_matrices([sample_upstream]))
    m = sources.m // 3
    h = divergence_upstream.to(sources.torch_dtype).reshape(m, -1).contiguous().numpy()
    arrays, addresses = _fresh(sources, (3 if wants_noise else 2) * m)
    run(
        _samples_backward_on_threads,
        _slots(sources.n, m * sources.d),
        **_arguments(sources, sources.n, m),
        low=sources.dtype(low),
        high=sources.dtype(high),
        sample_upstream=int(upstream.addresses[0]),
        sample_stride=int(upstream.strides[0]),
        divergence_upstream=h,
        gradients=addresses,
        gradient_count=len(arrays),
    )
    return [*_tensors(arrays, tensors), *([] if wants_noise else [None] * m)]


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention [N, M, k] among the M tokens of each sample."""
    n, m, k = query.shape
    sources = RowAddresses(_matrices([query, key, value]))
    out, count = sources.empty(n * m, k), _slots(n, m * k)
    scale, scratch = sources.dtype(k**-0.5), sources.empty(count, m)
    run(_attend_on_threads, count, **_arguments(sources, n, m), scale=scale, out=out, scratch=scratch)
    return torch.from_numpy(out).to(query.dtype).view(query.shape)


def attend_backward(
    upstream: Tensor, query: Tensor, key: Tensor, value: Tensor, needed: Sequence[bool]
) -> list[Tensor]:
    """Gradients of `attend`."""
    n, m, k = query.shape
    sources = RowAddresses(_matrices([query, key, value, upstream]))
    arrays, addresses = _fresh(sources, 3)
    count = _slots(n, m * k)
    scale, scratch = sources.dtype(k**-0.5), sources.empty(count, 2, m, m)
    run(
        _attend_backward_on_threads,
        count,
        **_arguments(sources, n, m),
        scale=scale,
        gradients=addresses,
        scratch=scratch,
    )
    return _tensors(arrays, [query, key, value])
