"""OVA-IB's one-vs-all scores in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mibfast._precision import unit
from mibfast.kernels.pairwise import reference as pairwise
from mibfast.kernels.projection import reference as projection


def scores(embeddings: Sequence[Tensor], ridge: float, keys: str) -> list[Tensor]:
    """Scores [N, N] of each modality as the query: per-sample keys cos(z_i, zbar_j), or pairwise cos(z_i, P_j z_i)."""
    wide = [z.to(pairwise.accumulation_dtype(z.dtype)) for z in embeddings]
    if keys == "per_sample":
        projections = projection.leave_one_out_projection(wide, ridge)
        return [pairwise.inner_product(unit(z), unit(key)) for z, key in zip(wide, projections, strict=True)]
    others = [torch.stack([z for k, z in enumerate(wide) if k != m], dim=1) for m in range(len(wide))]
    return [pairwise.projection_cosine(z, context, ridge) for z, context in zip(wide, others, strict=True)]
