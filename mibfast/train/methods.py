"""The methods that can be trained, by name: a loss, and the score that its retrieval uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mibfast import functional as F
from mibfast import losses


@dataclass(frozen=True)
class Method:
    """A way to align modalities."""

    title: str
    loss: Callable[[str | None], nn.Module]
    retrieval_score: Callable[[Tensor, Sequence[Tensor]], Tensor]


def _summed_cosines(candidates: Tensor, context: Sequence[Tensor]) -> Tensor:
    """Scores [Q, C]: the cosine of a candidate with each embedding at hand, summed."""
    unit = nn.functional.normalize
    return sum((unit(z, dim=1) @ unit(candidates, dim=1).T for z in context), start=torch.zeros(()))


def _projection_score(candidates: Tensor, context: Sequence[Tensor]) -> Tensor:
    return F.projection_score(candidates, torch.stack(tuple(context), dim=1))


METHODS = {
    "ova_ib": Method("OVA-IB", lambda backend: losses.OVAIBLoss(backend=backend), _projection_score),
    # The baseline of the OVA-IB paper: its temperature, and the positive left out of the denominator as well.
    "pairwise_clip": Method(
        "pairwise CLIP",
        lambda backend: losses.PairwiseCLIPLoss(0.01, positive_in_denominator=False, backend=backend),
        _summed_cosines,
    ),
}


def method(name: str) -> Method:
    """Return a method by its name; ValueError with the valid ones where there is none."""
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; expected one of {', '.join(map(repr, METHODS))}")
    return METHODS[name]
