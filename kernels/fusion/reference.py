"""What a fusion of Gaussian latents does between its matrix products, in plain PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def reparameterised_gaussian(mean: Tensor, logvar: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """A sample [..., d] of N(mean, e^logvar) by its noise, and KL(N(mean, e^logvar) || N(0, I)) [...] in nats."""
    divergence = 0.5 * (mean * mean + torch.expm1(logvar) - logvar).sum(-1)
    return mean + torch.exp(0.5 * logvar) * noise, divergence


def token_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot-product attention among the M tokens of each sample, [N, M, k] each."""
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    return scores.softmax(-1) @ value
