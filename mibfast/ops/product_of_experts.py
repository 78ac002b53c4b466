"""Product of diagonal Gaussian experts."""

from __future__ import annotations

import torch
from torch import Tensor

from mibfast import _backend, _check
from mibfast._check import Embeddings
from mibfast.kernels.gaussian import reference
from mibfast.ops._boundary import DifferentiableOperation, accumulation_dtype, offers_up_to_largest_m

__all__ = ["product_of_experts"]

_NAME = "product_of_experts"


def product_of_experts(means: Embeddings, logvars: Embeddings, *, backend: str | None = None) -> tuple[Tensor, Tensor]:
    r"""Multiply M diagonal Gaussian experts into one.

    .. math:: \sigma^{-2} = \sum_m \sigma_m^{-2}, \qquad \mu = \sigma^2 \sum_m \sigma_m^{-2} \mu_m

    Formed from log-variances without leaving their range: precisions that overflow float32 do no harm. The prior of
    OVA-IB's minimality before it is made isotropic (arXiv 2605.29900, Eq. 17).

    Parameters
    ----------
    means, logvars : sequence of M tensors [N, d], tensor [M, N, d] or mapping to [N, d]
        float64, float32, bfloat16 or float16; M >= 1, all of one shape.
    backend : str, optional
        See :class:`mibfast.use_backend`.

    Returns
    -------
    mean, logvar : Tensor [N, d]
        Of the input's dtype.

    Raises
    ------
    TypeError, ValueError
        For no expert, means that do not match the log-variances, or unequal shapes, dtypes or devices.

    Examples
    --------
    >>> import torch
    >>> from mibfast import functional as F
    >>> mean, logvar = F.product_of_experts(torch.tensor([[[0.0]], [[3.0]]]), torch.zeros(2, 1, 1))
    >>> mean.item(), round(logvar.exp().item(), 6)
    (1.5, 0.5)
    """
    mu, _ = _check.embeddings(_NAME, means, fewest=1)
    logvar, _ = _check.embeddings(_NAME, logvars, fewest=1)
    if len(mu) != len(logvar):
        raise ValueError(f"{_NAME}: expected as many means as logvars, got {len(mu)} and {len(logvar)}")
    _check.same_shape(_NAME, means=mu[0], logvars=logvar[0])
    _check.alike(_NAME, means=mu[0], logvars=logvar[0])
    tensors = _check.promoted([*mu, *logvar])
    chosen = _backend.choose(_NAME, mu[0].device, backend, offers_up_to_largest_m("M", len(mu)))
    if chosen == "reference":
        dtype = accumulation_dtype(tensors[0].dtype)
        stacked = torch.stack(tensors).to(dtype)
        product = reference.product_of_experts(stacked[: len(mu)], stacked[len(mu) :])
        return product[0].to(tensors[0].dtype), product[1].to(tensors[0].dtype)
    mean, logvar_of_product = _product(chosen, tensors)
    return mean, logvar_of_product


def _results(tensors: list[Tensor], backend: str) -> list[Tensor]:
    return [tensors[0].new_empty(tensors[0].shape) for _ in range(2)]


_product = DifferentiableOperation(_NAME, "gaussian", "*tensors", _results, launcher="product", outputs=2)
