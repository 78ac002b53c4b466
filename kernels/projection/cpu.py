"""Ridge projections on the CPU: one sample at a time, in float64, from one read of its embeddings.

All M leave-one-out projections of a sample share H = (Z^T Z + lambda I)^-1 over its M embeddings: the coefficients of
z_m on the others are c = -H[:, m] / H[m, m]. For an upstream gradient g of zbar_m, with r = Z^T g,
e = H r - H[:, m] (H r)_m / H[m, m] is (G_m + lambda I)^-1 A_m^T g, and

    dz_m += A_m e,      dA_m += (g - A_m e) c^T + (z_m - A_m c) e^T,

which is a combination of the z's and the g with M x M coefficients.

Cost for N samples: N d M (M + 1) FLOPs for the Gram matrices and 2 N d M^2 for the projections; M N d numbers read and
as many written. At M = 4, d = 256 that is 0.2 microseconds of arithmetic a sample and core beside 8 KiB moved, so
memory is the floor: copying inputs and outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mibfast import _buffers
from mibfast._threads import parallel, slots
from mibfast.kernels.compilation import inline, kernel
from mibfast.kernels.projection.reference import RELATIVE_FLOOR, SMALLEST_RIDGE
from mibfast.kernels.row_addresses import RowAddresses, row_at

# Samples a slot, at least: 20 microseconds of work.
_GRAIN = 64


@inline
def _dot(x: Any, y: Any) -> float:
    total = 0.0
    for j in range(x.size):
        total += x[j] * y[j]
    return total


@inline
def _combine(coefficients: Any, vectors: Any, added: Any, out: Any) -> None:
    """out = sum of coefficients[k] vectors[k], added to what stands there if asked, four to a write of `out`."""
    if not added:
        for j in range(out.size):
            out[j] = 0.0
    last = coefficients.size - 1
    for k in range(0, coefficients.size, 4):
        # Where fewer than four are left, the last one is read again and counts nothing.
        k1 = k + 1 if k + 1 <= last else last
        k2 = k + 2 if k + 2 <= last else last
        k3 = k + 3 if k + 3 <= last else last
        c0, v0, v1, v2, v3 = coefficients[k], vectors[k], vectors[k1], vectors[k2], vectors[k3]
        c1 = coefficients[k1] if k1 == k + 1 else 0.0
        c2 = coefficients[k2] if k2 == k + 2 else 0.0
        c3 = coefficients[k3] if k3 == k + 3 else 0.0
        for j in range(out.size):
            out[j] += c0 * v0[j] + c1 * v1[j] + c2 * v2[j] + c3 * v3[j]


@inline
def _cholesky_inverse(gram: Any, ridge: Any, inverse: Any, in_effect: Any) -> None:
    """inverse = L^-1 (lower triangle) where L L^T = gram + the ridge in effect, which goes into `in_effect` [M].

    The ridge is raised to the rounding of each row of the Gram matrix, whose lower triangle is read and overwritten.
    """
    m = gram.shape[0]
    for j in range(m):
        # Comparisons that a NaN fails, so that it stays.
        raised = gram[j, j] * RELATIVE_FLOOR
        raised = ridge if raised < ridge else raised
        raised = SMALLEST_RIDGE if raised < SMALLEST_RIDGE else raised
        in_effect[j] = raised
        pivot = gram[j, j] + raised
        for k in range(j):
            pivot -= gram[j, k] * gram[j, k]
        # Rounding alone can take a pivot below the ridge.
        pivot = raised if pivot < raised else pivot
        gram[j, j] = math.sqrt(pivot)
        for i in range(j + 1, m):
            x = gram[i, j]
            for k in range(j):
                x -= gram[i, k] * gram[j, k]
            gram[i, j] = x / gram[j, j]
    for j in range(m):
        inverse[j, j] = 1.0 / gram[j, j]
        for i in range(j + 1, m):
            x = 0.0
            for k in range(j, i):
                x -= gram[i, k] * inverse[k, j]
            inverse[i, j] = x / gram[i, i]
            inverse[j, i] = 0.0


@inline
def _square(lower: Any, out: Any) -> None:
    """out = lower^T lower, symmetric, for a lower triangle."""
    m = lower.shape[0]
    for i in range(m):
        for j in range(i + 1):
            x = 0.0
            for k in range(i, m):
                x += lower[k, i] * lower[k, j]
            out[i, j] = x
            out[j, i] = x


@inline
def _load(addresses: Any, strides: Any, i: Any, like: Any, z: Any) -> None:
    """Sample i of every matrix as float64 rows of `z`."""
    for k in range(z.shape[0]):
        source, row = row_at(addresses[k], i, strides[k], z.shape[1], like), z[k]
        for j in range(row.size):
            row[j] = source[j]


@inline
def _gram(z: Any, gram: Any) -> None:
    """The lower triangle of z z^T."""
    for k in range(z.shape[0]):
        for other in range(k + 1):
            gram[k, other] = _dot(z[k], z[other])


@kernel
def _project(
    addresses: Any,
    strides: Any,
    begin: int,
    end: int,
    ridge: float,
    has_inverse: bool,
    inverse: Any,
    first: int,
    last: int,
    unit: bool,
    out: Any,
    scratch: Any,
) -> None:
    """Projections of modalities first to last, samples begin to end, into `out` [last - first, N, d]; unit if asked.

    `scratch` is float64 [M, d], [d] and [2 M + 1, M].
    """
    z, projection, small = scratch
    m, d = z.shape
    gram, factor, coefficients = small[:m], small[m : 2 * m], small[2 * m]
    for i in range(begin, end):
        _load(addresses, strides, i, out, z)
        h = inverse[i]
        if not has_inverse:
            _gram(z, gram)
            _cholesky_inverse(gram, ridge, factor, coefficients)
            _square(factor, h)
        for target in range(first, last):
            for k in range(m):
                coefficients[k] = 0.0 if k == target else -h[k, target] / h[target, target]
            _combine(coefficients, z, False, projection)
            scale, row = 1.0, out[target - first, i]
            if unit:
                squared = _dot(projection, projection)
                scale = 0.0 if squared == 0.0 else 1.0 / math.sqrt(squared)
            for j in range(d):
                row[j] = projection[j] * scale


@kernel
def _project_backward(
    addresses: Any,
    strides: Any,
    begin: int,
    end: int,
    inverse: Any,
    first: int,
    last: int,
    unit: bool,
    added: bool,
    upstream: Any,
    gradient_addresses: Any,
    scratch: Any,
) -> None:
    """The gradient of what `_project` gives, for upstream gradients [last - first, N, d]; added to dz if asked.

    `scratch` is float64 [M, d], [last - first, d], [d] and [2 M + 3, M].
    """
    z, g, vector, small = scratch
    m, d = z.shape
    p, q, c, e, x = small[:m], small[m : 2 * m], small[2 * m], small[2 * m + 1], small[2 * m + 2]
    for i in range(begin, end):
        _load(addresses, strides, i, upstream, z)
        h = inverse[i]
        for k in range(m):
            for other in range(m):
                p[k, other] = 0.0
                q[k, other] = 0.0
        for target in range(first, last):
            source = upstream[target - first, i]
            row = g[target - first]
            for j in range(d):
                row[j] = source[j]
            for k in range(m):
                c[k] = 0.0 if k == target else -h[k, target] / h[target, target]
            if unit:
                # zbar / |zbar|: the gradient across zbar, over its norm.
                _combine(c, z, False, vector)
                squared = _dot(vector, vector)
                across = 0.0 if squared == 0.0 else 1.0 / math.sqrt(squared)
                along = across * across * _dot(vector, row)
                for j in range(d):
                    row[j] = (row[j] - along * vector[j]) * across
            for k in range(m):
                e[k] = _dot(z[k], row)
            for k in range(m):
                x[k] = _dot(h[k], e)
            for k in range(m):
                e[k] = 0.0 if k == target else x[k] - h[k, target] * x[target] / h[target, target]
            for k in range(m):
                q[k, target] = c[k]
                p[target, k] += e[k]
                p[k, target] += e[k]
                for other in range(m):
                    p[k, other] -= c[k] * e[other] + e[k] * c[other]
        for k in range(m):
            result = row_at(gradient_addresses[k], i, d, d, upstream)
            _combine(p[k], z, False, vector)
            if added:
                for j in range(d):
                    vector[j] += result[j]
            _combine(q[k, first:last], g, True, vector)
            for j in range(d):
                result[j] = vector[j]


@inline
def _whitening(z: Any, ridge: Any, small: Any) -> Any:
    """W = L^-1, L L^T = A A^T + ridge I for the rows A = z[1:], in a part of `small` [3 M, M - 1]."""
    k = z.shape[0] - 1
    gram, w = small[:k], small[k : 2 * k]
    _gram(z[1:], gram)
    _cholesky_inverse(gram, ridge, w, small[2 * k])
    return w


@inline
def _solve(w: Any, products: Any, whitened: Any, coefficients: Any) -> None:
    """coefficients = W^T (W products): W^T W itself, rounded, would move duplicates by a part in 10^4."""
    m = w.shape[0]
    for k in range(m):
        whitened[k] = _dot(w[k], products)
    for k in range(m):
        x = 0.0
        for i in range(k, m):
            x += w[i, k] * whitened[i]
        coefficients[k] = x


@kernel
def _project_target(
    addresses: Any, strides: Any, begin: int, end: int, ridge: float, out: Any, z: Any, small: Any
) -> None:
    """Ridge projection of z[0] on the rows z[1:] into `out` [N, d]."""
    m = z.shape[0]
    products, whitened, c = small[3 * m - 3], small[3 * m - 2], small[3 * m - 1]
    for i in range(begin, end):
        _load(addresses, strides, i, out, z)
        w = _whitening(z, ridge, small)
        for k in range(m - 1):
            products[k] = _dot(z[k + 1], z[0])
        _solve(w, products, whitened, c)
        _combine(c, z[1:], False, out[i])


@kernel
def _project_target_backward(
    addresses: Any,
    strides: Any,
    begin: int,
    end: int,
    ridge: float,
    upstream: Any,
    d_target: Any,
    d_basis: Any,
    z: Any,
    vectors: Any,
    small: Any,
) -> None:
    """dz = A e, dA = (g - A e) c^T + (z - A c) e^T with e = (A^T A + ridge I)^-1 A^T g."""
    m, d = z.shape
    products, whitened, c, e = small[3 * m - 4], small[3 * m - 3], small[3 * m - 2], small[3 * m - 1]
    g, g_rest, z_rest = vectors[0], vectors[1], vectors[2]
    for i in range(begin, end):
        _load(addresses, strides, i, upstream, z)
        w = _whitening(z, ridge, small)
        source = upstream[i]
        for j in range(d):
            g[j] = source[j]
        for k in range(m - 1):
            products[k] = _dot(z[k + 1], z[0])
        _solve(w, products, whitened, c)
        for k in range(m - 1):
            products[k] = _dot(z[k + 1], g)
        _solve(w, products, whitened, e)
        _combine(e, z[1:], False, g_rest)
        _combine(c, z[1:], False, z_rest)
        row = d_target[i]
        for j in range(d):
            row[j] = g_rest[j]
            g_rest[j] = g[j] - g_rest[j]
            z_rest[j] = z[0, j] - z_rest[j]
        for k in range(m - 1):
            row, ck, ek = d_basis[i, k], c[k], e[k]
            for j in range(d):
                row[j] = ck * g_rest[j] + ek * z_rest[j]


@kernel
def _whiten(
    addresses: Any,
    strides: Any,
    begin: int,
    end: int,
    ridge: float,
    bases: Any,
    grams: Any,
    z: Any,
    small: Any,
) -> float:
    """With W = L^-1, L L^T = A A^T + ridge I for the K rows of A: bases = W A, grams = W A A^T W^T (upper triangle).

    Returns the largest number in I - grams.
    """
    m = z.shape[0]
    gram, w, kept, in_effect, product = (
        small[:m],
        small[m : 2 * m],
        small[2 * m : 3 * m],
        small[3 * m],
        small[3 * m + 1],
    )
    largest = 0.0
    for i in range(begin, end):
        _load(addresses, strides, i, bases, z)
        _gram(z, gram)
        for k in range(m):
            for other in range(k + 1):
                kept[k, other] = gram[k, other]
                kept[other, k] = gram[k, other]
        _cholesky_inverse(gram, ridge, w, in_effect)
        entry = 0
        for k in range(m):
            _combine(w[k], z, False, bases[k, i])
            for other in range(m):
                total = 0.0
                for inner in range(k + 1):
                    total += w[k, inner] * kept[inner, other]
                product[other] = total
            for other in range(k, m):
                v = 0.0
                for inner in range(other + 1):
                    v += product[inner] * w[other, inner]
                grams[entry, i] = v
                entry += 1
                u = abs(1.0 - v) if other == k else abs(v)
                # Not `u > largest`, which a NaN fails.
                largest = largest if u <= largest else u
    return largest


@kernel
def _whiten_backward(
    addresses: Any,
    strides: Any,
    begin: int,
    end: int,
    ridge: float,
    bases_gradient: Any,
    grams_gradient: Any,
    gradient_addresses: Any,
    z: Any,
    g: Any,
    vector: Any,
    small: Any,
) -> None:
    """Add to dA the gradient of what `_whiten` gives, the ridge in effect held constant.

    With V = I - W ridge W^T: dW = dB A^T - 2 dV W ridge; X = W^T phi(-tril(dW) W^T) W with phi the lower triangle, its
    diagonal halved (the Cholesky factor's backward); dA = W^T dB + (X + X^T) A.
    """
    m, d = z.shape
    gram, w, u, dw, x = small[:m], small[m : 2 * m], small[2 * m : 3 * m], small[3 * m : 4 * m], small[4 * m : 5 * m]
    in_effect = small[5 * m]
    for i in range(begin, end):
        _load(addresses, strides, i, bases_gradient, z)
        _gram(z, gram)
        _cholesky_inverse(gram, ridge, w, in_effect)
        entry = 0
        for k in range(m):
            row = bases_gradient[k, i]
            for j in range(d):
                g[k, j] = row[j]
            for other in range(k, m):
                x[k, other] = grams_gradient[entry, i]
                entry += 1
        for k in range(m):
            for other in range(m):
                u[k, other] = x[k, k] if k == other else 0.5 * x[min(k, other), max(k, other)]
        for k in range(m):
            for other in range(k + 1):
                total = _dot(g[k], z[other])
                for inner in range(m):
                    total -= 2.0 * u[k, inner] * w[inner, other] * in_effect[other]
                dw[k, other] = total
        # u = phi(-tril(dW) W^T)
        for k in range(m):
            for other in range(m):
                total = 0.0
                if other <= k:
                    for inner in range(k + 1):
                        total -= dw[k, inner] * w[other, inner]
                u[k, other] = 0.5 * total if other == k else total
        # gram = u W, x = W^T gram
        for k in range(m):
            for other in range(m):
                total = 0.0
                for inner in range(m):
                    total += u[k, inner] * w[inner, other]
                gram[k, other] = total
        for k in range(m):
            for other in range(m):
                total = 0.0
                for inner in range(m):
                    total += w[inner, k] * gram[inner, other]
                x[k, other] = total
        for k in range(m):
            for other in range(m):
                dw[k, other] = x[k, other] + x[other, k]
                u[k, other] = w[other, k]
        for k in range(m):
            result = row_at(gradient_addresses[k], i, d, d, bases_gradient)
            for j in range(d):
                vector[j] = result[j]
            _combine(dw[k], z, True, vector)
            _combine(u[k], g, True, vector)
            for j in range(d):
                result[j] = vector[j]


def _bounds(n: int, count: int, slot: int) -> tuple[int, int]:
    return n * slot // count, n * (slot + 1) // count


def _run_project(
    sources: RowAddresses,
    ridge: float,
    inverse: np.ndarray,
    has_inverse: bool,
    first: int,
    last: int,
    unit: bool,
    out: np.ndarray,
) -> None:
    m, d, count = sources.m, sources.d, slots(sources.n, _GRAIN)

    def work(slot: int) -> None:
        scratch = np.empty((m, d)), np.empty(d), np.empty((2 * m + 1, m))
        begin, end = _bounds(sources.n, count, slot)
        _project(
            sources.addresses,
            sources.strides,
            begin,
            end,
            ridge,
            has_inverse,
            inverse,
            first,
            last,
            unit,
            out,
            scratch,
        )

    parallel(work, count)


def leave_one_out(z: Sequence[Tensor], ridge: float) -> tuple[Tensor, Tensor]:
    """All M projections [M, N, d] in the dtype of the embeddings, and H of each sample [N, M, M], float64."""
    sources = RowAddresses(z)
    inverse = np.empty((sources.n, sources.m, sources.m))
    out = sources.empty(sources.m, sources.n, sources.d)
    _run_project(sources, ridge, inverse, False, 0, sources.m, False, out)
    return torch.from_numpy(out).to(z[0].dtype), torch.from_numpy(inverse)


def inverse_gram(z: Sequence[Tensor], ridge: float) -> Tensor:
    """H = (Z^T Z + ridge I)^-1 of each sample: [N, M, M], float64."""
    sources = RowAddresses(z)
    inverse = np.empty((sources.n, sources.m, sources.m))
    _run_project(sources, ridge, inverse, False, 0, 0, False, sources.empty(0, 0, 0))
    return torch.from_numpy(inverse)


def unit_leave_one_out(z: Sequence[Tensor], inverse: Tensor, target: int) -> Tensor:
    """The projection of modality `target`, divided by its norm: [N, d], float64 for float64, else float32."""
    sources = RowAddresses(z)
    out = sources.empty(1, sources.n, sources.d)
    _run_project(sources, 0.0, inverse.numpy(), True, target, target + 1, True, out)
    return torch.from_numpy(out[0])


def _run_backward(
    upstream: Tensor,
    z: Sequence[Tensor],
    inverse: Tensor,
    first: int,
    last: int,
    *,
    unit: bool,
    added: bool,
    gradients: Sequence[Tensor],
) -> None:
    sources = RowAddresses(z)
    m, d, count = sources.m, sources.d, slots(sources.n, _GRAIN)
    array = upstream.to(sources.torch_dtype).contiguous().numpy()
    addresses = np.array([x.data_ptr() for x in gradients], np.int64)

    def work(slot: int) -> None:
        begin, end = _bounds(sources.n, count, slot)
        _project_backward(
            sources.addresses,
            sources.strides,
            begin,
            end,
            inverse.numpy(),
            first,
            last,
            unit,
            added,
            array,
            addresses,
            (np.empty((m, d)), np.empty((last - first, d)), np.empty(d), np.empty((2 * m + 3, m))),
        )

    parallel(work, count)


def unit_leave_one_out_backward(
    upstream: Tensor, z: Sequence[Tensor], inverse: Tensor, target: int, gradients: Sequence[Tensor]
) -> None:
    """Add the gradient of `unit_leave_one_out` to `gradients`, contiguous [N, d] of its dtype."""
    _run_backward(upstream[None], z, inverse, target, target + 1, unit=True, added=True, gradients=gradients)


def leave_one_out_backward(
    upstream: Tensor, z: Sequence[Tensor], inverse: Tensor, needed: Sequence[bool], ridge: float
) -> list[Tensor]:
    """Gradients of `leave_one_out` for an upstream gradient [M, N, d]."""
    dtype = np.float64 if z[0].dtype == torch.float64 else np.float32
    gradients = [torch.from_numpy(_buffers.empty(tuple(x.shape), dtype)) for x in z]
    _run_backward(upstream, z, inverse, 0, len(z), unit=False, added=False, gradients=gradients)
    return [g.to(z[0].dtype) for g in gradients]


def whitened_bases(contexts: Sequence[Tensor], ridge: float) -> tuple[Tensor, Tensor, float]:
    """Whiten K context embeddings [N, d] of each sample: B [K, N, d] and V [K (K + 1) / 2, N], the largest of I - V.

    With L L^T = A^T A + ridge I: B = A L^-T, and V = B^T B, its upper triangle row by row. Both are formed in float64;
    float64 for float64 contexts, else float32.
    """
    sources = RowAddresses(contexts)
    m, d, n, count = sources.m, sources.d, sources.n, slots(sources.n, _GRAIN)
    bases, grams, largest = sources.empty(m, n, d), sources.empty(m * (m + 1) // 2, n), np.zeros(count)

    def work(slot: int) -> None:
        begin, end = _bounds(n, count, slot)
        largest[slot] = _whiten(
            sources.addresses,
            sources.strides,
            begin,
            end,
            ridge,
            bases,
            grams,
            np.empty((m, d)),
            np.empty((3 * m + 2, m)),
        )

    parallel(work, count)
    return torch.from_numpy(bases), torch.from_numpy(grams), float(largest.max())


def whitened_bases_backward(
    bases_gradient: Tensor,
    grams_gradient: Tensor | None,
    contexts: Sequence[Tensor],
    ridge: float,
    gradients: Sequence[Tensor],
) -> None:
    """Add the gradients of `whitened_bases` to `gradients`, K contiguous tensors [N, d] of its dtype."""
    sources = RowAddresses(contexts)
    m, d, n, count = sources.m, sources.d, sources.n, slots(sources.n, _GRAIN)
    addresses = np.array([x.data_ptr() for x in gradients], np.int64)
    zeros = (m * (m + 1) // 2, n)
    grad_grams = np.zeros(zeros, sources.dtype) if grams_gradient is None else grams_gradient.numpy()

    def work(slot: int) -> None:
        begin, end = _bounds(n, count, slot)
        _whiten_backward(
            sources.addresses,
            sources.strides,
            begin,
            end,
            ridge,
            bases_gradient.numpy(),
            grad_grams,
            addresses,
            np.empty((m, d)),
            np.empty((m, d)),
            np.empty(d),
            np.empty((5 * m + 1, m)),
        )

    parallel(work, count)


def _target_and_basis(target: Tensor, basis: Tensor) -> RowAddresses:
    k, d = basis.shape[-2:]
    return RowAddresses([target.reshape(-1, d), *basis.reshape(-1, k, d).unbind(1)])


def ridge_projection(target: Tensor, basis: Tensor, ridge: float) -> Tensor:
    """Project target [..., d] on basis [..., K, d], in the dtype of the target."""
    sources = _target_and_basis(target, basis)
    m, d, count = sources.m, sources.d, slots(sources.n, _GRAIN)
    out = sources.empty(sources.n, d)

    def work(slot: int) -> None:
        begin, end = _bounds(sources.n, count, slot)
        _project_target(
            sources.addresses,
            sources.strides,
            begin,
            end,
            ridge,
            out,
            np.empty((m, d)),
            np.empty((3 * m, m - 1)),
        )

    parallel(work, count)
    return torch.from_numpy(out).to(target.dtype).view(target.shape)


def ridge_projection_backward(
    upstream: Tensor, target: Tensor, basis: Tensor, needed: Sequence[bool], ridge: float
) -> tuple[Tensor, Tensor]:
    """Gradients of `ridge_projection` with respect to target and basis."""
    sources = _target_and_basis(target, basis)
    m, d, count = sources.m, sources.d, slots(sources.n, _GRAIN)
    array = upstream.to(sources.torch_dtype).reshape(-1, d).contiguous().numpy()
    d_target, d_basis = sources.empty(sources.n, d), sources.empty(sources.n, m - 1, d)

    def work(slot: int) -> None:
        begin, end = _bounds(sources.n, count, slot)
        _project_target_backward(
            sources.addresses,
            sources.strides,
            begin,
            end,
            ridge,
            array,
            d_target,
            d_basis,
            np.empty((m, d)),
            np.empty((3, d)),
            np.empty((3 * m, m - 1)),
        )

    parallel(work, count)
    gradient_of_target = torch.from_numpy(d_target).to(target.dtype).view(target.shape)
    return gradient_of_target, torch.from_numpy(d_basis).to(basis.dtype).view(basis.shape)
