"""Top-k retrieval in plain PyTorch, with all scores [Q, C] in memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mibfast._precision import unit
from mibfast.kernels.pairwise import reference as pairwise
from mibfast.kernels.pairwise.scores import OF_EMBEDDINGS
from mibfast.kernels.pairwise.scores import SCORES as SCORES_OF_PAIRS
from mibfast.kernels.volume import reference as volume


def _cosine(query: Tensor, key: Tensor) -> Tensor:
    dtype = pairwise.accumulation_dtype(query.dtype)
    return pairwise.inner_product(unit(query.to(dtype)), unit(key.to(dtype)))


def _volumes(kind: str, query: Tensor, key: Tensor) -> Tensor:
    """In float64: the distances that volumes hold cancel where a candidate is near its context, which is best."""
    contexts = unit(query.double()).unbind(1)
    return volume.volumes(kind, unit(key.double()), contexts).mT.to(pairwise.accumulation_dtype(query.dtype))


def _multilinear_inner_product(query: Tensor, key: Tensor) -> Tensor:
    dtype = pairwise.accumulation_dtype(query.dtype)
    return pairwise.inner_product(query.to(dtype).prod(1), key.to(dtype))


def _of_embeddings(name: str) -> Callable[[Tensor, Tensor, float], Tensor]:
    formula = SCORES_OF_PAIRS[name].formula
    assert formula is not None
    return lambda query, key, ridge: formula(query, key)


# Scores [Q, C] of queries, candidates and the ridge, and whether the largest are the best.
SCORES: dict[str, tuple[Callable[[Tensor, Tensor, float], Tensor], bool]] = {
    **{name: (_of_embeddings(name), SCORES_OF_PAIRS[name].large_is_alike) for name in OF_EMBEDDINGS},
    "cosine": (lambda query, key, ridge: _cosine(query, key), True),
    "ridge_projection": (lambda query, key, ridge: pairwise.projection_cosine(key, query, ridge).mT, True),
    "gram_volume": (lambda query, key, ridge: _volumes(volume.GRAM, query, key), False),
    "triangle_area": (lambda query, key, ridge: _volumes(volume.TRIANGLE, query, key), False),
    "symile": (lambda query, key, ridge: _multilinear_inner_product(query, key), True),
}


def top_k(query: Tensor, key: Tensor, k: int, score: str, ridge: float) -> tuple[Tensor, Tensor]:
    """The k best scores of each query [Q, k], best first, equal ones by index, NaN after all numbers; their indices."""
    scores_of, largest = SCORES[score]
    scores = scores_of(query, key, ridge)
    missing = scores.isnan()
    ranked = torch.where(missing, -torch.inf, scores if largest else -scores)
    order = torch.sort(ranked, dim=1, descending=True, stable=True).indices
    order = order.gather(1, torch.sort(missing.gather(1, order).int(), dim=1, stable=True).indices)
    indices = order[:, :k]
    return scores.gather(1, indices), indices
