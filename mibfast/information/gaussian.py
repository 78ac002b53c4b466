"""The mutual information of jointly Gaussian vectors, exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from mibfast import _check


def gaussian_mutual_information(x: Tensor, y: Tensor) -> Tensor:
    r"""Mutual information of jointly Gaussian vectors, from the canonical correlations of a sample.

    .. math:: I(X; Y) = -\tfrac12 \sum_k \ln (1 - \rho_k^2)

    A check of estimators, and a lower bound where only the marginals are Gaussian. A sample's correlations are larger
    than the truth's: with independent vectors, by about dx dy / (2 N) nats.

    Parameters
    ----------
    x, y : Tensor [N, dx], [N, dy]
        N > dx + dy samples, with linearly independent columns; float64, float32, bfloat16 or float16.

    Returns
    -------
    Tensor
        A scalar in nats, differentiable, computed in float64; float64 for float64 inputs, else float32. Infinite where
        a combination of x equals one of y.

    Raises
    ------
    TypeError, ValueError
        For NaN or infinity, unequal numbers of rows, too few of them, or columns that depend linearly on one another.

    Examples
    --------
    >>> import torch
    >>> from mibfast import information
    >>> x = torch.randn(100_000, 1, generator=torch.Generator().manual_seed(0))
    >>> y = x + torch.randn(100_000, 1, generator=torch.Generator().manual_seed(1))  # ln(2) / 2 nats
    >>> round(float(information.gaussian_mutual_information(x, y)), 2)
    0.35
    """
    name = "gaussian_mutual_information"
    _check.tensor(name, "x", x, "N dx")
    _check.tensor(name, "y", y, "N dy")
    _check.size(name, "y", y, 0, x.shape[0])
    n, columns = x.shape[0], x.shape[1] + y.shape[1]
    if n <= columns:
        raise ValueError(
            f"{name}: with N <= dx + dy samples every canonical correlation may be 1; expected more than {columns}, "
            f"got N = {n}"
        )
    bases = []
    for argument, z in (("x", x), ("y", y)):
        _check.finite(name, argument, z)
        wide = z.double()
        q, r = torch.linalg.qr(wide - wide.mean(0))
        diagonal = r.diagonal().abs()
        if bool((diagonal <= n * torch.finfo(torch.float64).eps * diagonal.max()).any()):
            raise ValueError(
                f"{name}: {argument} has columns that are constant or depend linearly on others, "
                f"got {_check.described(z)}"
            )
        bases.append(q)
    correlations = torch.linalg.svdvals(bases[0].mT @ bases[1])
    information = -0.5 * torch.log1p(-correlations.clamp(max=1.0).square()).sum()
    return information.to(torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32))
