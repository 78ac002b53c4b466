"""Symile in plain PyTorch, with all N^M logits, or N x N for shuffled negatives, in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mibfast.kernels.autocast import without_autocast

_AXES = "abcdefghijklm"


@without_autocast
def scores(z: Sequence[Tensor]) -> Tensor:
    """Multilinear inner products of all combinations of samples, T[i, j, ...] = sum_d x_id y_jd ...: [N] * M."""
    axes = _AXES[: len(z)]
    return torch.einsum(",".join(f"{axis}z" for axis in axes) + "->" + axes, *z)


def all_negatives(logits: Tensor) -> Tensor:
    """Symile of logits [N] * M: the mean over anchors of the cross-entropy over all combinations of the others."""
    m, n = logits.ndim, logits.shape[0]
    samples = torch.arange(n, device=logits.device)
    positive = logits[(samples,) * m]
    lse = torch.stack([torch.logsumexp(logits.movedim(k, 0).reshape(n, -1), dim=1) for k in range(m)])
    return (lse - positive).mean()


@without_autocast
def shuffled_negatives(z: Sequence[Tensor], scale: float | Tensor, permutations: Tensor) -> Tensor:
    """Symile whose negatives of anchor m are products of the others, the k-th of them shuffled by permutations[m, k].

    The diagonal holds the true products.
    """
    target = torch.arange(z[0].shape[0], device=z[0].device)
    diagonal = torch.eye(len(target), dtype=torch.bool, device=target.device)
    losses = []
    for m, anchor in enumerate(z):
        others = [x for k, x in enumerate(z) if k != m]
        positive, key = others[0], others[0][permutations[m, 0]]
        for k, x in enumerate(others[1:], start=1):
            positive, key = positive * x, key * x[permutations[m, k]]
        logits = torch.where(diagonal, (anchor * positive).sum(1)[:, None], anchor @ key.mT)
        losses.append(torch.nn.functional.cross_entropy(scale * logits, target))
    return torch.stack(losses).mean()
