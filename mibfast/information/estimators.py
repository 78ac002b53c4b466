"""Estimators of mutual information that stream over all pairs of a critic's scores."""

from __future__ import annotations

import inspect
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mibfast import _backend, _check
from mibfast import functional as F
from mibfast._modules import ResettableModule
from mibfast.information.critics import Critic, Factors
from mibfast.ops.mutual_information import ESTIMATORS, check_options
from mibfast.ops.mutual_information import estimate as estimate_of_pairs


class _StreamedPairs:
    """All pairs of a batch, none of whose scores are kept."""

    def __init__(self, factors: Factors, backend: str | None) -> None:
        self.factors = factors
        self.arguments = (factors.x, factors.y, factors.weight, factors.bias, factors.hidden)
        self.options: dict[str, Any] = {"score": factors.score, "backend": backend}

    def positives(self) -> Tensor:
        with torch.autocast(self.factors.x.device.type, enabled=False):
            return self.factors.in_float32().pair_scores()

    def log_sum_exps(self, columns: bool) -> tuple[Tensor, ...]:
        """Return positives [N] and log-sum-exps [N] of rows and, where asked for, columns, positives included."""
        return F.critic_log_sum_exp(*self.arguments, positive=True, columns=columns, **self.options)

    def info_nce(self, columns: bool) -> Tensor:
        if self.factors.weight is None:
            x, y = self.factors.x, self.factors.y
            return F.info_nce(x, y, 1.0, symmetric=columns, **self.options)
        positives, *sums = self.log_sum_exps(columns)
        return (torch.stack(sums).mean(0) - positives).mean()

    def log_mean_exp(self, clip: float | None) -> Tensor:
        return F.critic_log_mean_exp(*self.arguments, clip=clip, **self.options)

    def logistic_loss(self) -> Tensor:
        loss, _ = F.critic_mean_softplus(*self.arguments, positives=True, **self.options)
        return loss

    def logistic_loss_and_value(self, clip: float | None) -> tuple[Tensor, Tensor, Tensor]:
        loss, log_mean, mean = F.critic_mean_softplus(
            *self.arguments, positives=True, log_mean_exp=True, clip=clip, **self.options
        )
        return loss, log_mean, mean


class _ShuffledPairs:
    """N negatives for N positives, each of a row x_i and a column y_j, both drawn without replacement."""

    def __init__(self, positives: Tensor, negatives: Tensor) -> None:
        self.positive_scores, self.negatives = positives, negatives

    def positives(self) -> Tensor:
        return self.positive_scores

    def info_nce(self, columns: bool) -> Tensor:
        raise NotImplementedError

    def log_mean_exp(self, clip: float | None) -> Tensor:
        scores = self.negatives if clip is None else self.negatives.clamp(-clip, clip)
        return torch.logsumexp(scores, 0) - math.log(scores.shape[0])

    def logistic_loss(self) -> Tensor:
        right = nn.functional.logsigmoid(self.positive_scores).mean() + nn.functional.logsigmoid(-self.negatives).mean()
        return -right

    def logistic_loss_and_value(self, clip: float | None) -> tuple[Tensor, Tensor, Tensor]:
        return self.logistic_loss(), self.log_mean_exp(clip).detach(), self.positive_scores.detach().mean()


class MutualInformation(ResettableModule):
    r"""An estimate of I(X; Y) by a critic, streamed over all pairs of a batch: nothing of size N x N is stored.

    The estimators are those of :func:`mibfast.functional.mutual_information`, which has their formulas. Maximise the
    result to train the critic.

    Parameters
    ----------
    critic : Module
        A critic of :mod:`mibfast.information`, or any module that returns scores [N, N'] of x [N, dx] and y [N', dy],
        which then stand in memory.
    estimator : {"smile", "infonce", "nwj", "tuba", "dv", "mine", "js_fgan", "js", "js_tuba", "clip"}
        See there.
    clip : float or None
        Of "smile".
    momentum : float
        Of "mine", whose moving average is a buffer of this module, moved by each batch in training.
    negatives : {"all", "shuffled"}
        All N (N - 1) pairs, or N that are made by permuting x and y, as DVMIB's released code does: cheaper with a
        critic that is costly, noisier, and each a positive with probability 1 / N. Not for "infonce" and "clip".
    backend : str, optional
        See :class:`mibfast.use_backend`.

    Raises
    ------
    TypeError, ValueError
        For settings out of range; in `forward`, for x and y of unequal or single rows.

    Examples
    --------
    >>> import torch
    >>> from mibfast import information
    >>> estimator = information.MutualInformation(information.CosineCritic(0.25), "infonce")
    >>> estimator(torch.eye(8), torch.eye(8))
    tensor(1.9588)
    """

    log_average: Tensor | None

    def __init__(
        self,
        critic: nn.Module,
        estimator: str = "smile",
        *,
        clip: float | None = 5.0,
        momentum: float = 0.9,
        negatives: str = "all",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if not isinstance(critic, nn.Module):
            raise TypeError(f"{name}: critic must be an nn.Module, got {_check.described(critic)}")
        try:
            inspect.signature(critic.forward).bind(None, None)
        except TypeError as error:
            raise TypeError(f"{name}: critic must take x and y, got {_check.described(critic)}: {error}") from error
        self.critic = critic
        self.estimator = _check.choice(name, "estimator", estimator, tuple(ESTIMATORS))
        self.clip = check_options(
            name, estimator, clip=clip, buffer=None, momentum=momentum, device=torch.device("cpu")
        )
        self.momentum = momentum
        self.negatives = _check.choice(name, "negatives", negatives, ("all", "shuffled"))
        if negatives == "shuffled":
            if ESTIMATORS[estimator].capped:
                raise ValueError(f'{name}: estimator={estimator!r} is over all pairs, got negatives="shuffled"')
            if not isinstance(critic, Critic):
                raise TypeError(
                    f'{name}: negatives="shuffled" needs a critic that scores single pairs, one of '
                    f"mibfast.information's, got {type(critic).__name__}"
                )
        self.register_buffer("log_average", torch.zeros(()) if estimator == "mine" else None)
        self.backend = None if backend is None else _backend.check_name(backend)

    def reset_parameters(self) -> None:
        """Give the critic initial parameters, and begin the moving average again."""
        super().reset_parameters()
        if self.log_average is not None:
            nn.init.zeros_(self.log_average)

    def forward(self, x: Tensor, y: Tensor, permutations: Tensor | None = None) -> Tensor:
        """Return the estimate, a scalar in nats, for x [N, dx] and y [N, dy], N >= 2.

        `permutations` [2, N] permutes x and y where negatives are shuffled; drawn where none is given.
        """
        return self._estimate(x, y, self.estimator, permutations)

    def objective(self, x: Tensor, y: Tensor, permutations: Tensor | None = None) -> Tensor:
        """Return the function whose gradient the estimate has, to be compared across batches.

        For "smile", "js" and "js_tuba" that is the value of "js_fgan", else the estimate.
        """
        return self._estimate(x, y, ESTIMATORS[self.estimator].objective or self.estimator, permutations)

    def _estimate(self, x: Tensor, y: Tensor, estimator: str, permutations: Tensor | None) -> Tensor:
        name = type(self).__name__
        _check.tensor(name, "x", x, "N dx")
        _check.tensor(name, "y", y, "N dy")
        _check.size(name, "y", y, 0, x.shape[0])
        _check.pairs(name, x.shape[0])
        options: dict[str, Any] = {"clip": self.clip, "momentum": self.momentum}
        if self.training and estimator == "mine":
            options["buffer"] = self.log_average
        if self.negatives == "shuffled":
            return estimate_of_pairs(self._shuffled(x, y, permutations), x.shape[0], estimator, **options)
        if permutations is not None:
            raise ValueError(f'{name}: permutations are for negatives="shuffled", got negatives="all"')
        if isinstance(self.critic, Critic):
            pairs = _StreamedPairs(self.critic.factors(x, y), self.backend)
            return estimate_of_pairs(pairs, x.shape[0], estimator, **options)
        return F.mutual_information(self.critic(x, y), estimator, **options)

    def _shuffled(self, x: Tensor, y: Tensor, permutations: Tensor | None) -> _ShuffledPairs:
        n = x.shape[0]
        if permutations is None:
            drawn = torch.stack([torch.randperm(n, device=x.device), torch.randperm(n, device=x.device)])
        else:
            drawn = _check.two_permutations(type(self).__name__, permutations, n, x.device)
        assert isinstance(self.critic, Critic)
        scores = self.critic.pairs(torch.cat([x, x[drawn[0]]]), torch.cat([y, y[drawn[1]]]))
        return _ShuffledPairs(*torch.split(scores, n))

    def extra_repr(self) -> str:
        """Return the settings, for `repr`."""
        clip = f", clip={self.clip}" if self.estimator == "smile" else ""
        momentum = f", momentum={self.momentum}" if self.estimator == "mine" else ""
        return f"estimator={self.estimator!r}{clip}{momentum}, negatives={self.negatives!r}"


class CLIPTerms(NamedTuple):
    """The parts of CLIP's estimate of mutual information, which is `donsker_varadhan + correction`."""

    clip: Tensor
    donsker_varadhan: Tensor
    correction: Tensor


def clip_terms(critic: Critic, x: Tensor, y: Tensor, *, backend: str | None = None) -> CLIPTerms:
    r"""CLIP's loss, read as a bound on mutual information and a correction, in nats.

    .. math:: \ln N - L_\text{CLIP} = \underbrace{\overline{s_{ii}} - \ln \overline{e^{s_{ij}}}}_\text{Donsker-Varadhan}
              + \Big\{ \ln \overline{e^{s_{ij}}} - \tfrac12 \Big[ \overline{\ln \overline{e^{s_{ij}}}^{\,j}}^{\,i}
              + \overline{\ln \overline{e^{s_{ij}}}^{\,i}}^{\,j} \Big] \Big\}

    with means over all N^2 pairs, positives among them. The braces are the correction, at least 0 by Jensen's
    inequality: CLIP is rewarded for rows and columns whose partition functions differ. Without it, the loss would be
    the deterministic symmetric information bottleneck.

    Parameters
    ----------
    critic : Critic
        Of :mod:`mibfast.information`; :class:`CosineCritic` is CLIP's.
    x, y : Tensor [N, dx], [N, dy]
        Of N >= 2 samples.
    backend : str, optional
        See :class:`mibfast.use_backend`.

    Returns
    -------
    CLIPTerms
        Three scalars, `clip` = `donsker_varadhan` + `correction`, each differentiable.

    Raises
    ------
    TypeError, ValueError
        For x and y of unequal or single rows.

    Examples
    --------
    >>> import torch
    >>> from mibfast import information
    >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> terms = information.clip_terms(information.CosineCritic(0.2), x, x)
    >>> [round(float(term), 4) for term in terms]
    [0.6298, 0.5824, 0.0474]
    """
    name = "clip_terms"
    if not isinstance(critic, Critic):
        raise TypeError(f"{name}: critic must be one of mibfast.information's, got {_check.described(critic)}")
    _check.tensor(name, "x", x, "N dx")
    _check.tensor(name, "y", y, "N dy")
    _check.size(name, "y", y, 0, x.shape[0])
    _check.pairs(name, x.shape[0])
    positives, rows, columns = _StreamedPairs(critic.factors(x, y), backend).log_sum_exps(columns=True)
    log_count = math.log(x.shape[0])
    mean, log_mean = positives.mean(), torch.logsumexp(rows, 0) - 2 * log_count
    partition = 0.5 * (rows + columns).mean() - log_count
    return CLIPTerms(mean - partition, mean - log_mean, log_mean - partition)
