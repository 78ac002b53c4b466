"""GRAM's volumes and TRIANGLE's areas in Triton: float64 factors of each sample, scored by the pairwise engine.

The formulae are those of `cpu.py`, and so is what is formed apart: a sample's own vectors, the positive, in float64 and
from the residual. Here scores carry the sign of the loss; the engine multiplies by the inverse temperature.

A program takes a few samples and holds their vectors whole, in float64 registers: Gram-Schmidt, twice over, reads them
once. Over N samples, M vectors of d numbers, B bytes a number and bases of B' bytes, the factors read M N d B and write
(M - 1) N d B', and their backward reads M N d B, (M - 1) N d 4 and, of the anchor, N d 4, and writes M N d 4: little
beside the GEMMs.

Operands are of the embeddings' dtype, or float32 for float16, which has no room for their gradients. In bfloat16 bases
are rounded to it, as its products ask for: a cosine of unit vectors is off by 2^-9 / sqrt(d), and so is r. TRIANGLE's
anchors, too, of which the origin is taken.
"""

# ruff: noqa: RUF005 - jit functions build tuples by addition
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,assignment"
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mibfast.kernels.launch_configuration import Tile, on_device_of, whole_vectors_tile
from mibfast.kernels.pairwise import dense_triton as dense
from mibfast.kernels.pairwise import reductions, scores
from mibfast.kernels.pairwise import triton as pairwise
from mibfast.kernels.pairwise.gradient_triton import Gradients, Wanted, Weights, gradient
from mibfast.kernels.pairwise.pairs_triton import ONE, Pairs, Scalar, operand_dtype, rows_in_place
from mibfast.kernels.rows_triton import row_strides
from mibfast.kernels.volume.reference import GRAM, RELATIVE_FLOOR, SQUARED_TRIANGLE, TRIANGLE, middle

_SCORES = {GRAM: "gram_volume", TRIANGLE: "triangle_area", SQUARED_TRIANGLE: "squared_triangle_area"}
_GIVEN = reductions.named("given")
_SQUARED_FLOOR = tl.constexpr(RELATIVE_FLOOR**2)


@triton.jit
def _vector(matrix, stride, sample, column, inside):
    """Load rows of a matrix, [samples, d]; zeros outside."""
    return tl.load(matrix + sample * stride + column, mask=inside, other=0.0).to(tl.float64)


@triton.jit
def _dot(x, y):
    return tl.sum(x * y, 1, keep_dims=True)


@triton.jit
def _inverse(x):
    """1 / x, 0 where x is 0."""
    return tl.where(x == 0.0, 0.0, 1.0 / tl.where(x == 0.0, 1.0, x))


@triton.jit
def _length(squared, squared_whole):
    """The square root of what is left of a square, 0 where that is mere rounding; NaN and infinity stay."""
    none = (squared <= _SQUARED_FLOOR * squared_whole) & (squared < float("inf"))
    return tl.where(none, 0.0, tl.sqrt(tl.where(none, 0.0, squared)))


@triton.jit
def _orthogonal(basis, rest):
    """The part of a vector orthogonal to an orthonormal basis, and its components along the basis."""
    along = ()
    for k in tl.static_range(len(basis)):
        c = _dot(basis[k], rest)
        rest = rest - c * basis[k]
        along = along + (c,)
    return rest, along


@triton.jit
def _orthonormalise(vectors):
    """Gram-Schmidt, twice over: z_m = sum of r_km q_k. Returns the q, and the r_km, k <= m, one m after the other.

    A vector that depends on those before it has q_m = 0 and r_mm = 0.
    """
    q = ()
    r = ()
    for m in tl.static_range(len(vectors)):
        whole = vectors[m]
        rest, first = _orthogonal(q, whole)
        rest, second = _orthogonal(q, rest)
        for k in tl.static_range(m):
            r = r + (first[k] + second[k],)
        length = _length(_dot(rest, rest), _dot(whole, whole))
        q = q + (rest * _inverse(length),)
        r = r + (length,)
    return q, r


@triton.jit
def _volume(r, K: tl.constexpr):
    """The volume of the first K vectors."""
    volume = r[0]
    for k in tl.static_range(1, K):
        volume = volume * r[k * (k + 1) // 2 + k]
    return volume


@triton.jit
def _places(count, paired, d, SAMPLES: tl.constexpr, DEPTH: tl.constexpr):
    """Samples [SAMPLES, 1] and columns [1, DEPTH] of a program; masks of those in range, and with an anchor."""
    sample = (tl.program_id(0).to(tl.int64) * SAMPLES + tl.arange(0, SAMPLES))[:, None]
    column = tl.arange(0, DEPTH)[None, :]
    return sample, column, (sample < count) & (column < d), (sample < paired) & (column < d)


@triton.jit
def _sample_vectors(others, strides, anchor, anchor_stride, sample, column, there, has_anchor):
    """The vectors of samples, the anchor last."""
    vectors = ()
    for k in tl.static_range(len(others)):
        vectors = vectors + (_vector(others[k], strides[k], sample, column, there),)
    return vectors + (_vector(anchor, anchor_stride, sample, column, has_anchor),)


@triton.jit(do_not_specialize=["count", "paired"])
def _gram_factors(
    others,  # K of [N', d]
    strides,
    anchor,  # [N, d]
    anchor_stride,
    origin,  # [d]
    operands,  # [K, N', d]
    statistics,  # [1, N']
    positives,  # [N]
    count,  # N'
    paired,  # rows of the anchor that belong to a sample
    d,
    K: tl.constexpr,
    SIGN: tl.constexpr,
    SQUARED: tl.constexpr,
    SAMPLES: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Bases [K, N', d] and volumes [1, N'] of the others, and the volumes with the anchor, of those that have one."""
    sample, column, there, has_anchor = _places(count, paired, d, SAMPLES, DEPTH)
    vectors = _sample_vectors(others, strides, anchor, anchor_stride, sample, column, there, has_anchor)
    q, r = _orthonormalise(vectors)
    volume = SIGN * _volume(r, K)
    for k in tl.static_range(K):
        place = (k * tl.cast(count, tl.int64) + sample) * d + column
        tl.store(operands + place, q[k].to(operands.dtype.element_ty), mask=there)
    tl.store(statistics + sample, volume.to(tl.float32), mask=sample < count)
    own = volume * r[K * (K + 1) // 2 + K]
    tl.store(positives + sample, own.to(tl.float32), mask=sample < paired)


@triton.jit
def _add_to_anchor(gradients, sample, column, d, x, has_anchor):
    at = gradients + sample * d + column
    tl.store(at, tl.load(at, mask=has_anchor, other=0.0) + x.to(tl.float32), mask=has_anchor)


@triton.jit(do_not_specialize=["count", "paired"])
def _gram_factors_backward(
    others,  # K of [N', d]
    strides,
    anchor,  # [N, d]
    anchor_stride,
    origin,  # [d]
    grad_operands,  # [K, N', d]
    grad_statistics,  # [1, N']
    grad_positives,  # [N]
    grad_others,  # K of [N', d]
    grad_anchor,  # [N, d], which is added to
    count,  # N'
    paired,  # rows of the anchor that belong to a sample
    d,
    K: tl.constexpr,
    SIGN: tl.constexpr,
    SQUARED: tl.constexpr,
    SAMPLES: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Gradients of the outputs of `_gram_factors`: of the others, and added to that of the anchor.

    A score depends on the span of the bases B alone, so that B^T dB is symmetric and the gradient of the others A = B R
    is (dB - B B^T dB + dt t B) R^-T; that of the volume V of all M vectors Q R is dV V Q R^-T.
    """
    sample, column, there, has_anchor = _places(count, paired, d, SAMPLES, DEPTH)
    vectors = _sample_vectors(others, strides, anchor, anchor_stride, sample, column, there, has_anchor)
    q, r = _orthonormalise(vectors)
    volume = SIGN * _volume(r, K)
    length = r[K * (K + 1) // 2 + K]
    own = volume * length * tl.load(grad_positives + sample, mask=sample < paired, other=0.0)
    along = own + volume * tl.load(grad_statistics + sample, mask=sample < count, other=0.0)
    # Solve X R^T = g from the last row on; a row of r = 0 depends on none.
    row = own * q[K] * _inverse(length)
    _add_to_anchor(grad_anchor, sample, column, d, row, has_anchor)
    solved = (row,)
    for k in tl.static_range(K - 1, -1, -1):
        row = _vector(grad_operands + k * tl.cast(count, tl.int64) * d, d, sample, column, there)
        for other in tl.static_range(K):
            row -= _dot(q[other], row) * q[other]
        row += along * q[k]
        for later in tl.static_range(K - k):
            row -= r[(K - later) * (K - later + 1) // 2 + k] * solved[later]
        row = row * _inverse(r[k * (k + 1) // 2 + k])
        result = grad_others[k]
        tl.store(result + sample * d + column, row.to(result.dtype.element_ty), mask=there)
        solved = solved + (row,)


@triton.jit
def _origin(origin, column, d):
    return tl.load(origin + column, mask=column < d, other=0.0).to(tl.float64)


@triton.jit
def _side(b, c):
    """The length of c - b, and its direction, zero where that is."""
    side = c - b
    length = tl.sqrt(_dot(side, side))
    return length, side * _inverse(length)


@triton.jit
def _height(edge, w):
    """The part of the edge a - b orthogonal to w, its length, zero on the line, and the component along w."""
    foot = _dot(w, edge)
    across = edge - foot * w
    return across, _length(_dot(across, across), _dot(edge, edge)), foot


@triton.jit(do_not_specialize=["count", "paired"])
def _triangle_factors(
    others,  # K of [N', d]
    strides,
    anchor,  # [N, d]
    anchor_stride,
    origin,  # [d]
    operands,  # [2, N', d]
    statistics,  # [2, N']
    positives,  # [N]
    count,  # N'
    paired,  # rows of the anchor that belong to a sample
    d,
    K: tl.constexpr,
    SIGN: tl.constexpr,
    SQUARED: tl.constexpr,
    SAMPLES: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Directions and points [2, N', d] of the lines through b and c; the columns' factors and squared norms of points.

    Points are relative to `origin`. And the areas, or twice their squares, of the samples' own triangles.
    """
    sample, column, there, has_anchor = _places(count, paired, d, SAMPLES, DEPTH)
    b = _vector(others[0], strides[0], sample, column, there)
    c = _vector(others[1], strides[1], sample, column, there)
    a = _vector(anchor, anchor_stride, sample, column, has_anchor)
    length, w = _side(b, c)
    relative = b - _origin(origin, column, d)
    point = (relative - _dot(relative, w) * w).to(operands.dtype.element_ty)
    at = operands + sample * d + column
    tl.store(at, w.to(operands.dtype.element_ty), mask=there)
    tl.store(at + tl.cast(count, tl.int64) * d, point, mask=there)
    # The norm is of the point as stored, so that squared distances to it do not become negative.
    rounded = point.to(tl.float64)
    tl.store(statistics + count + sample, _dot(rounded, rounded).to(tl.float32), mask=sample < count)
    _, height, _ = _height(a - b, w)
    doubled = length * height
    factor, own = 0.5 * SIGN * length, 0.5 * SIGN * doubled
    if SQUARED:
        factor, own = factor * length, own * doubled
    tl.store(statistics + sample, factor.to(tl.float32), mask=sample < count)
    tl.store(positives + sample, own.to(tl.float32), mask=sample < paired)


@triton.jit(do_not_specialize=["count", "paired"])
def _triangle_factors_backward(
    others,  # K of [N', d]
    strides,
    anchor,  # [N, d]
    anchor_stride,
    origin,  # [d]
    grad_operands,  # [2, N', d]
    grad_statistics,  # [2, N']
    grad_positives,  # [N]
    grad_others,  # K of [N', d]
    grad_anchor,  # [N, d], which is added to
    count,  # N'
    paired,  # rows of the anchor that belong to a sample
    d,
    K: tl.constexpr,
    SIGN: tl.constexpr,
    SQUARED: tl.constexpr,
    SAMPLES: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Gradients of the outputs of `_triangle_factors`: of the others, and added to that of the anchor.

    w = (c - b) / l and p = b - (b . w) w, b in p being relative to `origin`, which no score depends on. So db = dp -
    (dp . w) w, dw -= (b . w) dp + (dp . w) b, d(c - b) = (dw - (dw . w) w) / l + dl w, where p . w = 0. The gradient of
    l h, twice the area: l across the line at a; at b and c minus their shares of that, and h along it.
    """
    sample, column, there, has_anchor = _places(count, paired, d, SAMPLES, DEPTH)
    b = _vector(others[0], strides[0], sample, column, there)
    c = _vector(others[1], strides[1], sample, column, there)
    a = _vector(anchor, anchor_stride, sample, column, has_anchor)
    length, w = _side(b, c)
    across, height, foot = _height(a - b, w)
    grad_own = 0.5 * SIGN * tl.load(grad_positives + sample, mask=sample < paired, other=0.0)
    stretch = 0.5 * SIGN * tl.load(grad_statistics + sample, mask=sample < count, other=0.0)
    twice = 2.0 * tl.load(grad_statistics + count + sample, mask=sample < count, other=0.0)
    if SQUARED:
        grad_own, stretch = 2.0 * length * height * grad_own, 2.0 * length * stretch
    across = grad_own * length * _inverse(height) * across
    _add_to_anchor(grad_anchor, sample, column, d, across, has_anchor)
    stretch += grad_own * height
    relative = b - _origin(origin, column, d)
    along = _dot(relative, w)
    grad_p = _vector(grad_operands + tl.cast(count, tl.int64) * d, d, sample, column, there)
    point_along = _dot(grad_p, w)
    grad_p += twice * (relative - along * w)
    grad_w = _vector(grad_operands, d, sample, column, there) - along * grad_p - point_along * relative
    inverse = _inverse(length)
    # The foot of the height moves with c by its share of the side; the side grows along w.
    moved = (grad_w - _dot(grad_w, w) * w) * inverse + stretch * w - foot * inverse * across
    # A side of length zero has no gradient; NaN stays.
    has_length = tl.where(length == 0.0, 0.0, 1.0)
    grad_b = has_length * ((grad_p - point_along * w) - across - moved)
    at = sample * d + column
    tl.store(grad_others[0] + at, grad_b.to(grad_others[0].dtype.element_ty), mask=there)
    grad_c = has_length * moved
    tl.store(grad_others[1] + at, grad_c.to(grad_others[1].dtype.element_ty), mask=there)


class _Volumes:
    """Pairs whose scores are volumes times a sign, and the gradients of anchor and others from theirs."""

    def __init__(
        self,
        kind: str,
        anchor: Tensor,
        others: Sequence[Tensor],
        sign: float,
        scale: Scalar = ONE,
        centred: bool = True,
    ) -> None:
        self._kind, self._sign, self.score = kind, sign, scores.named(_SCORES[kind])
        n, (count, d) = anchor.shape[0], others[0].shape
        self._anchor, self._others = rows_in_place(anchor), tuple(map(rows_in_place, others))
        # The anchor's rows beyond the others' belong to no sample.
        self._sizes = {"count": count, "paired": min(n, count), "d": d}
        dtype = operand_dtype(anchor.dtype)
        operands = anchor.new_empty(len(others), count, d, dtype=dtype)
        statistics = anchor.new_empty(1 if kind == GRAM else 2, count, dtype=torch.float32)
        positives = anchor.new_empty(n, dtype=torch.float32)
        rows, self._origin = self._anchor.to(dtype), torch.zeros(d, dtype=torch.float32, device=anchor.device)
        if kind != GRAM and centred:
            # Areas do not depend on the origin, but float32 inner products lose what is far from it.
            self._origin = middle(others[0]).float()
            rows = (self._anchor.float() - self._origin).to(dtype)
        kernel = _gram_factors if kind == GRAM else _triangle_factors
        self._launch(kernel, copies=1, operands=operands, statistics=statistics, positives=positives)
        norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
        self.pairs = Pairs(
            rows,
            operands,
            scale,
            row_statistic=norms.square().float(),
            column_statistics=statistics,
            positives=positives,
        )

    def _launch(self, kernel: Any, copies: int, **arguments: Any) -> None:
        """Run a kernel of factors, which holds `copies` of a sample's vectors."""
        tile: Tile = whole_vectors_tile(self._sizes["d"], copies * (len(self._others) + 1))
        with on_device_of(self._anchor):
            kernel[(triton.cdiv(self._sizes["count"], tile.rows),)](
                others=self._others,
                strides=row_strides(self._others),
                anchor=self._anchor,
                anchor_stride=self._anchor.stride(0),
                origin=self._origin,
                **arguments,
                **self._sizes,
                K=len(self._others),
                SIGN=self._sign,
                SQUARED=self._kind == SQUARED_TRIANGLE,
                SAMPLES=tile.rows,
                DEPTH=tile.columns,
                num_warps=tile.warps,
            )

    def backward(self, gradients: Gradients) -> list[Tensor]:
        """Gradients of anchor and others, float32; that of the anchor takes the memory of the rows' gradient."""
        assert gradients.rows is not None
        assert gradients.row_statistic is not None
        grad_anchor = gradients.rows
        grad_anchor += self.pairs.rows * (2.0 * gradients.row_statistic)[:, None]
        grad_others = tuple(torch.empty(x.shape, dtype=torch.float32, device=x.device) for x in self._others)
        kernel = _gram_factors_backward if self._kind == GRAM else _triangle_factors_backward
        self._launch(
            kernel,
            copies=2,
            grad_operands=gradients.operands,
            grad_statistics=gradients.column_statistics,
            grad_positives=gradients.positives,
            grad_others=grad_others,
            grad_anchor=grad_anchor,
        )
        return [grad_anchor, *grad_others]


def columns(kind: str, others: Sequence[Tensor], sign: float) -> tuple[scores.Score, Pairs]:
    """The score of volumes, times a sign, and the columns of others [N', d], for rows that are given later."""
    operands = _Volumes(kind, others[0][:1], others, sign, centred=False)
    return operands.score, replace(operands.pairs, positives=None)


def volumes(anchor: Tensor, others: Sequence[Tensor], kind: str) -> Tensor:
    """Volumes of anchors [N, d] with others [N', d]: [N, N'], float32."""
    operands = _Volumes(kind, anchor, others, 1.0)
    return dense.scores(operands.score, operands.pairs)


def volumes_backward(
    upstream: Tensor, anchor: Tensor, others: Sequence[Tensor], needed: Sequence[bool], kind: str
) -> list[Tensor]:
    """Gradients of `volumes` for an upstream gradient [N, N']: that of the anchor, then those of the others."""
    operands = _Volumes(kind, anchor, others, 1.0)
    weights, wanted = Weights(upstream.contiguous()), Wanted(statistics=True, dtype=torch.float32)
    gradients = gradient(operands.score, _GIVEN, operands.pairs, 0, weights, wanted)
    return [g.to(anchor.dtype) for g in operands.backward(gradients)]


def _operands(kind: str, anchor: Tensor, others: Sequence[Tensor], temperature: Tensor) -> _Volumes:
    return _Volumes(kind, anchor, others, -1.0, Scalar.of(temperature.detach(), inverted=True))


def _info_nce(
    anchor: Tensor, others: Sequence[Tensor], temperature: Tensor, kind: str, label_smoothing: float
) -> Tensor:
    operands = _operands(kind, anchor, others, temperature)
    flags = pairwise.info_nce_flags(True, True, label_smoothing)
    return pairwise.losses(operands.score, operands.pairs, flags, label_smoothing)[0].mean()


def info_nce_with_gradient(
    anchor: Tensor,
    others: Sequence[Tensor],
    temperature: Tensor,
    needed: Sequence[bool],
    kind: str,
    label_smoothing: float,
) -> list[Tensor | None]:
    """The mean of two-way InfoNCE with minus the volumes over the temperature as scores, and its gradients.

    Those of anchor and others are float32.
    """
    if not any(needed):
        return [_info_nce(anchor, others, temperature, kind, label_smoothing), *[None] * len(needed)]
    operands = _operands(kind, anchor, others, temperature)
    flags = pairwise.info_nce_flags(True, True, label_smoothing)
    each, row_lse, column_lse = pairwise.losses(operands.score, operands.pairs, flags, label_smoothing)
    factor = 1.0 / anchor.shape[0]
    weights = Weights(None, factor, row_lse, column_lse, label_smoothing)
    wanted = Wanted(statistics=True, sums=1, dtype=torch.float32)
    gradients = pairwise.losses_gradient(operands.score, operands.pairs, flags, weights, wanted)
    grad_temperature = pairwise.temperature_gradient(gradients, temperature, factor)
    return [each.mean(), *operands.backward(gradients), grad_temperature]
