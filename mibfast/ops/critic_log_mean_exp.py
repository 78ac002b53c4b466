"""The logarithm of the mean exponential of a critic's scores of all negatives."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mibfast import _backend, _check
from mibfast.ops import _critic
from mibfast.ops._boundary import OperationWithGradient, accumulation_dtype, differentiated
from mibfast.ops.critic_log_sum_exp import critic_log_sum_exp

__all__ = ["critic_log_mean_exp"]

_NAME = "critic_log_mean_exp"


def critic_log_mean_exp(
    x: Tensor,
    y: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    hidden: tuple[Tensor, Tensor] | None = None,
    *,
    score: str = "inner_product",
    clip: float | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Logarithm of the mean exponential over all negatives: the partition function of DV, NWJ, TUBA, MINE and SMILE.

    .. math:: \ell = \log \frac1{N (N' - 1)} \sum_i \sum_{j \ne i} e^{\operatorname{clamp}(s_{ij}, -t, t)}

    Scores, and what is not stored, are those of :func:`critic_log_sum_exp`, whose log-sum-exps of rows give the same.
    Here the upstream gradient is one number, so on the CPU the gradient is formed in the sweep that finds the value,
    if there is no clip and the score needs no norms: 3 GEMMs of the scores' shape in place of 4.

    Parameters
    ----------
    x, y, weight, bias, hidden, score, clip, backend
        As those of :func:`critic_log_sum_exp`; N' >= 2.

    Returns
    -------
    Tensor
        A scalar in nats; float64 for float64 inputs, else float32.

    Raises
    ------
    TypeError, ValueError
        For what :func:`critic_log_sum_exp` raises, or N' = 1.

    Examples
    --------
    >>> import torch
    >>> from mibfast import functional as F
    >>> F.critic_log_mean_exp(torch.eye(3), 2 - torch.eye(3))
    tensor(2.)
    """
    x, y, parameters = _critic.operands(_NAME, x, y, weight, bias, hidden, score)
    _check.pairs(_NAME, y.shape[0])
    chosen = _backend.choose(_NAME, x.device, backend, _critic.offers(x, parameters))
    _critic.bound(_NAME, clip)
    # A row's weight is known after its scores, and by then the gradients of norms have been added.
    in_one_sweep = clip is None and not _critic.has_norms(score)
    if in_one_sweep and chosen in _critic.FUSED and differentiated((x, y, *parameters)):
        return _log_mean_exp(chosen, (x, y, *parameters), _Options(score))[0]
    _, rows = critic_log_sum_exp(x, y, weight, bias, hidden, score=score, clip=clip, backend=chosen)
    return torch.logsumexp(rows, 0) - math.log(x.shape[0] * (y.shape[0] - 1))


class _Options(NamedTuple):
    score: str


def _value(x: Tensor, *_: Any) -> list[Tensor]:
    return [x.new_empty((), dtype=accumulation_dtype(x.dtype))]


_log_mean_exp = OperationWithGradient(
    _NAME, "critic", _critic.OPERANDS, _value, options=_Options, launcher="log_mean_exp"
)
