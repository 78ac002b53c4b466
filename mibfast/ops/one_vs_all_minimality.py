"""One-vs-all minimality of OVA-IB."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mibfast import _backend, _check
from mibfast._check import Embeddings
from mibfast.kernels.gaussian import reference
from mibfast.ops._boundary import DifferentiableOperation, accumulation_dtype, offers_up_to_largest_m, reduced

__all__ = ["one_vs_all_minimality"]

_NAME = "one_vs_all_minimality"


def one_vs_all_minimality(
    embeddings: Embeddings, *, reduction: str = "mean", presence: Tensor | None = None, backend: str | None = None
) -> Tensor:
    r"""Squared distance of each modality from the mean of the others, averaged over modalities and samples.

    .. math:: L_M = \frac{1}{M N} \sum_m \sum_n \Big\| z_n^{(m)} - \frac{1}{M-1} \sum_{k \ne m} z_n^{(k)} \Big\|^2

    OVA-IB (arXiv 2605.29900), Eq. 18-19: the KL divergence between isotropic experts and the product of the others,
    without its constants. It bounds the information that a modality's embedding holds beyond the other modalities,
    :math:`I(z; x_m \mid x_{-m})`, not all of :math:`I(z; x_m)`. Equal to the sum of all pairwise squared distances over
    :math:`(M-1)^2`. Embeddings are taken as they are, not normalised.

    With `presence`, the distance is from the mean of those of the others that the sample has, averaged over modalities
    of the mean over the samples that have the modality and another one; modalities of no such sample are left out. What
    stands in the place of an embedding that is absent, or alone in its sample, is not used and gets a gradient of zero.
    The values of `presence` are read back, which breaks the graph of `torch.compile`: `fullgraph=True` takes none.

    Parameters
    ----------
    embeddings : sequence of M tensors [N, d], tensor [M, N, d] or mapping to [N, d]
        float64, float32, bfloat16 or float16; M >= 2.
    reduction : {"mean", "sum", "none"}
        "none" gives [M, N], with zeros where `presence` leaves a sample out; "sum" is the sum of that.
    presence : bool Tensor [N, M], optional
        True where sample n has modality m, in the order of `embeddings`; None where none is missing.
    backend : str, optional
        See :class:`mibfast.use_backend`. With a presence or `reduction="none"` every backend is one pass of PyTorch.

    Returns
    -------
    Tensor
        float64 for float64 embeddings, else float32. In nats up to the constants that the paper drops.

    Raises
    ------
    TypeError, ValueError
        For fewer than two modalities, unequal shapes, dtypes or devices, tensors that are not floating-point, or a
        presence that is none or leaves no modality.

    Examples
    --------
    >>> import torch
    >>> from mibfast import functional as F
    >>> F.one_vs_all_minimality([torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])])
    tensor(2.)
    >>> one_has_both = torch.tensor([[True, True], [True, False]])
    >>> F.one_vs_all_minimality([torch.eye(2), torch.zeros(2, 2)], presence=one_has_both)
    tensor(1.)
    """
    z, _ = _check.embeddings(_NAME, embeddings)
    _check.reduction(_NAME, reduction)
    chosen = _backend.choose(_NAME, z[0].device, backend, offers_up_to_largest_m("M", len(z)))
    if presence is not None:
        return _of_those_present(z, _check.presence(_NAME, presence, z), reduction)
    if chosen == "reference" or reduction == "none":
        return reduced(reference.one_vs_all_minimality([x.to(accumulation_dtype(x.dtype)) for x in z]), reduction)
    (mean,) = _minimality(chosen, z)
    return mean * (len(z) * len(z[0])) if reduction == "sum" else mean


def _of_those_present(z: Sequence[Tensor], presence: Tensor, reduction: str) -> Tensor:
    """One pass for every backend: with K present, z_m less the mean of the other K - 1 is K / (K - 1) (z_m - zbar)."""
    present = presence.sum(1, keepdim=True)
    partnered = presence & (present > 1)
    samples = partnered.sum(0)
    taken = samples > 0
    _check.left_by_presence(_NAME, bool(taken.any()), "a sample that has at least 2 modalities")
    dtype = accumulation_dtype(z[0].dtype)
    wide = [x.to(dtype).masked_fill(~has[:, None], 0.0) for x, has in zip(z, partnered.unbind(1), strict=True)]
    mean = sum(wide[1:], start=wide[0]) / present.clamp(min=1)
    weights = partnered * (present.to(dtype) / (present - 1).clamp(min=1)) ** 2
    if reduction == "mean":
        weights = weights / (samples.clamp(min=1) * taken.sum())
    distances = weights * torch.stack([((x - mean) ** 2).sum(1) for x in wide], dim=1)
    return distances.mT if reduction == "none" else distances.sum()


def _results(z: list[Tensor], backend: str) -> list[Tensor]:
    return [z[0].new_empty((), dtype=accumulation_dtype(z[0].dtype))]


_minimality = DifferentiableOperation(_NAME, "gaussian", "*embeddings", _results, launcher="minimality")
