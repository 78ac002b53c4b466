"""KL divergence of diagonal Gaussians."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mibfast import _backend, _check
from mibfast.kernels.gaussian import reference
from mibfast.ops._boundary import DifferentiableOperation, accumulation_dtype

__all__ = ["gaussian_kl"]

_NAME = "gaussian_kl"
_OFFERS: Mapping[str, str | None] = {"cpu": None, "triton": None}
_REDUCTIONS = ("none", "batchmean", "mean", "sum")


def gaussian_kl(
    mean: Tensor,
    logvar: Tensor,
    prior_mean: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    *,
    reduction: str = "batchmean",
    backend: str | None = None,
) -> Tensor:
    r"""KL divergence of N(mean, exp(logvar)) from a diagonal Gaussian prior, the standard normal by default.

    .. math:: \tfrac12 \sum_d \left[ \frac{\sigma^2 + (\mu - \mu_0)^2}{\sigma_0^2} - 1
              - \ln \frac{\sigma^2}{\sigma_0^2} \right]

    The encoder term of the variational information bottleneck (Alemi et al. 2017, Eq. 16; DVMIB; OMIB).

    Parameters
    ----------
    mean, logvar : Tensor [..., d]
        Of one shape; float64, float32, bfloat16 or float16. All leading dimensions together are the batch N.
    prior_mean, prior_logvar : Tensor [..., d], optional
        Both or neither; broadcast to the shape of `mean`.
    reduction : {"batchmean", "none", "mean", "sum"}
        "none" gives one value a sample, summed over d: [...]; "batchmean" their mean over N; "mean" the mean over N and
        d; "sum" the sum over both.
    backend : str, optional
        See :class:`mibfast.use_backend`.

    Returns
    -------
    Tensor
        In nats; float64 for float64 inputs, else float32.

    Raises
    ------
    TypeError, ValueError
        For unequal shapes, dtypes or devices, one half of a prior, or an unknown reduction.

    Examples
    --------
    >>> import torch
    >>> from mibfast import functional as F
    >>> F.gaussian_kl(torch.ones(3, 2), torch.zeros(3, 2))
    tensor(1.)
    """
    _check.choice(_NAME, "reduction", reduction, _REDUCTIONS)
    given = {
        "mean": _check.tensor(_NAME, "mean", mean, "... d"),
        "logvar": _check.tensor(_NAME, "logvar", logvar, "... d"),
    }
    _check.same_shape(_NAME, **given)
    if (prior_mean is None) != (prior_logvar is None):
        raise ValueError(
            f"{_NAME}: prior_mean and prior_logvar go together, got prior_mean {_check.described(prior_mean)} "
            f"and prior_logvar {_check.described(prior_logvar)}"
        )
    if prior_mean is not None and prior_logvar is not None:
        given["prior_mean"] = _check.tensor(_NAME, "prior_mean", prior_mean, "... d")
        given["prior_logvar"] = _check.tensor(_NAME, "prior_logvar", prior_logvar, "... d")
    _check.alike(_NAME, **given)
    _check.expandable(_NAME, **given)
    tensors = [x.expand(mean.shape) for x in _check.promoted(list(given.values()))]
    chosen = _backend.choose(_NAME, mean.device, backend, _OFFERS)
    if chosen == "reference":
        wide = [x.to(accumulation_dtype(x.dtype)) for x in tensors]
        losses = reference.gaussian_kl(*(wide if len(wide) == 4 else [*wide, None, None]))
    else:
        (losses,) = _kl(chosen, tensors)
    if reduction == "none":
        return losses
    if reduction == "batchmean":
        return losses.mean()
    return losses.sum() / mean.numel() if reduction == "mean" else losses.sum()


def _results(tensors: list[Tensor], backend: str) -> list[Tensor]:
    mean = tensors[0]
    return [mean.new_empty(mean.shape[:-1], dtype=accumulation_dtype(mean.dtype))]


_kl = DifferentiableOperation(_NAME, "gaussian", "*tensors", _results, launcher="kl")
