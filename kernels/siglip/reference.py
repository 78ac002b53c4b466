"""SigLIP's loss in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def siglip(scores: Tensor, scale: float | Tensor, bias: float | Tensor, offset: int = 0) -> Tensor:
    """Binary cross-entropies of all pairs, summed over each row of scores [N, N']: [N], in nats.

    The positive of row i is column i + offset.
    """
    rows = torch.arange(scores.shape[0], device=scores.device)
    signs = -torch.ones_like(scores)
    signs[rows, rows + offset] = 1.0
    return -torch.nn.functional.logsigmoid(signs * (scale * scores + bias)).sum(1)
