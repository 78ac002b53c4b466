"""Retrieval of one modality by others: torchmetrics on streamed lists of the best candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mibfast.train.evaluation.probes import Probed

# The length of a list. A right candidate beyond it counts as not found, which changes MRR by less than 1 / 1000.
_DEPTH = 1000
_HITS = (1, 5, 10)


def retrieved(
    retrieve: Callable[[Tensor, Sequence[Tensor], int], Tensor],
    candidates: Tensor,
    context: Sequence[Tensor],
    own: Tensor,
    classes: tuple[Tensor, Tensor] | None = None,
) -> Probed:
    """Rank candidates for each query and score the lists.

    Parameters
    ----------
    retrieve : callable
        See :class:`mibfast.train.methods.Method`.
    candidates : Tensor [C, d]
    context : sequence of Tensor [Q, d]
        The embeddings at hand.
    own : Tensor [Q]
        Each query's right candidate, int64: that of its own sample.
    classes : (Tensor [Q], Tensor [C]), optional
        Classes of queries and of candidates, int64.

    Returns
    -------
    Probed
        R@1, R@5, R@10 and MRR of finding the query's own sample, where mAP would be MRR again; with classes, mAP of
        finding samples of the query's class. Of each query, over its best 1000 candidates.
    """
    from torchmetrics.retrieval import RetrievalMAP, RetrievalMRR, RetrievalRecall

    ranked = retrieve(candidates, context, min(_DEPTH, len(candidates)))
    is_own = ranked == own[:, None]
    values = {f"R@{k}": _each_query(RetrievalRecall, is_own[:, :k]) for k in _HITS}
    values["MRR"] = _each_query(RetrievalMRR, is_own)
    if classes is not None:
        query_classes, candidate_classes = classes
        values["mAP"] = _each_query(RetrievalMAP, candidate_classes[ranked] == query_classes[:, None])
    return Probed({name: (value, np.ones(len(value))) for name, value in values.items()})


def _each_query(metric: Callable[..., Any], relevant: Tensor) -> NDArray[np.float64]:
    """Return a metric of each query [Q]; `relevant` marks the relevant candidates of its list [Q, k], best first."""
    # Only the order counts; to torchmetrics, a candidate with a score of at most 0 was not retrieved.
    places = torch.arange(relevant.shape[1], 0, -1, dtype=torch.float32).expand(relevant.shape)
    queries = torch.arange(len(relevant))[:, None].expand(relevant.shape)
    each = metric(empty_target_action="neg", aggregation=lambda values, dim=None: values)
    each.update(places.flatten(), relevant.flatten(), indexes=queries.flatten())
    values: NDArray[np.float64] = each.compute().double().reshape(-1).numpy()
    return values
