"""One-vs-all minimality of OVA-IB."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mibfast import _backend, _check
from mibfast._check import Embeddings
from mibfast.kernels.gaussian import reference
from mibfast.ops._boundary import accumulation_dtype, first_order, kernels, operation

__all__ = ["one_vs_all_minimality"]

_NAME = "one_vs_all_minimality"


def one_vs_all_minimality(embeddings: Embeddings, *, backend: str | None = None) -> Tensor:
    r"""Squared distance of each modality from the mean of the others, averaged over modalities and samples.

    .. math:: L_M = \frac{1}{M N} \sum_m \sum_n \Big\| z_n^{(m)} - \frac{1}{M-1} \sum_{k \ne m} z_n^{(k)} \Big\|^2

    OVA-IB (arXiv 2605.29900), Eq. 18-19: the KL divergence between isotropic experts and the product of the others,
    without its constants. It bounds the information that a modality's embedding holds beyond the other modalities,
    :math:`I(z; x_m \mid x_{-m})`, not all of :math:`I(z; x_m)`. Equal to the sum of all pairwise squared distances over
    :math:`(M-1)^2`. Embeddings are taken as they are, not normalised.

    Parameters
    ----------
    embeddings : sequence of M tensors [N, d], tensor [M, N, d] or mapping to [N, d]
        float64, float32, bfloat16 or float16; M >= 2.
    backend : str, optional
        See :class:`mibfast.use_backend`.

    Returns
    -------
    Tensor
        A scalar; float64 for float64 embeddings, else float32. In nats up to the constants that the paper drops.

    Raises
    ------
    TypeError, ValueError
        For fewer than two modalities, unequal shapes, dtypes or devices, or tensors that are not floating-point.

    Examples
    --------
    >>> import torch
    >>> from mibfast import functional as F
    >>> F.one_vs_all_minimality([torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])])
    tensor(2.)
    """
    z, _ = _check.embeddings(_NAME, embeddings)
    chosen = _backend.choose(_NAME, z[0].device, backend)
    if chosen == "reference":
        return reference.one_vs_all_minimality([x.to(accumulation_dtype(x.dtype)) for x in z]).mean()
    return _OneVsAllMinimality.apply(chosen, *z)  # type: ignore[no-any-return,no-untyped-call]


@operation(fake=lambda z, backend: z[0].new_empty((), dtype=accumulation_dtype(z[0].dtype)))
def minimality(z: list[Tensor], backend: str) -> Tensor:
    return kernels("gaussian", backend).minimality(z)  # type: ignore[no-any-return]


@operation(fake=lambda upstream, z, backend: [x.new_empty(x.shape) for x in z])
def minimality_backward(upstream: Tensor, z: list[Tensor], backend: str) -> list[Tensor]:
    return kernels("gaussian", backend).minimality_backward(upstream, z)  # type: ignore[no-any-return]


class _OneVsAllMinimality(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backend: str, *z: Tensor) -> Tensor:
        ctx.save_for_backward(*z)
        ctx.backend = backend
        return minimality(list(z), backend)  # type: ignore[no-any-return]

    @staticmethod
    @first_order(_NAME)
    def backward(ctx: Any, upstream: Tensor) -> Any:
        gradients = minimality_backward(upstream, list(ctx.saved_tensors), ctx.backend)
        return None, *gradients
