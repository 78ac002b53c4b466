"""The mean softplus of a critic's scores of all negatives."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mibfast import _backend, _check
from mibfast.ops import _critic
from mibfast.ops._boundary import OperationWithGradient, accumulation_dtype, differentiated
from mibfast.ops.critic_log_mean_exp import critic_log_mean_exp
from mibfast.ops.critic_softplus import critic_softplus

__all__ = ["critic_mean_softplus"]

_NAME = "critic_mean_softplus"


def critic_mean_softplus(
    x: Tensor,
    y: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    hidden: tuple[Tensor, Tensor] | None = None,
    *,
    score: str = "inner_product",
    positives: bool = False,
    log_mean_exp: bool = False,
    clip: float | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, ...]:
    r"""Mean softplus over all negatives, which trains SMILE and JS, and beside it what their values are made of.

    .. math:: T = \frac1{N (N' - 1)} \sum_i \sum_{j \ne i} \log(1 + e^{s_{ij}})

    or, with positives, the logistic loss that tells pairs that belong together from those that do not,

    .. math:: T + \frac1N \sum_i \log(1 + e^{-s_{ii}}),

    and :math:`\ell` of :func:`critic_log_mean_exp`, without a gradient. As there, one upstream gradient lets the CPU
    form the loss's gradient in the sweep that finds the loss, and :math:`\ell` comes from the same scores. Song and
    Ermon (2020, arXiv 1910.06222), Eq. 9, and their released code, whose SMILE has this gradient and that value.

    Parameters
    ----------
    x, y, weight, bias, hidden, score, backend
        As those of :func:`critic_log_sum_exp`; N' >= 2.
    positives : bool
        Add the loss of positives, and give the mean of their scores.
    log_mean_exp : bool
        Give :math:`\ell` too.
    clip : float, optional
        t > 0, of the scores in :math:`\ell`.

    Returns
    -------
    Tensor or tuple of Tensor
        The loss, T or the logistic one; with log_mean_exp then :math:`\ell`; with positives last their mean. Only the
        loss has a gradient. All are scalars, in nats; float64 for float64 inputs, else float32.

    Raises
    ------
    TypeError, ValueError
        For what :func:`critic_log_mean_exp` raises, or a clip without `log_mean_exp`.

    Examples
    --------
    >>> import torch
    >>> from mibfast import functional as F
    >>> F.critic_mean_softplus(torch.eye(3), 2 - torch.eye(3), log_mean_exp=True, clip=1.5)
    (tensor(2.1269), tensor(1.5000))
    >>> loss, mean_of_positives = F.critic_mean_softplus(torch.eye(3), 2 - torch.eye(3), positives=True)
    >>> loss, mean_of_positives  # 2.1269 + log(1 + 1 / e)
    (tensor(2.4402), tensor(1.))
    """
    x, y, parameters = _critic.operands(_NAME, x, y, weight, bias, hidden, score)
    _check.pairs(_NAME, y.shape[0])
    bound = _critic.bound(_NAME, clip)
    for argument, flag in (("positives", positives), ("log_mean_exp", log_mean_exp)):
        _check.boolean(_NAME, argument, flag)
    if clip is not None and not log_mean_exp:
        raise ValueError(f"{_NAME}: a clip is for log_mean_exp=True, got clip = {clip}")
    chosen = _backend.choose(_NAME, x.device, backend, _critic.offers(x, parameters))
    if chosen in _critic.FUSED and differentiated((x, y, *parameters)):
        options = _Options(score, positives, log_mean_exp, bound)
        mean, value, mean_positive = _mean_softplus(chosen, (x, y, *parameters), options)
        results = [mean, *([value] if log_mean_exp else []), *([mean_positive] if positives else [])]
    else:
        arguments: tuple[Any, ...] = (x, y, weight, bias, hidden)
        own, sums = critic_softplus(*arguments, score=score, backend=chosen)
        mean = sums.mean() / (y.shape[0] - 1)
        results = [mean - torch.nn.functional.logsigmoid(own).mean() if positives else mean]
        with torch.no_grad():
            if log_mean_exp:
                results.append(critic_log_mean_exp(*arguments, score=score, clip=clip, backend=chosen))
            if positives:
                results.append(own.mean())
    return tuple(results) if len(results) > 1 else results[0]


class _Options(NamedTuple):
    score: str
    positives: bool
    log_mean_exp: bool
    clip: float


def _values(x: Tensor, *_: Any) -> list[Tensor]:
    """The loss, and the log-mean-exp and the mean of positives, which have no gradient."""
    return [x.new_empty((), dtype=accumulation_dtype(x.dtype)) for _ in range(3)]


_mean_softplus = OperationWithGradient(
    _NAME, "critic", _critic.OPERANDS, _values, options=_Options, launcher="mean_softplus", outputs=3
)
