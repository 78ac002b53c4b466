"""Upper bounds of mutual information from a conditional Gaussian q(y | x)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mibfast import _check
from mibfast import functional as F


def _checked(operation: str, mean: Tensor, logvar: Tensor, y: Tensor) -> tuple[list[Tensor], torch.dtype]:
    given = {"mean": mean, "logvar": logvar, "y": y}
    for argument, x in given.items():
        _check.tensor(operation, argument, x, "N d")
    _check.same_shape(operation, **given)
    _check.alike(operation, **given)
    _check.pairs(operation, mean.shape[0])
    tensors = _check.promoted(list(given.values()))
    return tensors, torch.promote_types(tensors[0].dtype, torch.float32)


def club(mean: Tensor, logvar: Tensor, y: Tensor) -> Tensor:
    r"""CLUB, the contrastive upper bound of I(X; Y), in closed form: O(N d) in place of the definition's O(N^2 d).

    .. math:: \frac1N \sum_i \Big[ \ln q(y_i | x_i) - \frac1N \sum_j \ln q(y_j | x_i) \Big]

    with :math:`q(y | x_i) = N(\mu_i, \sigma_i^2)`. Cheng et al. (2020), Eq. 12. It bounds I(X; Y) where q is close
    enough to p(y | x), and may be negative where it is not: train q by maximum likelihood on data of its own, or in
    steps of its own. Zero log-variances give the released `CLUBMean`.

    Parameters
    ----------
    mean, logvar : Tensor [N, d]
        Of q(y | x_i) for each sample.
    y : Tensor [N, d]
        float64, float32, bfloat16 or float16, as the others.

    Returns
    -------
    Tensor
        A scalar in nats; float64 for float64 inputs, else float32.

    Raises
    ------
    TypeError, ValueError
        For unequal shapes, dtypes or devices, or N = 1.

    Examples
    --------
    >>> import torch
    >>> from mibfast import information
    >>> y = torch.tensor([[-1.0], [1.0]])
    >>> information.club(y, torch.zeros(2, 1), y)
    tensor(1.)
    """
    (mean, logvar, y), wide = _checked("club", mean, logvar, y)
    bound, *_ = _Club.apply(mean.to(wide), logvar.to(wide), y.to(wide))  # type: ignore[no-untyped-call]
    return bound  # type: ignore[no-any-return]


class _Club(torch.autograd.Function):
    """The bound, with its gradients beside it: half the operations that autograd would run, all of them small."""

    generate_vmap_rule = True

    @staticmethod
    def forward(mean: Tensor, logvar: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        n = y.shape[0]
        average = y.mean(0)
        deviation, distance = y - average, mean - average
        # Half the mean over j of (y_j - mean_i)^2, less half of (y_i - mean_i)^2. About y's mean, the sum over j is
        # that of y's variance and of the distance to its mean.
        excess = torch.sub(distance, deviation, alpha=0.5).mul_(deviation)
        excess += deviation.square().sum(0) / (2 * n)
        weight = logvar.neg().exp_()
        terms = excess.mul_(weight)
        d_mean = weight * deviation
        pull = distance.mul_(weight)
        d_y = (pull - d_mean).add_(deviation.mul_(weight.mean(0))).sub_(pull.mean(0))
        return terms.sum() / n, d_mean, terms, d_y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*inputs, *output[1:])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        mean, logvar, y, d_mean, terms, d_y = ctx.saved_tensors
        scale = upstream / y.shape[0]
        if torch.is_grad_enabled():
            # Of a second derivative: the same in operations that have one.
            average = y.mean(0)
            deviation, distance = y - average, mean - average
            weight = torch.exp(-logvar)
            d_mean = weight * deviation
            variance = deviation.square().mean(0)
            terms = 0.5 * weight * (variance + deviation * (2 * distance - deviation))
            pull = weight * distance
            d_y = pull - d_mean + deviation * weight.mean(0) - pull.mean(0)
        gradients = ((d_mean, scale), (terms, -scale), (d_y, scale))
        return tuple(
            gradient * factor if needed else None
            for (gradient, factor), needed in zip(gradients, ctx.needs_input_grad, strict=True)
        )


def leave_one_out(mean: Tensor, logvar: Tensor, y: Tensor, *, backend: str | None = None) -> Tensor:
    r"""The leave-one-out upper bound of I(X; Y), streamed over all pairs.

    .. math:: \frac1N \sum_i \Big[ \ln q(y_i | x_i) - \ln \frac1{N - 1} \sum_{j \ne i} q(y_i | x_j) \Big]

    Poole et al. (2019), Eq. 11, with the marginal of y estimated by the other samples' conditionals. The log-densities
    of all pairs are inner products of 2d + 1 features, formed in float64, for they are small differences of large terms
    where variances are small.

    Parameters
    ----------
    mean, logvar : Tensor [N, d]
        Of q(y | x_i) for each sample.
    y : Tensor [N, d]
        float64, float32, bfloat16 or float16, as the others.
    backend : str, optional
        See :class:`mibfast.use_backend`.

    Returns
    -------
    Tensor
        A scalar in nats; float64 for float64 inputs, else float32.

    Raises
    ------
    TypeError, ValueError
        For unequal shapes, dtypes or devices, or N = 1.

    Examples
    --------
    >>> import torch
    >>> from mibfast import information
    >>> y = torch.tensor([[-1.0], [1.0]])
    >>> information.leave_one_out(y, torch.zeros(2, 1), y)
    tensor(2.)
    """
    (mean, logvar, y), wide = _checked("leave_one_out", mean, logvar, y)
    average = y.detach().double().mean(0)
    mean, logvar, y = mean.double() - average, logvar.double(), y.double() - average
    own = -0.5 * ((y - mean).square() * torch.exp(-logvar) + logvar).sum(1)
    precision = torch.exp(-logvar)
    constant = -0.5 * (mean.square() * precision + logvar).sum(1, keepdim=True)
    densities = torch.cat([-0.5 * precision, precision * mean, constant], 1)
    samples = torch.cat([y.square(), y, torch.ones_like(constant)], 1)
    _, others = F.critic_log_sum_exp(samples, densities, backend=backend)
    return (own - others).mean().to(wide) + math.log(mean.shape[0] - 1)
