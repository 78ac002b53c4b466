"""GRAM's volumes and TRIANGLE's areas on the CPU: small float64 factors of each sample, swept by the pairwise engine.

Both are a factor of column j times a distance of anchor a_i, of which the tiles hold the inner products:

    GRAM                V_ij = t_j r_ij^(1/2),       r_ij = |a_i|^2 - sum_k (a_i . b_jk)^2
    TRIANGLE            area_ij = l_j / 2 r_ij^(1/2),  r_ij = |a_i - p_j|^2 - (a_i . w_j)^2
    TRIANGLE, released  2 area_ij^2 = l_j^2 / 2 r_ij

with b_jk the orthonormal basis (Gram-Schmidt) and t_j the volume of the other modalities of sample j, and
with l_j the length and w_j the direction of the side c_j - b_j, p_j the point of its line nearest to the origin, which
is put where the b_j are. GRAM:
Cicchetti et al. (ICLR 2025, arXiv 2412.11959); TRIANGLE: its successor of three modalities.

r cancels where an anchor lies in its sample's span, which is where training takes it: the volume of each sample's own
vectors, the positive, is formed apart, in float64 and from the residual, and so is its gradient.

Cost: M - 1 tiles, so 4 (M - 1) GEMMs of 2 N^2 d FLOPs for the loss and its gradient both ways (3 (M - 1) where all
pairs fit one tile), and 4 N d M^2 FLOPs in float64 each way for the factors. Memory beyond the gradients: the bases
and a tile.
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
from mibfast.kernels.pairwise import cpu as pairwise
from mibfast.kernels.pairwise import engine_cpu as engine
from mibfast.kernels.pairwise import scores
from mibfast.kernels.pairwise.rows_cpu import Rows
from mibfast.kernels.pairwise.scores import Score
from mibfast.kernels.pairwise.tiles_cpu import Columns, Gradients
from mibfast.kernels.row_addresses import RowAddresses, row_at
from mibfast.kernels.volume.reference import GRAM, RELATIVE_FLOOR, SQUARED_TRIANGLE, TRIANGLE, middle

_SCORES = {GRAM: "gram_volume", TRIANGLE: "triangle_area", SQUARED_TRIANGLE: "squared_triangle_area"}
# Samples a slot, at least: 50 microseconds of work.
_GRAIN = 64


@inline
def _dot(x: Any, y: Any) -> float:
    total = 0.0
    for j in range(x.size):
        total += x[j] * y[j]
    return total


@inline
def _add(coefficient: Any, x: Any, out: Any) -> None:
    for j in range(out.size):
        out[j] += coefficient * x[j]


@inline
def _load(addresses: Any, strides: Any, i: Any, like: Any, z: Any) -> None:
    """Sample i of every matrix as float64 rows of `z`."""
    for k in range(z.shape[0]):
        source, row = row_at(addresses[k], i, strides[k], z.shape[1], like), z[k]
        for j in range(row.size):
            row[j] = source[j]


@inline
def _orthonormalise(z: Any, first: Any, last: Any, q: Any, r: Any) -> Any:
    """Gram-Schmidt: z_m = sum of r_km q_k for rows first to last of z, those before them being done.

    Once over for a row of which a tenth is left, whose error is then ten roundings, else twice. A row that depends on
    those before it has q_m = 0 and r_mm = 0. Returns the product of the r_mm.
    """
    volume = 1.0
    for m in range(first, last):
        row = q[m]
        for j in range(row.size):
            row[j] = z[m, j]
        squared = _dot(row, row)
        floor, much = RELATIVE_FLOOR * RELATIVE_FLOOR * squared, 0.01 * squared
        for k in range(m):
            r[k, m] = 0.0
        for again in range(2 if m > 0 else 0):
            if again and squared > much:
                break
            for k in range(m):
                c = _dot(q[k], row)
                r[k, m] += c
                _add(-c, q[k], row)
            squared = _dot(row, row)
        # NaN fails the comparison and stays.
        r[m, m] = 0.0 if squared <= floor else math.sqrt(squared)
        scale = 0.0 if squared <= floor else 1.0 / r[m, m]
        for j in range(row.size):
            row[j] *= scale
        volume *= r[m, m]
    return volume


@kernel
def _gram_factors(
    addresses: Any, strides: Any, begin: int, end: int, bases: Any, volumes: Any, own: Any, z: Any, q: Any, r: Any
) -> None:
    """Bases [K, N', d] and volumes [N'] of the others, and the volumes with the anchor, the last matrix, in `own`."""
    m = z.shape[0]
    for i in range(begin, end):
        paired = i < own.size
        rows = m if paired else m - 1
        _load(addresses, strides, i, bases, z[:rows])
        volume = _orthonormalise(z, 0, m - 1, q, r)
        volumes[i] = volume
        for k in range(m - 1):
            basis, source = bases[k, i], q[k]
            for j in range(basis.size):
                basis[j] = source[j]
        if paired:
            own[i] = volume * _orthonormalise(z, m - 1, m, q, r)


@inline
def _clear(gradients: Any, i: Any) -> None:
    """Make row i of each matrix zero; NaN, which a loss of NaN leaves there, stays."""
    for k in range(gradients.shape[0]):
        row = gradients[k, i]
        for j in range(row.size):
            row[j] *= 0.0


@kernel
def _gram_factors_backward(
    addresses: Any,
    strides: Any,
    begin: int,
    end: int,
    others_gradient: Any,
    volume_gradient: Any,
    own_gradient: Any,
    anchor_gradient: Any,
    z: Any,
    q: Any,
    r: Any,
    g: Any,
) -> None:
    """The gradient of what `_gram_factors` gives: added to the anchor's, and that of the others in place of the bases'.

    A score depends on the span of the bases B alone, so that B^T dB is symmetric and the gradient of the others A = B R
    is (dB - B B^T dB + dt t B) R^-T; that of the volume V of all M vectors Q R is dV V Q R^-T.
    """
    m = z.shape[0]
    for i in range(begin, end):
        paired = i < own_gradient.size
        rows = m if paired else m - 1
        _load(addresses, strides, i, others_gradient, z[:rows])
        volume = _orthonormalise(z, 0, m - 1, q, r)
        # Nothing depends on vectors that span nothing.
        if volume == 0.0:
            _clear(others_gradient, i)
            continue
        along = volume_gradient[i] * volume
        if paired:
            own = volume * _orthonormalise(z, m - 1, m, q, r) * own_gradient[i]
            along += own
        for k in range(m - 1):
            row, source = g[k], others_gradient[k, i]
            for j in range(row.size):
                row[j] = source[j]
            for other in range(m - 1):
                c = _dot(q[other], row)
                _add((along if other == k else 0.0) - c, q[other], row)
        if paired:
            row, source = g[m - 1], q[m - 1]
            for j in range(row.size):
                row[j] = own * source[j]
        # Solve X R^T = g from the last row on.
        for k in range(rows - 1, -1, -1):
            row = g[k]
            for later in range(k + 1, rows):
                _add(-r[k, later], g[later], row)
            inverse = 0.0 if r[k, k] == 0.0 else 1.0 / r[k, k]
            if k == m - 1:
                result = anchor_gradient[i]
                for j in range(row.size):
                    row[j] *= inverse
                    result[j] += row[j]
            else:
                result = others_gradient[k, i]
                for j in range(row.size):
                    row[j] *= inverse
                    result[j] = row[j]


@inline
def _side(b: Any, c: Any, w: Any) -> Any:
    """w = c - b made unit; returns its length, and w = 0 where that is zero."""
    squared = 0.0
    for j in range(w.size):
        x = np.float64(c[j]) - np.float64(b[j])
        w[j] = x
        squared += x * x
    length = math.sqrt(squared)
    scale = 0.0 if squared == 0.0 else 1.0 / length
    for j in range(w.size):
        w[j] *= scale
    return length


@inline
def _height(a: Any, b: Any, w: Any, foot: Any, squared_edge: Any) -> Any:
    """The distance of a from the line through b along w, from the residual; zero for a point on the line.

    a - b has the component `foot` along w and the squared norm `squared_edge`.
    """
    squared = 0.0
    for j in range(w.size):
        x = (np.float64(a[j]) - np.float64(b[j])) - foot * w[j]
        squared += x * x
    return 0.0 if squared <= RELATIVE_FLOOR * RELATIVE_FLOOR * squared_edge else math.sqrt(squared)


@kernel
def _triangle_factors(
    addresses: Any,
    strides: Any,
    begin: int,
    end: int,
    lines: Any,
    points: Any,
    sides: Any,
    own: Any,
    origin: Any,
    w: Any,
) -> None:
    """Directions and points [2, N', d] of the lines through b and c, squared norms of the points, lengths of the sides.

    Points are relative to `origin`. `own` gets the areas, doubled, of the triangles with the anchor, the last matrix.
    """
    d = w.size
    for i in range(begin, end):
        paired = i < own.size
        b, c = row_at(addresses[0], i, strides[0], d, lines), row_at(addresses[1], i, strides[1], d, lines)
        length = _side(b, c, w)
        sides[i] = length
        along = 0.0
        for j in range(d):
            along += w[j] * (np.float64(b[j]) - origin[j])
        if paired:
            a = row_at(addresses[2], i, strides[2], d, lines)
            foot, squared_edge = 0.0, 0.0
            for j in range(d):
                x = np.float64(a[j]) - np.float64(b[j])
                foot += w[j] * x
                squared_edge += x * x
            own[i] = length * _height(a, b, w, foot, squared_edge)
        direction, point, squared = lines[0, i], lines[1, i], 0.0
        for j in range(d):
            x = (np.float64(b[j]) - origin[j]) - along * w[j]
            direction[j] = w[j]
            point[j] = x
            squared += x * x
        points[i] = squared


@kernel
def _triangle_factors_backward(
    addresses: Any,
    strides: Any,
    begin: int,
    end: int,
    others_gradient: Any,
    points_gradient: Any,
    sides_gradient: Any,
    own_gradient: Any,
    anchor_gradient: Any,
    origin: Any,
    w: Any,
) -> None:
    """The gradient of what `_triangle_factors` gives, put where `_gram_factors_backward` puts it.

    What it gives: w = (c - b) / l and p = b - (b . w) w, |p|^2, l and l h; b in p is relative to `origin`, which no
    score depends on.

    db = dp - (dp . w) w, dw -= (b . w) dp + (dp . w) b, d(c - b) = (dw - (dw . w) w) / l + dl w, where p . w = 0. The
    gradient of l h, twice the area: l across the line at a; at b and c minus their shares of that, and h along it.
    """
    d = w.size
    for i in range(begin, end):
        paired = i < own_gradient.size
        b, c = (
            row_at(addresses[0], i, strides[0], d, others_gradient),
            row_at(addresses[1], i, strides[1], d, others_gradient),
        )
        # Without an anchor b stands in for it, on the line.
        last = 2 if paired else 0
        a = row_at(addresses[last], i, strides[last], d, others_gradient)
        length = _side(b, c, w)
        # Nothing depends on a side of no length.
        if length == 0.0:
            _clear(others_gradient, i)
            continue
        grad_direction, grad_point = others_gradient[0, i], others_gradient[1, i]
        along, foot, squared_edge, direction_along, point_along = 0.0, 0.0, 0.0, 0.0, 0.0
        for j in range(d):
            x = np.float64(a[j]) - np.float64(b[j])
            along += w[j] * (np.float64(b[j]) - origin[j])
            foot += w[j] * x
            squared_edge += x * x
            direction_along += w[j] * np.float64(grad_direction[j])
            point_along += w[j] * np.float64(grad_point[j])
        twice = 2.0 * points_gradient[i]
        w_along = direction_along - 2.0 * along * point_along
        inverse, stretch, normal, share = 1.0 / length, sides_gradient[i], 0.0, foot / length
        if paired:
            height = _height(a, b, w, foot, squared_edge)
            normal = 0.0 if height == 0.0 else own_gradient[i] * length / height
            stretch += own_gradient[i] * height
            result = anchor_gradient[i]
            for j in range(d):
                result[j] += normal * ((np.float64(a[j]) - np.float64(b[j])) - foot * w[j])
        for j in range(d):
            bj, wj = np.float64(b[j]) - origin[j], w[j]
            across = normal * ((np.float64(a[j]) - np.float64(b[j])) - foot * wj)
            dp = np.float64(grad_point[j]) + twice * (bj - along * wj)
            dw = np.float64(grad_direction[j]) - along * dp - point_along * bj
            # The foot of the height moves with c by its share of the side; the side grows along w.
            moved = (dw - w_along * wj) * inverse + stretch * wj - share * across
            grad_direction[j] = (dp - point_along * wj) - across - moved
            grad_point[j] = moved


def _bounds(n: int, count: int, slot: int) -> tuple[int, int]:
    return n * slot // count, n * (slot + 1) // count


class _Volumes:
    """What the engine sweeps for volumes times a scale, and the backward of its gradients."""

    def __init__(
        self,
        kind: str,
        anchor: Tensor,
        others: Sequence[Tensor],
        scale: float = 1.0,
        wants_grad_scale: bool = False,
    ) -> None:
        self._kind = kind
        n, (count, d) = anchor.shape[0], others[0].shape
        # A sample's own vectors: the others, then the anchor. The anchor's rows beyond the others' belong to no sample.
        self._sources = RowAddresses([*others, anchor[:count]])
        self._count, k = count, len(others)
        self._slots = slots(count, _GRAIN)
        operands = self._sources.empty(k, count, d)
        rows = anchor.detach()
        self._origin = np.zeros(d)
        if kind != GRAM and len(anchor):
            # Areas do not depend on the origin, but float32 inner products lose what is far from it.
            origin = middle(others[0]).to(torch.from_numpy(operands).dtype)
            rows = rows.to(origin.dtype) - origin
            self._origin = origin.double().numpy()
        # Volumes of the others, or lengths of sides; and of the own vectors: volumes, or doubled areas.
        self._sizes, self._own = np.empty(count), np.empty(min(n, count))
        statistics = self._sources.empty(1 if kind == GRAM else 2, count)

        def work(slot: int) -> None:
            places = (self._sources.addresses, self._sources.strides, *_bounds(count, self._slots, slot), operands)
            if kind == GRAM:
                z, q, r = np.empty((k + 1, d)), np.empty((k + 1, d)), np.empty((k + 1, k + 1))
                _gram_factors(*places, self._sizes, self._own, z, q, r)
            else:
                _triangle_factors(*places, statistics[1], self._sizes, self._own, self._origin, np.empty(d))

        parallel(work, self._slots)
        with np.errstate(all="ignore"):
            statistics[0] = self._factors()
            positives = self._own_volumes()
        self.pairs = engine.Pairs(
            scores.named(_SCORES[kind]),
            Rows(rows, wants_norms=True, positives=positives),
            Columns(torch.from_numpy(operands), torch.from_numpy(statistics)),
            scale=scale,
            wants_grad_scale=wants_grad_scale,
        )

    def _factors(self) -> np.ndarray:
        """The columns' factors t_j."""
        if self._kind == GRAM:
            return self._sizes
        return 0.5 * self._sizes if self._kind == TRIANGLE else 0.5 * self._sizes**2

    def _own_volumes(self) -> np.ndarray:
        """The volumes, areas or twice their squares of the samples' own vectors."""
        if self._kind == GRAM:
            return self._own
        return 0.5 * self._own if self._kind == TRIANGLE else 0.5 * self._own**2

    def gradients(self) -> Gradients:
        """Room for the gradients of anchor and columns: operands are as many and as large as the others are."""
        rows = self.pairs.rows
        anchor = torch.from_numpy(self._sources.empty(rows.n, rows.d)).zero_()
        return Gradients(anchor, *pairwise.column_gradients(self.pairs.product_columns))

    def backward(self, gradients: Gradients) -> list[Tensor]:
        """The gradients of anchor and others, which take over the memory of `gradients`."""
        assert gradients.rows is not None
        assert gradients.columns is not None
        assert gradients.statistics is not None
        lines, statistics = gradients.columns.numpy(), gradients.statistics.numpy()
        sizes, own = statistics[0].astype(np.float64), self.pairs.rows.grad_positives
        with np.errstate(all="ignore"):
            if self._kind == TRIANGLE:
                sizes, own = 0.5 * sizes, 0.5 * own
            elif self._kind == SQUARED_TRIANGLE:
                sizes, own = self._sizes * sizes, self._own * own
        anchor, count, (k, _, d) = gradients.rows.numpy(), self._count, lines.shape

        def work(slot: int) -> None:
            places = (self._sources.addresses, self._sources.strides, *_bounds(count, self._slots, slot), lines)
            if self._kind == GRAM:
                (z, q, g), r = np.empty((3, k + 1, d)), np.empty((k + 1, k + 1))
                _gram_factors_backward(*places, sizes, own, anchor, z, q, r, g)
            else:
                _triangle_factors_backward(*places, statistics[1], sizes, own, anchor, self._origin, np.empty(d))

        parallel(work, self._slots)
        # A tensor each of its own: results of an operation share no storage.
        return [gradients.rows, *(torch.from_numpy(x) for x in lines)]


def columns(kind: str, others: Sequence[Tensor]) -> tuple[Score, Columns]:
    """The score of volumes with others [N', d], and its columns, for rows that are paired with none of them."""
    pairs = _Volumes(kind, others[0][:0], others).pairs
    return pairs.score, pairs.product_columns


def volumes(anchor: Tensor, others: Sequence[Tensor], kind: str) -> Tensor:
    """Volumes of anchors [N, d] with others [N', d]: [N, N'] in the engine's dtype."""
    return engine.dense(_Volumes(kind, anchor, others).pairs)


def volumes_backward(
    upstream: Tensor, anchor: Tensor, others: Sequence[Tensor], needed: Sequence[bool], kind: str
) -> list[Tensor]:
    """Gradients of `volumes` for an upstream gradient [N, N']: that of the anchor, then those of the others."""
    operands = _Volumes(kind, anchor, others)
    gradients = operands.gradients()
    engine.dense_gradient(operands.pairs, upstream, gradients)
    return [g.to(anchor.dtype) for g in operands.backward(gradients)]


def info_nce_with_gradient(
    anchor: Tensor,
    others: Sequence[Tensor],
    temperature: Tensor,
    needed: Sequence[bool],
    kind: str,
    label_smoothing: float,
) -> list[Tensor | None]:
    """The mean of two-way InfoNCE with minus the volumes over the temperature as scores, and its gradients.

    Those of anchor and others are in the engine's dtype.
    """
    objective = pairwise.Objective(symmetric=True, label_smoothing=label_smoothing)
    inverse = pairwise.inverse_temperature(temperature)
    operands = _Volumes(kind, anchor, others, -inverse, wants_grad_scale=needed[-1])
    if not any(needed):
        return [pairwise.losses(operands.pairs, objective)[0].mean(), *[None] * len(needed)]
    gradients = operands.gradients()
    loss = pairwise.sum_with_gradient(operands.pairs, objective, 1.0 / anchor.shape[0], gradients)
    # The scale is -1 / tau, so dL/dtau = dL/dscale / tau^2.
    grad_temperature = torch.tensor(float(operands.pairs.grad_scale) * inverse**2, dtype=temperature.dtype)
    return [loss.to(operands.pairs.rows.dtype), *operands.backward(gradients), grad_temperature]
