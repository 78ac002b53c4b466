"""Softplus sums of a critic's scores over all pairs."""

from __future__ import annotations

from torch import Tensor

from mibfast.kernels.critic import reference
from mibfast.ops.critic_log_sum_exp import critic_scores

__all__ = ["critic_softplus"]

_NAME = "critic_softplus"


def critic_softplus(
    x: Tensor,
    y: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    hidden: tuple[Tensor, Tensor] | None = None,
    *,
    score: str = "inner_product",
    positive: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Positives [N] and sums over rows of log(1 + e^s) [N], of a critic's scores."""
    return reference.softplus(critic_scores(_NAME, x, y, weight, bias, hidden, score), positive)
