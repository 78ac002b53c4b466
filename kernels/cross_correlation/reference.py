"""Barlow Twins in plain PyTorch, with the d x d cross-correlation in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from mibfast.kernels.autocast import without_autocast

EPS = 1e-5


def standardised(x: Tensor) -> Tensor:
    """Columns of x [N, d] less their mean, over the square root of their biased variance plus 1e-5."""
    centred = x - x.mean(0)
    return centred / (centred.square().mean(0) + EPS).sqrt()


@without_autocast
def barlow_twins(a: Tensor, b: Tensor) -> Tensor:
    """Sums over the cross-correlation C [d, d] of standardised a and b: of (C_ii - 1)^2, and of C_ij^2, i != j: [2]."""
    correlation = standardised(a).mT @ standardised(b) / a.shape[0]
    diagonal = correlation.diagonal()
    off_diagonal = correlation - torch.diag_embed(diagonal)
    return torch.stack([(diagonal - 1).square().sum(), off_diagonal.square().sum()])
