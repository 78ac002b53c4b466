"""Ridge projections in plain PyTorch: the truth that the kernels are tested against, and the last backend.

A projection is zbar = A c with c = (A^T A + lambda I)^-1 A^T z. Gram matrices and their factors are float64 whatever
the input: in float32 the paper's lambda = 1e-8 vanishes beside 1 and aligned modalities make the Gram matrix singular.
Where even float64 cannot tell lambda from the rounding of the Gram matrix (exact duplicates at a large scale), lambda
is raised, for each embedding by itself, to 2^-40 of its squared norm, four thousand times that rounding: projections do
not depend on the scale of any embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

RELATIVE_FLOOR = 2.0**-40
SMALLEST_RIDGE = 2.0**-1000


def effective_ridge(gram: Tensor, ridge: float) -> Tensor:
    """The ridge of each float64 Gram matrix [..., K, K] -> [..., K]: no less than the rounding of its rows."""
    squared_norms = gram.detach().diagonal(dim1=-2, dim2=-1)
    return (squared_norms * RELATIVE_FLOOR).clamp(min=max(ridge, SMALLEST_RIDGE))


def cholesky(basis: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Float64 Cholesky factor [..., K, K] of A^T A + ridge for a basis [..., K, d], and the ridge in effect."""
    wide = basis.double()
    gram = wide @ wide.mT
    in_effect = effective_ridge(gram, ridge)
    factor, _ = torch.linalg.cholesky_ex(gram + torch.diag_embed(in_effect))
    return factor, in_effect


def ridge_projection(target: Tensor, basis: Tensor, ridge: float) -> Tensor:
    """Project target [..., d] on basis [..., K, d]: [..., d] in the target's dtype."""
    factor, _ = cholesky(basis, ridge)
    wide = basis.double()
    coefficients = torch.cholesky_solve(wide @ target.double()[..., None], factor)
    return (wide.mT @ coefficients).squeeze(-1).to(target.dtype)


def leave_one_out_projection(embeddings: Sequence[Tensor], ridge: float) -> Tensor:
    """Project each of M embeddings [N, d] on the M - 1 others of its sample: [M, N, d]."""
    projections = []
    for m, target in enumerate(embeddings):
        others = torch.stack([z for k, z in enumerate(embeddings) if k != m], dim=1)
        projections.append(ridge_projection(target, others, ridge))
    return torch.stack(projections)


def whitened_bases(basis: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Whiten bases [N, K, d]: B = A L^-T as [K, N, d] and V = B^T B as [N, K, K], both float64.

    With L L^T = A^T A + lambda I, the projection of q is B B^T q and its squared norm is c^T V c with c = B^T q. V is
    not formed as I - L^-1 lambda L^-T: beside a lambda far above |A|^2 nothing would be left of it.
    """
    factor, _ = cholesky(basis, ridge)
    whitened = torch.linalg.solve_triangular(factor, basis.double(), upper=False)
    return whitened.transpose(0, 1), whitened @ whitened.mT
