"""Critics' scores of all pairs and their reductions in plain PyTorch, with [N, N', h] in memory for additive scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mibfast.kernels.autocast import without_autocast
from mibfast.kernels.pairwise import reference as pairwise


@without_autocast
def scores(x: Tensor, y: Tensor, parameters: Sequence[Tensor], score: str) -> Tensor:
    """Scores [N, N'] of x [N, d] and y [N', d].

    Without parameters, the named score of two embeddings; with a weight [h] and a bias, w . relu(x_i + y_j) + b; with
    W [g, h] and c [g] too and a weight [g], w . relu(W relu(x_i + y_j) + c) + b.
    """
    if not parameters:
        return pairwise.scores(score, x, y)
    dtype = pairwise.accumulation_dtype(x.dtype)
    weight, bias, *hidden = (p.to(dtype) for p in parameters)
    units = torch.relu(x.to(dtype)[:, None] + y.to(dtype))
    if hidden:
        units = torch.relu(units @ hidden[0].mT + hidden[1])
    return units @ weight + bias


def _without_positives(s: Tensor, positive: bool, fill: float, offset: int = 0) -> Tensor:
    if positive:
        return s
    return s.masked_fill(torch.ones_like(s, dtype=torch.bool).triu(offset).tril(offset), fill)


def log_sum_exp(s: Tensor, positive: bool, clip: float, columns: bool, offset: int = 0) -> tuple[Tensor, ...]:
    """Positives [N], and log-sum-exps of scores in [-clip, clip] over rows [N] and, where asked, columns [N'].

    The positive of row i is column i + offset.
    """
    # As `clamp`, but with the gradient of a NaN, which it takes for zero.
    clamped = torch.where(s.abs() > clip, s.detach().clamp(-clip, clip), s)
    clamped = _without_positives(clamped, positive, -torch.inf, offset)
    sums = [torch.logsumexp(clamped, dim) for dim in ((1, 0) if columns else (1,))]
    return s.diagonal(offset), *sums


def softplus(s: Tensor, positive: bool) -> tuple[Tensor, Tensor]:
    """Positives [N], and sums of softplus over rows [N]."""
    # max(s, 0) + log(1 + e^-|s|): torch's softplus is s itself above 20, which float64 shows.
    terms = torch.logaddexp(s, torch.zeros_like(s))
    return s.diagonal(), _without_positives(terms, positive, 0.0).sum(1)
