"""Pairwise scores and their reductions in plain PyTorch, with the whole [N, N'] matrix in memory.

The truth that the streaming kernels are tested against, and the last backend.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mibfast._precision import unit
from mibfast.kernels.autocast import without_autocast
from mibfast.kernels.projection import reference as projection


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which scores and log-sum-exps are formed: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@without_autocast
def inner_product(rows: Tensor, columns: Tensor) -> Tensor:
    """Scores q . k of rows [N, d] and columns [N', d]: [N, N']."""
    dtype = accumulation_dtype(rows.dtype)
    return rows.to(dtype) @ columns.to(dtype).mT


def squared_norms(x: Tensor) -> Tensor:
    """Squared Euclidean norms of rows."""
    wide = x.to(accumulation_dtype(x.dtype))
    return (wide * wide).sum(-1)


@without_autocast
def projection_cosine(rows: Tensor, context: Tensor, ridge: float) -> Tensor:
    """Scores cos(q, P_j q) of rows [N, d] and contexts [N', K, d], P_j the ridge projector of context j: [N, N']."""
    dtype = accumulation_dtype(rows.dtype)
    bases, grams = projection.whitened_bases(context, ridge)
    tiles = torch.einsum("id,kjd->kij", unit(rows.to(dtype)), bases.to(dtype))
    numerator = (tiles * tiles).sum(0)
    squared_norm = torch.einsum("kij,jkl,lij->ij", tiles, grams.to(dtype), tiles)
    positive = squared_norm > 0
    norm = squared_norm.masked_fill(~positive, 1.0).sqrt()
    # NaN is not positive, and must stay.
    return torch.where(positive | squared_norm.isnan(), numerator / norm, 0.0)


def scores(score: str, rows: Tensor, columns: Tensor) -> Tensor:
    """Scores [N, N'] of rows [N, d] and columns [N', d] by a score that is named."""
    # The files of scores import this one.
    from mibfast.kernels.pairwise.scores import SCORES

    formula = SCORES[score].formula
    assert formula is not None
    return formula(rows, columns)


def info_nce(
    scores: Tensor,
    offset: int = 0,
    *,
    positive_in_denominator: bool = True,
    symmetric: bool = False,
    label_smoothing: float = 0.0,
) -> Tensor:
    """InfoNCE of each row of scores [N, N'], already divided by the temperature: [N], in nats.

    The positive of row i is column i + offset. Both ways, that column's log-sum-exp is over all rows.
    """

    def one_way(s: Tensor, offset: int) -> Tensor:
        rows = torch.arange(s.shape[0], device=s.device)
        positive = s[rows, rows + offset]
        logits = s
        if not positive_in_denominator:
            mask = torch.zeros_like(s, dtype=torch.bool)
            mask[rows, rows + offset] = True
            logits = s.masked_fill(mask, float("-inf"))
        target = (1 - label_smoothing) * positive
        if label_smoothing:
            target = target + label_smoothing * s.mean(1)
        return torch.logsumexp(logits, dim=1) - target

    losses = one_way(scores, offset)
    if not symmetric:
        return losses
    return 0.5 * (losses + one_way(scores[:, offset : offset + len(scores)].mT, 0))


def partial_lse(scores: Tensor, offset: int, positive_in_denominator: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Positives [N], zero where row i has none at column i + offset, and log-sum-exps of rows [N] and columns [N']."""
    n, n_columns = scores.shape
    own = torch.arange(n, device=scores.device) + offset
    here = (own >= 0) & (own < n_columns)
    positives = torch.where(here, scores.gather(1, own.clamp(0, n_columns - 1)[:, None])[:, 0], 0.0)
    if not positive_in_denominator:
        columns = torch.arange(n_columns, device=scores.device)
        scores = scores.masked_fill(own[:, None] == columns, -torch.inf)
    return positives, torch.logsumexp(scores, 1), torch.logsumexp(scores, 0)
