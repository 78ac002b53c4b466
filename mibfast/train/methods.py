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
    sized : bool
        Whether the loss has parameters for a number of modalities and features, its first arguments.
    unit : str
        Of the loss.
    """

    title: str
    loss_class: Callable[..., nn.Module]
    settings: Mapping[str, Any]
    retrieval_score: Callable[[Tensor, Sequence[Tensor]], Tensor]
    sized: bool = False
    unit: str = "nats"

    def loss(self, modalities: int, features: int, /, **options: Any) -> nn.Module:
        """Make the loss of so many modalities and features, with arguments besides the method's own.

        RunError for arguments that it does not take.
        """
        sizes = {"modalities": modalities, "features": features} if self.sized else {}
        valid = [name for name in inspect.signature(self.loss_class).parameters if name not in ("self", *sizes)]
        for name in options:
            if name not in valid:
                raise RunError(f"{self.title} has no loss option {name!r}{nearest(name, valid)}")
        try:
            return self.loss_class(**sizes, **{**self.settings, **options})
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


def _summed_cosines(candidates: Tensor, context: Sequence[Tensor]) -> Tensor:
    """Scores [Q, C]: the cosine of a candidate with each embedding at hand, summed."""
    first, *rest = (_unit(z) @ _unit(candidates).T for z in context)
    return sum(rest, start=first)


def _projection_score(candidates: Tensor, context: Sequence[Tensor]) -> Tensor:
    return F.projection_score(candidates, torch.stack(tuple(context), dim=1))


def _minus_volume(candidates: Tensor, context: Sequence[Tensor]) -> Tensor:
    """Scores [Q, C]: the volume that a candidate spans with the embeddings at hand; with one, minus the sine."""
    return -F.gram_volume(_unit(candidates), [_unit(z) for z in context]).T


def _minus_area(candidates: Tensor, context: Sequence[Tensor]) -> Tensor:
    """Scores [Q, C]: the area of a candidate's triangle with two embeddings; the cosine with one, which has none."""
    if len(context) == 1:
        return _summed_cosines(candidates, context)
    second, third = context
    return -F.triangle_area(_unit(candidates), _unit(second), _unit(third)).T


def _multilinear_inner_product(candidates: Tensor, context: Sequence[Tensor]) -> Tensor:
    """Scores [Q, C]: the inner product with the elementwise product of the embeddings at hand, all made unit."""
    product = torch.stack([_unit(z) for z in context]).prod(0)
    return product @ _unit(candidates).T


# The baselines of the OVA-IB paper: its temperature, and the positive left out of their denominator as well.
_BASELINE = {"temperature": 0.01, "positive_in_denominator": False}
# As GRAM's and TRIANGLE's released code.
_LEARNED = {"learnable_temperature": True}

METHODS = {
    "ova-ib": Method("OVA-IB", losses.OVAIBLoss, {}, _projection_score),
    "clip": Method("pairwise CLIP", losses.PairwiseCLIPLoss, _BASELINE, _summed_cosines),
    "clip-ib": Method("pairwise CLIP + IB", losses.PairwiseCLIPIBLoss, _BASELINE, _summed_cosines),
    # Retrieval by OVA-IB's score: a learned projector takes all other modalities, and no fewer.
    "ova-ib-mlp": Method(
        "OVA-IB with learned projectors", losses.LearnedProjectorOVAIBLoss, {}, _projection_score, sized=True
    ),
    "symile": Method("Symile", losses.SymileLoss, {"learnable_scale": True}, _multilinear_inner_product),
    "gram": Method("GRAM", losses.GRAMLoss, _LEARNED, _minus_volume),
    "triangle": Method("TRIANGLE", losses.TRIANGLELoss, _LEARNED, _minus_area),
    "siglip": Method("SigLIP", losses.SigLIPLoss, {}, _summed_cosines),
    "barlow-twins": Method("Barlow Twins", losses.BarlowTwinsLoss, {}, _summed_cosines, unit=""),
}


def method(name: str) -> Method:
    """Return a method by its name; RunError with the nearest one where there is none."""
    if name not in METHODS:
        raise RunError(f"unknown method {name!r}{nearest(name, METHODS)}")
    return METHODS[name]
