"""Ridge projection of every modality on the others of its sample."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mibfast import _backend, _check
from mibfast._check import Embeddings
from mibfast.kernels.projection import reference
from mibfast.ops._boundary import DifferentiableOperation, offers_up_to_largest_m

__all__ = ["leave_one_out_projection"]

_NAME = "leave_one_out_projection"


def leave_one_out_projection(embeddings: Embeddings, ridge: float = 1e-8, *, backend: str | None = None) -> Tensor:
    r"""Project each modality's embedding on the span of the other modalities' embeddings of the same sample.

    .. math:: \bar z^{(m)} = A_m (A_m^\top A_m + \lambda I)^{-1} A_m^\top z^{(m)}, \qquad
              A_m = [z^{(k)}]_{k \ne m}

    The keys of OVA-IB (arXiv 2605.29900), Eq. 10-11. All M come from one inverse a sample: with
    :math:`H = (Z^\top Z + \lambda I)^{-1}` over all M embeddings the coefficients of modality m on the others are
    :math:`-H_{\cdot m} / H_{mm}`. Gram matrices and factors are float64 for every input dtype.

    Parameters
    ----------
    embeddings : sequence of M tensors [N, d], tensor [M, N, d] or mapping to [N, d]
        float64, float32, bfloat16 or float16; M >= 2.
    ridge : float
        :math:`\lambda \ge 0`; raised to the rounding of the Gram matrix where that is larger, see
        :func:`ridge_projection`. Where a modality depends linearly on the others, and only that rounding separates
        them (:math:`\lambda = 0`), gradients have three digits.
    backend : str, optional
        See :class:`mibfast.use_backend`.

    Returns
    -------
    Tensor [M, N, d]
        Of the input's dtype, in the order of the modalities.

    Raises
    ------
    TypeError, ValueError
        For fewer than two modalities, unequal shapes, dtypes or devices, or a negative ridge.

    Examples
    --------
    >>> import torch
    >>> from mibfast import functional as F
    >>> image, text = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    >>> F.leave_one_out_projection([image, text], ridge=0.0)
    tensor([[[1., 1.]],
    <BLANKLINE>
            [[1., 0.]]])
    """
    z, _ = _check.embeddings(_NAME, embeddings)
    ridge = _check.number(_NAME, "ridge", ridge, 0.0)
    offers = {**offers_up_to_largest_m("M", len(z)), "cuda": _not_by_cuda(len(z), z[0].shape[1])}
    chosen = _backend.choose(_NAME, z[0].device, backend, offers)
    if chosen == "reference":
        return reference.leave_one_out_projection(z, ridge)
    return _projections(chosen, z, _Options(ridge))[0]


def _not_by_cuda(m: int, d: int) -> str | None:
    """Return why the CUDA kernel cannot take M embeddings of d numbers, None where it can."""
    if m > 16:
        return f"M = {m} > 16 modalities"
    return f"d = {d} > 2^30" if d > 2**30 else None


class _Options(NamedTuple):
    ridge: float


def _results(z: list[Tensor], ridge: float, backend: str) -> list[Tensor]:
    """Projections [M, N, d], and the inverse Gram matrices [N, M, M]."""
    m, (n, d) = len(z), z[0].shape
    return [z[0].new_empty(m, n, d), z[0].new_empty((n, m, m), dtype=torch.float64)]


_projections = DifferentiableOperation(
    _NAME, "projection", "*embeddings", _results, options=_Options, launcher="leave_one_out"
)
