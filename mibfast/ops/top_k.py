"""The best candidates of each query: retrieval that streams over candidates."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mibfast import _backend, _check
from mibfast.kernels.pairwise.scores import OF_EMBEDDINGS
from mibfast.kernels.retrieval import reference
from mibfast.ops import _volume
from mibfast.ops._boundary import Operation, accumulation_dtype, pairwise_offers

__all__ = ["top_k"]

_NAME = "top_k"
# Of Triton's kernels, which sort keys of candidates in registers.
_MOST_KEPT = 1024
# The scores of `kernels/retrieval`, and the shape of their queries.
_QUERIES = {
    **dict.fromkeys(OF_EMBEDDINGS, "Q d"),
    "cosine": "Q d",
    "ridge_projection": "Q K d",
    "gram_volume": "Q K d",
    "triangle_area": "Q 2 d",
    "symile": "Q K d",
}


def top_k(
    query: Tensor,
    key: Tensor,
    k: int,
    *,
    score: str = "inner_product",
    ridge: float = 1e-8,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Find the k candidates that score best for each query, without ever holding all scores.

    .. math:: \text{inner product: } q_i \cdot k_c, \qquad \text{cosine: } \cos(q_i, k_c), \qquad
        \text{ridge projection: } \cos(k_c, P_i k_c),

    .. math:: \text{Gram volume: } \sqrt{\det G(\hat k_c, \hat q_{i1}, \dots, \hat q_{iK})}, \qquad
        \text{triangle area: } A(\hat k_c, \hat q_{i1}, \hat q_{i2}), \qquad
        \text{Symile: } k_c \cdot (q_{i1} \odot \dots \odot q_{iK})

    with :math:`\hat x = x / |x|`. The highest are the best, but the lowest of volumes and areas.

    Candidates stream by in blocks, of which each query keeps its k best: any number of them in O(Q k) memory and one
    block. The result depends neither on blocks nor on threads. It is a choice, and has no gradient.

    Parameters
    ----------
    query : Tensor [Q, d], or [Q, K, d]
        float64, float32, bfloat16 or float16, any strides. The last four scores take K >= 1 embeddings a query, two for
        `"triangle_area"`: those of the modalities at hand, where the candidates are of one that is missing.
    key : Tensor [C, d]
        The candidates, of the same dtype.
    k : int
        In [1, C].
    score : str
        `"inner_product"`, `"squared_distance"`, `"lorentz"`: see :func:`info_nce`; `"cosine"`, `"ridge_projection"`,
        `"gram_volume"`, `"triangle_area"`, `"symile"`.
        `"ridge_projection"` is OVA-IB's, see :func:`projection_score`, with :math:`P_i` the ridge projector on the span
        of the query's embeddings; `"gram_volume"` GRAM's, see :func:`gram_volume`; `"triangle_area"` TRIANGLE's, see
        :func:`triangle_area`; `"symile"` Symile's multilinear inner product, of embeddings as they come. The cosine
        with a vector of zeros is 0, and so is a volume with one, which makes it the best. In float32 a candidate's
        distance to a context's span is a difference of unit squares: below 3e-4 it is not told from zero.
    ridge : float
        :math:`\lambda \ge 0` of the projection, see :func:`ridge_projection`.
    backend : str, optional
        See :class:`mibfast.use_backend`.

    Returns
    -------
    values : Tensor [Q, k]
        Scores, best first; float64 for float64 inputs, else float32; detached.
    indices : Tensor [Q, k]
        Their candidates, int64. Of equal scores the smaller index comes first. A NaN score ranks behind all numbers, so
        that it is chosen only where a query has fewer than k others (`torch.topk` would put it first).

    Raises
    ------
    TypeError, ValueError
        For shapes that do not match, other than two embeddings a query for `"triangle_area"`, unequal dtypes or
        devices, k > C, an unknown score, or a negative ridge.

    Examples
    --------
    >>> import torch
    >>> from mibfast import functional as F
    >>> values, indices = F.top_k(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 5.0], [3.0, 4.0], [2.0, 0.0]]), 2)
    >>> values, indices
    (tensor([[3., 2.]]), tensor([[1, 2]]))
    >>> F.top_k(torch.eye(3)[None, :2], torch.tensor([[0.0, 0.0, 1.0], [3.0, 0.0, 4.0]]), 1, score="gram_volume")
    (tensor([[0.8000]]), tensor([[1]]))
    """
    _check.choice(_NAME, "score", score, tuple(_QUERIES))
    _check.tensor(_NAME, "query", query, _QUERIES[score])
    if score == "triangle_area":
        _check.size(_NAME, "query", query, 1, 2)
    _check.tensor(_NAME, "key", key, "C d")
    _check.alike(_NAME, query=query, key=key)
    _check.same_dimension(_NAME, query=query, key=key)
    k = _check.count(_NAME, "k", k)
    if k > key.shape[0]:
        raise ValueError(f"{_NAME}: k must be at most the number of candidates, got k = {k} and C = {key.shape[0]}")
    ridge = _check.number(_NAME, "ridge", ridge, 0.0)
    query, key = (x.detach() for x in _check.promoted([query, key]))
    chosen = _backend.choose(_NAME, query.device, backend, _offers(query, key, k, score))
    if chosen == "reference":
        return reference.top_k(query, key, k, score, ridge)
    values, indices = _best(chosen, (query, key), _Options(k, score, ridge))
    return values, indices


def _offers(query: Tensor, key: Tensor, k: int, score: str) -> dict[str, str | None]:
    """Return the backends that have kernels, and why Triton's cannot take these arguments where it cannot."""
    if score in ("gram_volume", "triangle_area"):
        reason = _volume.offers(query, query.shape[1])["triton"]
    else:
        reason = pairwise_offers(query, "K", query.shape[1] if score == "ridge_projection" else 1)["triton"]
    if k > _MOST_KEPT:
        reason = reason or f"its kernels keep at most {_MOST_KEPT} candidates a query, got k = {k}"
    elif key.shape[0] >= 2**31:
        reason = reason or f"its kernels number candidates in 31 bits, got C = {key.shape[0]}"
    return {"cpu": None, "triton": reason}


class _Options(NamedTuple):
    k: int
    score: str
    ridge: float


def _results(query: Tensor, key: Tensor, k: int, score: str, ridge: float, backend: str) -> list[Tensor]:
    """Values and indices, [Q, k] each."""
    shape = (query.shape[0], k)
    return [query.new_empty(shape, dtype=accumulation_dtype(query.dtype)), query.new_empty(shape, dtype=torch.int64)]


_best = Operation(_NAME, "retrieval", "query key", _results, options=_Options, outputs=2)
