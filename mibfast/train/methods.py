"""The methods that can be trained, by name: a loss, and how its embeddings retrieve what is missing."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
    settings_beyond_three : mapping
        Those for more than three modalities.
    retrieve : callable
        Takes candidates [C, d], a sequence of contexts [Q, d] and k, and returns the indices [Q, k] of the candidates
        that score best for each context, best first, by :func:`mibfast.functional.top_k`.
    sized : bool
        Whether the loss has parameters for a number of modalities and features, its first arguments.
    unit : str
        Of the loss.
    joint : bool
        Whether the loss is over the samples that have all modalities; of one that lacks any it takes nothing.
    """

    title: str
    loss_class: Callable[..., nn.Module]
    settings: Mapping[str, Any]
    retrieve: Callable[[Tensor, Sequence[Tensor], int], Tensor]
    sized: bool = False
    unit: str = "nats"
    settings_beyond_three: Mapping[str, Any] = field(default_factory=dict)
    joint: bool = False

    def loss(self, modalities: int, features: int, /, **options: Any) -> nn.Module:
        """Make the loss of so many modalities and features, with arguments besides the method's own.

        RunError for arguments that it does not take.
        """
        sizes = {"modalities": modalities, "features": features} if self.sized else {}
        valid = [name for name in inspect.signature(self.loss_class).parameters if name not in ("self", *sizes)]
        for name in options:
            if name not in valid:
                raise RunError(f"{self.title} has no loss option {name!r}{nearest(name, valid)}")
        settings = {**self.settings, **(self.settings_beyond_three if modalities > 3 else {})}
        try:
            return self.loss_class(**sizes, **{**settings, **options})
        except (TypeError, ValueError) as error:
            raise RunError(str(error)) from error

    def refuse_misfit(self, modalities: Sequence[str], features: int, /, **options: Any) -> None:
        """Raise RunError where the loss does not take embeddings of these modalities, by trying two samples."""
        loss = self.loss(len(modalities), features, **options)
        try:
            with torch.no_grad():
                loss({name: torch.randn(2, features) for name in modalities})
        except (TypeError, ValueError, RuntimeError) as error:
            raise RunError(str(error)) from error


def _unit(z: Tensor) -> Tensor:
    return nn.functional.normalize(z, dim=1)


def by_cosines(candidates: Tensor, context: Sequence[Tensor], k: int) -> Tensor:
    """Retrieve by the cosines of a candidate with the embeddings at hand, summed."""
    return F.top_k(torch.stack([_unit(z) for z in context]).sum(0), _unit(candidates), k)[1]


def by_projection(candidates: Tensor, context: Sequence[Tensor], k: int, ridge: float = 1e-8) -> Tensor:
    """Retrieve by the cosine of a candidate with its ridge projection on the embeddings at hand."""
    return F.top_k(torch.stack(tuple(context), dim=1), candidates, k, score="ridge_projection", ridge=ridge)[1]


def _by_volume(candidates: Tensor, context: Sequence[Tensor], k: int) -> Tensor:
    """By the smallest volume that a candidate spans with the embeddings at hand; with one, by the smallest sine."""
    return F.top_k(torch.stack(tuple(context), dim=1), candidates, k, score="gram_volume")[1]


def _by_area(candidates: Tensor, context: Sequence[Tensor], k: int) -> Tensor:
    """By the smallest area of a candidate's triangle with two embeddings; with one, which has none, by the cosine."""
    if len(context) == 1:
        return by_cosines(candidates, context, k)
    return F.top_k(torch.stack(tuple(context), dim=1), candidates, k, score="triangle_area")[1]


def _by_multilinear_product(candidates: Tensor, context: Sequence[Tensor], k: int) -> Tensor:
    """By the multilinear inner product of unit embeddings."""
    query = torch.stack([_unit(z) for z in context], dim=1)
    return F.top_k(query, _unit(candidates), k, score="symile")[1]


# The baselines of the OVA-IB paper: its temperature, and the positive left out of their denominator as well.
_BASELINE = {"temperature": 0.01, "positive_in_denominator": False}
# As GRAM's and TRIANGLE's released code.
_LEARNED = {"learnable_temperature": True}

METHODS = {
    "ova-ib": Method("OVA-IB", losses.OVAIBLoss, {}, by_projection),
    "clip": Method("pairwise CLIP", losses.PairwiseCLIPLoss, _BASELINE, by_cosines),
    "clip-ib": Method("pairwise CLIP + IB", losses.PairwiseCLIPIBLoss, _BASELINE, by_cosines),
    # A learned projector takes all other modalities and retrieves by its prediction; fewer do by OVA-IB's score.
    "ova-ib-mlp": Method(
        "OVA-IB with learned projectors",
        losses.LearnedProjectorOVAIBLoss,
        {},
        by_projection,
        sized=True,
        joint=True,
    ),
    # A batch of 128 has 2 million combinations of three modalities and 268 million of four.
    "symile": Method(
        "Symile",
        losses.SymileLoss,
        {"learnable_scale": True},
        _by_multilinear_product,
        settings_beyond_three={"negatives": "shuffled"},
        joint=True,
    ),
    "gram": Method("GRAM", losses.GRAMLoss, _LEARNED, _by_volume, joint=True),
    "triangle": Method("TRIANGLE", losses.TRIANGLELoss, _LEARNED, _by_area, joint=True),
    "siglip": Method("SigLIP", losses.SigLIPLoss, {}, by_cosines),
    "barlow-twins": Method("Barlow Twins", losses.BarlowTwinsLoss, {}, by_cosines, unit="", joint=True),
}


def method(name: str) -> Method:
    """Return a method by its name; RunError with the nearest one where there is none."""
    if name not in METHODS:
        raise RunError(f"unknown method {name!r}{nearest(name, METHODS)}")
    return METHODS[name]
