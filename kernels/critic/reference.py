"""Scores of a critic over all pairs, and their sums, in plain PyTorch, with the whole [N, N'] matrix in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from mibfast.kernels.autocast import without_autocast


@without_autocast
def scores(
    x: Tensor, y: Tensor, weight: Tensor | None, bias: Tensor | None, hidden: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Inner products of x [N, d] and y [N', d], or where there is a weight w . relu(u_i + v_j) + b: [N, N']."""
    if weight is None:
        return x @ y.mT
    units = torch.relu(x[:, None] + y)
    if hidden is not None:
        units = torch.relu(units @ hidden[0].mT + hidden[1])
    result = units @ weight
    return result if bias is None else result + bias


def _without_positives(s: Tensor, value: float) -> Tensor:
    return s.masked_fill(torch.eye(*s.shape, dtype=torch.bool, device=s.device), value)


def log_sum_exp(s: Tensor, positive: bool, clip: float, columns: bool) -> tuple[Tensor, ...]:
    """Positives [N], log-sum-exps of rows [N] and, where asked for, of columns [N']."""
    clamped = s.clamp(-clip, clip)
    if not positive:
        clamped = _without_positives(clamped, float("-inf"))
    rows = torch.logsumexp(clamped, 1)
    return (s.diagonal(), rows, torch.logsumexp(clamped, 0)) if columns else (s.diagonal(), rows)


def softplus(s: Tensor, positive: bool) -> tuple[Tensor, Tensor]:
    """Positives [N], and sums of log(1 + e^s) over rows [N]."""
    terms = torch.logaddexp(s, torch.zeros_like(s))
    return s.diagonal(), (terms if positive else _without_positives(terms, 0.0)).sum(1)
