"""Softplus sums of a critic's scores of all pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mibfast import _backend, _check
from mibfast.kernels.critic import reference
from mibfast.ops import _critic
from mibfast.ops._boundary import first_order, of_any_number

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
    r"""Scores of positive pairs, and softplus sums of those of all pairs: what the Jensen-Shannon bound is made of.

    .. math:: p_i = s_{ii}, \qquad S_i = \sum_{j} \log(1 + e^{s_{ij}})

    over all pairs, or over all but the positive (`positive=False`). Scores, and what is not stored, are those of
    :func:`critic_log_sum_exp`. Nowozin et al. (2016, arXiv 1606.00709), Table 2; Hjelm et al. (2019, arXiv 1808.06670),
    Eq. 4.

    Parameters
    ----------
    x, y, weight, bias, hidden, score, positive, backend
        As those of :func:`critic_log_sum_exp`.

    Returns
    -------
    tuple of Tensor
        p [N] and S [N], in nats; float64 for float64 inputs, else float32.

    Raises
    ------
    TypeError, ValueError
        For shapes that do not match, unequal dtypes or devices, parameters that are missing or that the score does not
        have, or N' < N.

    Examples
    --------
    >>> import torch
    >>> from mibfast import functional as F
    >>> F.critic_softplus(torch.eye(3), 2 * torch.eye(3))
    (tensor([2., 2., 2.]), tensor([1.3863, 1.3863, 1.3863]))
    """
    x, y, parameters = _critic.operands(_NAME, x, y, weight, bias, hidden, score)
    _check.boolean(_NAME, "positive", positive)
    chosen = _backend.choose(_NAME, x.device, backend, _critic.offers(x, parameters))
    if chosen == "reference":
        return reference.softplus(reference.scores(x, y, parameters), positive)
    return _CriticSoftplus.apply(chosen, positive, x, y, *parameters)  # type: ignore[no-any-return,no-untyped-call]


class _CriticSoftplus(torch.autograd.Function):
    @staticmethod
    @of_any_number
    def forward(
        ctx: Any, backend: str, positive: bool, x: Tensor, y: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, y, *parameters)
        ctx.backend, ctx.positive = backend, positive
        return _critic.critic_softplus_sums(x, y, list(parameters), positive, backend)  # type: ignore[no-any-return]

    @staticmethod
    @first_order(_NAME)
    def backward(ctx: Any, of_positives: Tensor, of_rows: Tensor) -> Any:
        x, y, *parameters = ctx.saved_tensors
        needed = list(ctx.needs_input_grad[2:])
        gradients = _critic.critic_softplus_sums_backward(
            of_positives, of_rows, x, y, parameters, needed, ctx.positive, ctx.backend
        )
        return None, None, *(g if need else None for g, need in zip(gradients, needed, strict=True))
