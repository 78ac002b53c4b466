"""Gram volumes and triangle areas of all pairs in plain PyTorch, with the whole [N, N'] matrix in memory.

The truth that the streaming kernels are tested against, and the last backend. What belongs to one sample (bases, sides,
the volume of a sample's own vectors) is float64 whatever the input: modalities that align, as training wants them to,
leave nothing of a determinant in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mibfast.kernels.autocast import without_autocast
from mibfast.kernels.pairwise.reference import accumulation_dtype

# A vector whose distance to the span of those before it is below this share of its length is taken to lie in it: what
# Gram-Schmidt leaves of an exact duplicate is 1e-16 of it.
RELATIVE_FLOOR = 2.0**-44

GRAM, TRIANGLE, SQUARED_TRIANGLE = "gram", "triangle", "squared_triangle"


def square_root(x: Tensor) -> Tensor:
    """The square root, 0 with gradient 0 where x <= 0."""
    low = x <= 0
    return x.masked_fill(low, 1.0).sqrt().masked_fill(low, 0.0)


def middle(b: Tensor) -> Tensor:
    """The mean [d] in float64 of samples [N, d], what is not finite counted as zero."""
    return b.detach().nan_to_num(0.0, 0.0, 0.0).mean(0, dtype=torch.float64)


def orthonormal(vectors: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Gram-Schmidt, twice over, of K vectors [N, d] of each sample: K bases [N, d], and the volume they span [N].

    Both float64. A vector that depends on those before it has the basis 0, and the volume is 0, with gradient 0.
    """
    bases: list[Tensor] = []
    volume = torch.ones(vectors[0].shape[0], dtype=torch.float64, device=vectors[0].device)
    for vector in vectors:
        wide = vector.double()
        rest = wide
        for _ in range(2):
            for basis in bases:
                rest = rest - (rest * basis).sum(-1, keepdim=True) * basis
        squared = (rest * rest).sum(-1)
        # Of a vector that holds infinity both sides are infinite; it depends on nothing, and its volume is NaN.
        dependent = (squared <= RELATIVE_FLOOR**2 * (wide * wide).sum(-1).detach()) & (squared < torch.inf)
        norm = square_root(squared.masked_fill(dependent, 0.0))
        bases.append((rest / norm.masked_fill(dependent, 1.0)[:, None]).masked_fill(dependent[:, None], 0.0))
        volume = volume * norm
    return bases, volume


def _with_own(volumes: Tensor, own: Tensor) -> Tensor:
    """Volumes [N, N'] with those of each sample's own vectors on the diagonal."""
    return torch.diagonal_scatter(volumes, own.to(volumes.dtype))


@without_autocast
def gram_volumes(anchor: Tensor, others: Sequence[Tensor]) -> Tensor:
    """The volume that anchor i spans with the others of sample j: sqrt(det G_j (|a_i|^2 - sum_k (a_i . b_jk)^2))."""
    dtype = accumulation_dtype(anchor.dtype)
    bases, volume = orthonormal(others)
    a = anchor.to(dtype)
    squared_distance = (a * a).sum(-1)[:, None]
    for basis in bases:
        squared_distance = squared_distance - (a @ basis.to(dtype).mT) ** 2
    n = min(len(anchor), len(others[0]))
    _, own = orthonormal([*(x[:n] for x in others), anchor[:n]])
    return _with_own(square_root(squared_distance) * volume.to(dtype), own)


@without_autocast
def triangle_areas(a: Tensor, b: Tensor, c: Tensor, squared: bool) -> Tensor:
    """The area of the triangle of a_i, b_j and c_j, or twice its square: half the side b_j c_j times a_i's distance.

    That distance is to the line through p_j along w_j, where p_j is the line's point nearest to the origin. The origin
    is put where the b_j are: areas do not depend on it, but inner products lose what is far from it.
    """
    dtype = accumulation_dtype(a.dtype)
    origin = middle(b).to(dtype)
    bases, side = orthonormal([c.double() - b.double()])
    (along,) = bases
    from_origin = b.double() - origin.double()
    point = from_origin - (from_origin * along).sum(-1, keepdim=True) * along
    x = a.to(dtype) - origin
    to_point = (x * x).sum(-1)[:, None] - 2 * x @ point.to(dtype).mT + (point * point).sum(-1).to(dtype)
    squared_distance = to_point - (x @ along.to(dtype).mT) ** 2
    n = min(len(a), len(b))
    _, own = orthonormal([(c[:n].double() - b[:n].double()), a[:n].double() - b[:n].double()])
    if squared:
        return _with_own(squared_distance.clamp(min=0.0) * (0.5 * side**2).to(dtype), 0.5 * own**2)
    return _with_own(square_root(squared_distance) * (0.5 * side).to(dtype), 0.5 * own)


def volumes(kind: str, anchor: Tensor, others: Sequence[Tensor]) -> Tensor:
    """Gram volumes, triangle areas or twice their squares of anchors [N, d] and others [N', d]: [N, N']."""
    if kind == GRAM:
        return gram_volumes(anchor, others)
    b, c = others
    return triangle_areas(anchor, b, c, kind == SQUARED_TRIANGLE)
