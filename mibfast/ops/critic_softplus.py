"""Softplus sums of a critic's scores of all pairs."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from mibfast import _backend, _check
from mibfast.kernels.critic import reference
from mibfast.ops import _critic
from mibfast.ops._boundary import DifferentiableOperation, accumulation_dtype

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
        return reference.softplus(reference.scores(x, y, parameters, score), positive)
    positives, sums = _softplus(chosen, (x, y, *parameters), _Options(score, positive))
    return positives, sums


class _Options(NamedTuple):
    score: str
    positive: bool


def _results(x: Tensor, *_: Any) -> list[Tensor]:
    return [x.new_empty(x.shape[0], dtype=accumulation_dtype(x.dtype)) for _ in range(2)]


_softplus = DifferentiableOperation(
    _NAME, "critic", _critic.OPERANDS, _results, options=_Options, launcher="softplus", outputs=2
)
