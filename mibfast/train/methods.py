"""The methods that can be trained, by name: a loss, and the score that its retrieval uses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mibfast import functional as F
from mibfast import losses
from mibfast.data.multimodal import nearest
from mibfast.train.errors import RunError


@dataclass(frozen=True)
class Method:
    """A way to align modalities.

    Attributes
    ----------
    title : str
    loss_class : callable
        Makes the loss.
    settings : mapping
        Arguments of the loss where they are not its defaults.
    retrieval_score : callable
        Takes candidates [C, d] and a sequence of contexts [Q, d], and returns scores [Q, C]; higher is better.
    """

    title: str
    loss_class: Callable[..., nn.Module]
    settings: Mapping[str, Any]
    retrieval_score: Callable[[Tensor, Sequence[Tensor]], Tensor]

    def loss(self, **options: Any) -> nn.Module:
        """Make the loss, with arguments besides the method's own; RunError for those that it does not take."""
        valid = [name for name in inspect.signature(self.loss_class).parameters if name != "self"]
        for name in options:
            if name not in valid:
                raise RunError(f"{self.title} has no loss option {name!r}{nearest(name, valid)}")
        try:
            return self.loss_class(**{**self.settings, **options})
        except (TypeError, ValueError) as error:
            raise RunError(str(error)) from error


def _summed_cosines(candidates: Tensor, context: Sequence[Tensor]) -> Tensor:
    """Scores [Q, C]: the cosine of a candidate with each embedding at hand, summed."""
    unit = nn.functional.normalize
    first, *rest = (unit(z, dim=1) @ unit(candidates, dim=1).T for z in context)
    return sum(rest, start=first)


def _projection_score(candidates: Tensor, context: Sequence[Tensor]) -> Tensor:
    return F.projection_score(candidates, torch.stack(tuple(context), dim=1))


# The baselines of the OVA-IB paper: its temperature, and the positive left out of their denominator as well.
_BASELINE = {"temperature": 0.01, "positive_in_denominator": False}

METHODS = {
    "ova-ib": Method("OVA-IB", losses.OVAIBLoss, {}, _projection_score),
    "clip": Method("pairwise CLIP", losses.PairwiseCLIPLoss, _BASELINE, _summed_cosines),
    "clip-ib": Method("pairwise CLIP + IB", losses.PairwiseCLIPIBLoss, _BASELINE, _summed_cosines),
}


def method(name: str) -> Method:
    """Return a method by its name; RunError with the nearest one where there is none."""
    if name not in METHODS:
        raise RunError(f"unknown method {name!r}{nearest(name, METHODS)}")
    return METHODS[name]
