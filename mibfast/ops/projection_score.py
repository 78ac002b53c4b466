"""Cosines of candidates with their projections on contexts: OVA-IB's retrieval score."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from mibfast import _backend, _check
from mibfast.kernels.pairwise import reference
from mibfast.ops._boundary import DifferentiableOperation, accumulation_dtype, pairwise_offers

__all__ = ["projection_score"]

_NAME = "projection_score"


def projection_score(candidates: Tensor, context: Tensor, ridge: float = 1e-8, *, backend: str | None = None) -> Tensor:
    r"""Score every candidate against every context: the cosine of a candidate and its projection on the context's span.

    .. math:: s_{ic} = \cos(z_c, P_i z_c), \qquad P_i = A_i (A_i^\top A_i + \lambda I)^{-1} A_i^\top

    In [0, 1], higher is better. The retrieval of OVA-IB (arXiv 2605.29900), Section 4: the embeddings of the modalities
    at hand are the context, those of the missing one the candidates. A candidate or a context of zeros scores 0.

    Parameters
    ----------
    candidates : Tensor [C, d]
        float64, float32, bfloat16 or float16.
    context : Tensor [Q, K, d]
        K embeddings for each of Q queries, of the same dtype.
    ridge : float
        :math:`\lambda \ge 0`, see :func:`ridge_projection`.
    backend : str, optional
        See :class:`mibfast.use_backend`.

    Returns
    -------
    Tensor [Q, C]
        float64 for float64 inputs, else float32.

    Raises
    ------
    TypeError, ValueError
        For shapes that do not match, unequal dtypes or devices, or a negative ridge.

    Examples
    --------
    >>> import torch
    >>> from mibfast import functional as F
    >>> F.projection_score(torch.eye(3), torch.eye(3)[None, :2])
    tensor([[1., 1., 0.]])
    """
    _check.tensor(_NAME, "candidates", candidates, "C d")
    _check.tensor(_NAME, "context", context, "Q K d")
    _check.alike(_NAME, candidates=candidates, context=context)
    _check.same_dimension(_NAME, candidates=candidates, context=context)
    ridge = _check.number(_NAME, "ridge", ridge, 0.0)
    candidates, context = _check.promoted([candidates, context])
    chosen = _backend.choose(_NAME, candidates.device, backend, pairwise_offers(context, "K", context.shape[1]))
    if chosen == "reference":
        return reference.projection_cosine(candidates, context, ridge).mT
    return _scores(chosen, (candidates, context), _Options(ridge))[0].mT


class _Options(NamedTuple):
    ridge: float


def _results(candidates: Tensor, context: Tensor, ridge: float, backend: str) -> list[Tensor]:
    shape = (candidates.shape[0], context.shape[0])
    return [candidates.new_empty(shape, dtype=accumulation_dtype(candidates.dtype))]


_scores = DifferentiableOperation(_NAME, "pairwise", "candidates context", _results, options=_Options)
