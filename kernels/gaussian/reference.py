"""Gaussian terms in plain PyTorch: KL, product of experts, one-vs-all minimality."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gaussian_kl(mean: Tensor, logvar: Tensor, prior_mean: Tensor | None, prior_logvar: Tensor | None) -> Tensor:
    """KL(N(mean, e^logvar) || N(prior_mean, e^prior_logvar)) summed over the last dimension: [N], in nats."""
    if prior_mean is None or prior_logvar is None:
        return 0.5 * (mean * mean + torch.expm1(logvar) - logvar).sum(-1)
    difference = logvar - prior_logvar
    distance = (mean - prior_mean) * torch.exp(-0.5 * prior_logvar)
    return 0.5 * (distance * distance + torch.expm1(difference) - difference).sum(-1)


def product_of_experts(means: Tensor, logvars: Tensor) -> tuple[Tensor, Tensor]:
    """Product of M Gaussians [M, N, d]: mean and log-variance [N, d]."""
    logvar = -torch.logsumexp(-logvars, dim=0)
    return (torch.exp(logvar - logvars) * means).sum(0), logvar


def one_vs_all_minimality(embeddings: Sequence[Tensor]) -> Tensor:
    """OVA-IB Eq. 18-19 of M embeddings [N, d], literally: [M, N], the mean over both still to be taken."""
    total = torch.stack(tuple(embeddings)).sum(0)
    m = len(embeddings)
    return torch.stack([((z - (total - z) / (m - 1)) ** 2).sum(-1) for z in embeddings])
