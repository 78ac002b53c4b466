"""Log-sum-exps of a critic's scores over all pairs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mibfast import _check
from mibfast.kernels.critic import reference
from mibfast.ops._boundary import accumulation_dtype

__all__ = ["critic_log_sum_exp"]

_NAME = "critic_log_sum_exp"


def critic_scores(
    operation: str,
    x: Tensor,
    y: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    hidden: tuple[Tensor, Tensor] | None,
    score: str,
) -> Tensor:
    """Check a critic's factors, and return its scores [N, N']."""
    _check.choice(operation, "score", score, ("inner_product", "additive"))
    _check.tensor(operation, "x", x, "N d")
    _check.tensor(operation, "y", y, "N' d")
    _check.same_dimension(operation, x=x, y=y)
    wide = accumulation_dtype(torch.promote_types(x.dtype, y.dtype))
    x, y = x.to(wide), y.to(wide)
    if weight is not None:
        weight = weight.to(wide)
        bias = None if bias is None else bias.to(wide)
        hidden = None if hidden is None else (hidden[0].to(wide), hidden[1].to(wide))
    return reference.scores(x, y, weight, bias, hidden)


def critic_log_sum_exp(
    x: Tensor,
    y: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    hidden: tuple[Tensor, Tensor] | None = None,
    *,
    score: str = "inner_product",
    positive: bool = False,
    clip: float | None = None,
    columns: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, ...]:
    """Positives [N], log-sum-exps of rows [N] and, where asked for, of columns [N], of a critic's scores."""
    scores = critic_scores(_NAME, x, y, weight, bias, hidden, score)
    return reference.log_sum_exp(scores, positive, math.inf if clip is None else clip, columns)
