"""Estimates of mutual information from a critic's scores of pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mibfast import _check
from mibfast.kernels.critic import reference
from mibfast.ops._boundary import accumulation_dtype

__all__ = ["mutual_information"]

_NAME = "mutual_information"
# The released floor of MINE's moving average.
_LEAST_LOG_AVERAGE = math.log(1e-4)


@dataclass(frozen=True)
class Estimator:
    """An estimator of :func:`mibfast.functional.mutual_information`, which has its formula.

    Attributes
    ----------
    title, help : str
        Its name in tables and messages, and one line about it.
    capped : bool
        Whether it is at most ln N: it compares each positive with all pairs of its row, and needs all of them.
    exponential : bool
        Whether a single pair with a large score can make up its whole gradient.
    objective : str, optional
        The estimator that its gradient maximises, where that is not its value.
    """

    title: str
    help: str
    capped: bool = False
    exponential: bool = False
    objective: str | None = None


ESTIMATORS = {
    "infonce": Estimator("InfoNCE", "A bound of little variance, at most ln N.", capped=True),
    "nwj": Estimator("NWJ", "A bound for few nats: its variance grows exponentially.", exponential=True),
    "tuba": Estimator("TUBA", "A bound for few nats: its variance grows exponentially.", exponential=True),
    "dv": Estimator("Donsker-Varadhan", "A bound for few nats: its variance grows exponentially.", exponential=True),
    "mine": Estimator("MINE", "Donsker-Varadhan, trained with a moving average.", exponential=True),
    "smile": Estimator(
        "SMILE", "Donsker-Varadhan with clamped negatives; steady, and not capped.", objective="js_fgan"
    ),
    "js_fgan": Estimator("JS-fGAN", "The Jensen-Shannon objective itself, at most 0: no estimate of information."),
    "js": Estimator(
        "JS",
        "The value of NWJ, trained by the Jensen-Shannon objective: 1 / e low at its optimum.",
        objective="js_fgan",
    ),
    "js_tuba": Estimator("JS-TUBA", "The value of TUBA, trained by the Jensen-Shannon objective.", objective="js_fgan"),
    "clip": Estimator("CLIP", "InfoNCE in both directions, at most ln N.", capped=True),
}


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
    "js_tuba"     "tuba"                                                                    of "js_fgan"
    "smile"       "dv", the negatives clamped to [-clip, clip]                              of "js_fgan"
    ============  ========================================================================  ======================

    Maximise the result to train the critic. "infonce" and "clip" cannot exceed ln N, whatever the truth is. With the
    critic that their gradient leads to, "dv", "mine", "nwj", "tuba" and "js_tuba" are I(X; Y), on average and for large
    N, with a variance that grows exponentially with it; "smile" bounds that variance by its clip, at a bias. "js" is
    I(X; Y) - 1 / e, 0.37 nats low: its gradient leads to s = ln p(x, y) / (p(x) p(y)), and NWJ's best critic is 1 + s,
    which "js_tuba" gives the value of. "js_fgan" is no estimate of mutual information but twice the Jensen-Shannon
    divergence of p(x, y) and p(x) p(y), less 2 ln 2: at most 0.

    Sources: van den Oord et al. (2018) for "infonce"; Nguyen et al. (2010) for "nwj"; Poole et al. (2019), Eq. 6 for
    "tuba", and for "js_tuba", their Jensen-Shannon estimate; Donsker and Varadhan (1983); Belghazi et al. (2018) for
    "mine"; Hjelm et al. (2019) for "js"; Song and Ermon (2020), Eq. 9 for "smile", and their released code for "js", as
    for all but "js_tuba".

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
        that is finite; zero to begin with, as the released code begins. Without one, every batch begins again.
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
    _check.choice(_NAME, "estimator", estimator, tuple(ESTIMATORS))
    if scores.shape[0] != scores.shape[1]:
        raise ValueError(f"{_NAME}: scores must be square, [N, N], got {_check.described(scores)}")
    _check.pairs(_NAME, scores.shape[0])
    buffer = _check.zero_dimensional(buffer)
    clip = check_options(_NAME, estimator, clip=clip, buffer=buffer, momentum=momentum, device=scores.device)
    if _check.boolean(_NAME, "clip_joint", clip_joint) and (estimator != "smile" or clip is None):
        raise ValueError(f'{_NAME}: clip_joint is for estimator="smile" with a clip, got {estimator!r} and clip {clip}')
    scores = scores.to(accumulation_dtype(scores.dtype))
    if clip_joint and clip is not None:
        scores = scores.clamp(-clip, clip)
    return estimate(_DensePairs(scores), scores.shape[0], estimator, clip=clip, buffer=buffer, momentum=momentum)


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
        fits = isinstance(buffer, Tensor) and not buffer.ndim and buffer.is_floating_point()
        if not fits or buffer.requires_grad or buffer.device != device:
            raise ValueError(
                f"{operation}: buffer must be a 0-d tensor of a floating-point number on {device} without a gradient, "
                f"got {_check.described(buffer)}"
            )
    return None if clip is None else float(clip)


class Pairs(Protocol):
    """Sums over the scores of N pairs that belong together, the positives, and of pairs that do not."""

    def positives(self) -> Tensor:
        """Return positives [N]."""

    def info_nce(self, columns: bool) -> Tensor:
        """Return the mean over rows, or over rows and columns, of log-sum-exps less positives, which take part."""

    def log_mean_exp(self, clip: float | None) -> Tensor:
        """Return the logarithm of the mean of e^s over the negatives, which are clamped first."""

    def logistic_loss(self) -> Tensor:
        """Return the mean of log(1 + e^s) over the negatives and that of log(1 + e^-s) over the positives, added."""

    def logistic_loss_and_value(self, clip: float | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logistic loss and, without gradients, `log_mean_exp` and the mean of the positives."""


class _DensePairs:
    def __init__(self, scores: Tensor) -> None:
        self.scores, self.count = scores, scores.shape[0]

    def positives(self) -> Tensor:
        return self.scores.diagonal()

    def info_nce(self, columns: bool) -> Tensor:
        positives, *sums = reference.log_sum_exp(self.scores, True, math.inf, columns)
        return (torch.stack(sums).mean(0) - positives).mean()

    def log_mean_exp(self, clip: float | None) -> Tensor:
        _, rows = reference.log_sum_exp(self.scores, False, math.inf if clip is None else clip, False)
        return torch.logsumexp(rows, 0) - math.log(self.count * (self.count - 1))

    def logistic_loss(self) -> Tensor:
        positives, sums = reference.softplus(self.scores, False)
        return sums.mean() / (self.count - 1) - torch.nn.functional.logsigmoid(positives).mean()

    def logistic_loss_and_value(self, clip: float | None) -> tuple[Tensor, Tensor, Tensor]:
        return self.logistic_loss(), self.log_mean_exp(clip).detach(), self.positives().detach().mean()


def estimate(
    pairs: Pairs,
    count: int,
    estimator: str,
    *,
    clip: float | None,
    buffer: Tensor | None = None,
    momentum: float = 0.9,
) -> Tensor:
    """Return the value of an estimator for a batch of `count` samples, differentiable as its objective."""
    if estimator in ("infonce", "clip"):
        return math.log(count) - pairs.info_nce(columns=estimator == "clip")
    if estimator == "js_fgan":
        return -pairs.logistic_loss()
    if ESTIMATORS[estimator].objective is not None:
        loss, log_mean, mean = pairs.logistic_loss_and_value(clip if estimator == "smile" else None)
        if estimator == "smile":
            value = mean - log_mean
        else:
            # "js_tuba" is "js" of the scores plus 1.
            shift = 1.0 if estimator == "js_tuba" else 0.0
            value = mean + shift - _held_exponential(log_mean + (shift - 1.0))
        return _differentiated_as(value, -loss)
    mean = pairs.positives().mean()
    log_mean = pairs.log_mean_exp(None)
    if estimator == "dv":
        return mean - log_mean
    if estimator == "tuba":
        return 1.0 + mean - _held_exponential(log_mean)
    if estimator == "nwj":
        return mean - _held_exponential(log_mean - 1.0)
    average = _moved_average(log_mean.detach(), buffer, momentum)
    # At most 1 / (1 - momentum): the average holds that share of this batch.
    return _differentiated_as((mean - log_mean).detach(), mean - torch.exp(log_mean - average))


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
