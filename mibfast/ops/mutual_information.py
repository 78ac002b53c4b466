"""Estimates of mutual information from a critic's scores of pairs."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from mibfast import _check
from mibfast.kernels.critic import reference
from mibfast.ops._boundary import accumulation_dtype

__all__ = ["mutual_information"]

_NAME = "mutual_information"
ESTIMATORS = ("infonce", "nwj", "tuba", "dv", "mine", "smile", "js_fgan", "js", "clip")
# What the gradient maximises, where that is not the value.
OBJECTIVES = {"smile": "js_fgan", "js": "js_fgan"}
# The released floor of MINE's moving average.
_LEAST_LOG_AVERAGE = math.log(1e-4)


def mutual_information(
    scores: Tensor,
    estimator: str,
    *,
    clip: float | None = 5.0,
    clip_joint: bool = False,
    buffer: Tensor | None = None,
    momentum: float = 0.9,
) -> Tensor:
    r"""Estimate of the mutual information of X and Y from the scores of all pairs of a batch.

    With positives :math:`s_{ii}`, negatives :math:`s_{ij}, j \ne i`, their number :math:`N (N - 1)`, and :math:`\ell`
    the logarithm of the mean of :math:`e^{s}` over the negatives:

    ============  ========================================================================  ======================
    estimator     value                                                                     gradient, where another
    ============  ========================================================================  ======================
    "infonce"     mean of :math:`s_{ii} - \log \frac1N \sum_j e^{s_{ij}}`
    "clip"        the mean of "infonce" over rows and over columns
    "dv"          mean of :math:`s_{ii}`, less :math:`\ell`
    "tuba"        1 + mean of :math:`s_{ii}`, less :math:`e^\ell`
    "nwj"         mean of :math:`s_{ii}`, less :math:`e^{\ell - 1}`
    "mine"        "dv"                                                                      of "dv" with a moving
                                                                                            average of :math:`e^\ell`
    "js_fgan"     minus the means of softplus(:math:`-s_{ii}`) and softplus(:math:`s_{ij}`)
    "js"          "nwj"                                                                     of "js_fgan"
    "smile"       "dv", the negatives clamped to [-clip, clip]                              of "js_fgan"
    ============  ========================================================================  ======================

    Maximise the result to train the critic. "infonce" and "clip" cannot exceed ln N, whatever the truth is; "dv",
    "nwj", "tuba", "mine" and "js" are unbiased or nearly so, with a variance that grows exponentially with the truth;
    "smile" bounds that variance by its clip, at a bias; "js_fgan" is no estimate of mutual information but of a
    divergence, at most 0 here. Sources: van den Oord et al. (2018) for "infonce"; Nguyen et al. (2010) for "nwj";
    Poole et al. (2019), Eq. 6 for "tuba"; Donsker and Varadhan (1983); Belghazi et al. (2018) for "mine"; Hjelm et al.
    (2019) for "js"; Song and Ermon (2020), Eq. 9 for "smile", all as in the latter's released code.

    Parameters
    ----------
    scores : Tensor [N, N]
        Scores of x_i with y_j, the positives on the diagonal, N >= 2; float64, float32, bfloat16 or float16.
    estimator : str
        A name of the table.
    clip : float or None
        Of "smile": positive, or None to leave the negatives as they are.
    clip_joint : bool
        Of "smile": clamp positives, and the scores that the gradient is of, as well, as NeuralMI does.
    buffer : 0-d Tensor, optional
        Of "mine": the logarithm of the moving average of :math:`e^\ell`, updated in place unless the batch gives none
        that is finite; zero to begin with, as the released code begins. Without one, every batch begins anew.
    momentum : float
        Of "mine": the weight of the average so far, in [0, 1).

    Returns
    -------
    Tensor
        A scalar in nats; float64 for float64 scores, else float32. An exponential beyond the dtype's range is held at
        the end of it, and so is its gradient; NaN gives NaN.

    Raises
    ------
    TypeError, ValueError
        For scores that are not square or of a single sample, an unknown estimator, or options out of range or of
        another estimator.

    Examples
    --------
    >>> import torch
    >>> from mibfast import functional as F
    >>> F.mutual_information(4 * torch.eye(8), "infonce")
    tensor(1.9588)
    >>> F.mutual_information(4 * torch.eye(8), "smile", clip=1.0)
    tensor(4.)
    """
    _check.tensor(_NAME, "scores", scores, "N N")
    _check.choice(_NAME, "estimator", estimator, ESTIMATORS)
    if scores.shape[0] != scores.shape[1]:
        raise ValueError(f"{_NAME}: scores must be square, [N, N], got {_check.described(scores)}")
    _check.pairs(_NAME, scores.shape[0])
    clip = check_options(_NAME, estimator, clip=clip, buffer=buffer, momentum=momentum, device=scores.device)
    if clip_joint and (estimator != "smile" or clip is None):
        raise ValueError(f'{_NAME}: clip_joint is for estimator="smile" with a clip, got {estimator!r} and clip {clip}')
    scores = scores.to(accumulation_dtype(scores.dtype))
    if clip_joint and clip is not None:
        scores = scores.clamp(-clip, clip)
    return estimate(_DensePairs(scores), estimator, clip=clip, buffer=buffer, momentum=momentum)


def check_options(
    operation: str,
    estimator: str,
    *,
    clip: float | None,
    buffer: Tensor | None,
    momentum: float,
    device: torch.device,
) -> float | None:
    """Check the options of estimators, and return the clip."""
    if clip is not None and not _check.number(operation, "clip", clip, 0.0):
        raise ValueError(f"{operation}: clip must be positive, or None, got {clip}")
    if _check.number(operation, "momentum", momentum, 0.0, 1.0) == 1.0:
        raise ValueError(f"{operation}: momentum must be below 1, where the average would never move, got {momentum}")
    if buffer is not None:
        if estimator != "mine":
            raise ValueError(f'{operation}: a buffer is for estimator="mine", got {estimator!r}')
        if not isinstance(buffer, Tensor) or buffer.ndim or buffer.requires_grad or buffer.device != device:
            raise ValueError(
                f"{operation}: buffer must be a 0-d tensor on {device} without a gradient, "
                f"got {_check.described(buffer)}"
            )
    return None if clip is None else float(clip)


class Pairs(Protocol):
    """Sums over the scores of N pairs that belong together, the positives, and of pairs that do not."""

    count: int

    def log_sum_exps(self, columns: bool) -> tuple[Tensor, ...]:
        """Return positives [N] and log-sum-exps [N] of rows and, where asked for, columns, positives included."""

    def log_mean_exp(self, clip: float | None) -> tuple[Tensor, Tensor]:
        """Return positives [N], and the logarithm of the mean of e^s over the negatives, which are clamped first."""

    def softplus(self) -> tuple[Tensor, Tensor]:
        """Return positives [N], and the mean of log(1 + e^s) over the negatives."""


class _DensePairs:
    def __init__(self, scores: Tensor) -> None:
        self.scores, self.count = scores, scores.shape[0]

    def log_sum_exps(self, columns: bool) -> tuple[Tensor, ...]:
        return reference.log_sum_exp(self.scores, True, math.inf, columns)

    def log_mean_exp(self, clip: float | None) -> tuple[Tensor, Tensor]:
        positives, rows = reference.log_sum_exp(self.scores, False, math.inf if clip is None else clip, False)
        return positives, mean_of_rows(rows)

    def softplus(self) -> tuple[Tensor, Tensor]:
        positives, sums = reference.softplus(self.scores, False)
        return positives, sums.mean() / (self.count - 1)


def mean_of_rows(rows: Tensor) -> Tensor:
    """Return the logarithm of the mean of e^s over all negatives, from each row's log-sum-exp [N] of N - 1 of them."""
    n = rows.shape[0]
    return torch.logsumexp(rows, 0) - math.log(n * (n - 1))


def estimate(
    pairs: Pairs, estimator: str, *, clip: float | None, buffer: Tensor | None = None, momentum: float = 0.9
) -> Tensor:
    """Return the value of an estimator, differentiable as its objective."""
    if estimator in ("infonce", "clip"):
        positives, *sums = pairs.log_sum_exps(columns=estimator == "clip")
        return math.log(pairs.count) + (positives - torch.stack(sums).mean(0)).mean()
    if estimator == "js_fgan":
        positives, softplus = pairs.softplus()
        return torch.nn.functional.logsigmoid(positives).mean() - softplus
    if estimator in OBJECTIVES:
        with torch.no_grad():
            if estimator == "js":
                value = estimate(pairs, "nwj", clip=None)
            else:
                positives, log_mean = pairs.log_mean_exp(clip)
                value = positives.mean() - log_mean
        return _differentiated_as(value, estimate(pairs, OBJECTIVES[estimator], clip=None))
    positives, log_mean = pairs.log_mean_exp(None)
    if estimator == "dv":
        return positives.mean() - log_mean
    if estimator == "tuba":
        return 1.0 + positives.mean() - _held_exponential(log_mean)
    if estimator == "nwj":
        return positives.mean() - _held_exponential(log_mean - 1.0)
    average = _moved_average(log_mean.detach(), buffer, momentum)
    # At most 1 / (1 - momentum): the average holds that share of this batch.
    return _differentiated_as(
        positives.mean().detach() - log_mean.detach(), positives.mean() - torch.exp(log_mean - average)
    )


def _differentiated_as(value: Tensor, surrogate: Tensor) -> Tensor:
    """Return a value with the gradient of another."""
    return value + (surrogate - surrogate.detach())


def _held_exponential(x: Tensor) -> Tensor:
    """e^x, held where it leaves the dtype's range; the gradient is the value throughout."""
    most = math.floor(math.log(torch.finfo(x.dtype).max))
    held = torch.exp(x.clamp(max=most))
    # The clamp would let no gradient through, just where it is steepest.
    return torch.where(x > most, held.detach() * (1.0 + (x - x.detach())), held)


def _moved_average(log_mean: Tensor, buffer: Tensor | None, momentum: float) -> Tensor:
    """Return the logarithm of the moving average with this batch in it, and keep it in the buffer."""
    before = torch.zeros_like(log_mean) if buffer is None else buffer.to(log_mean.dtype)
    after = log_mean + math.log1p(-momentum)
    if momentum:
        after = torch.logaddexp(before + math.log(momentum), after)
    after = after.clamp(min=_LEAST_LOG_AVERAGE)
    if buffer is not None:
        buffer.copy_(torch.where(after.isfinite(), after.to(buffer.dtype), buffer))
    return after
