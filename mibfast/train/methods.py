"""The methods that can be trained, by name: alignments of modalities, and fusions of them that predict labels."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mibfast import functional as F
from mibfast import losses
from mibfast._precision import unit
from mibfast.data.multimodal import nearest
from mibfast.nn import fusion
from mibfast.nn.fusion import AnomalyDetection, Classification, FusionModel, Regression, Task
from mibfast.omib import OMIB
from mibfast.train.errors import RunError
from mibfast.train.memory import built

# What a loss or a model raises for a value that does not fit: of a wrong type, out of range, or beyond memory.
_MISFIT = (TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError)


@contextmanager
def _misfits_refused() -> Iterator[None]:
    try:
        yield
    except _MISFIT as error:
        raise RunError(str(error)) from error


@dataclass(frozen=True)
class Method:
    """A method that can be trained: an :class:`Alignment` or a :class:`Fusion`.

    Attributes
    ----------
    title : str
        Its name in tables and messages.
    kind : callable
        The class of its loss or of its model.
    """

    title: str
    kind: Callable[..., nn.Module]

    @property
    def help(self) -> str:
        """One line about the method: the first one of its class's docstring."""
        return (inspect.getdoc(self.kind) or "").partition("\n")[0]

    @property
    def options(self) -> list[str]:
        """Names of the class's arguments that a run can give."""
        return [name for name in inspect.signature(self.kind).parameters if name not in self._own_arguments]

    @property
    def _own_arguments(self) -> tuple[str, ...]:
        raise NotImplementedError

    def refuse_options(self, options: Mapping[str, Any]) -> None:
        """Raise RunError for an unknown argument."""
        for name in options:
            if name not in self.options:
                raise RunError(f"{self.title} has no loss option {name!r}{nearest(name, self.options)}")


@dataclass(frozen=True)
class Alignment(Method):
    """A way to align modalities, without labels.

    Attributes
    ----------
    title : str
    kind : callable
        Makes the loss.
    settings : mapping
        Arguments of the loss where they are not its defaults.
    retrieve : callable
        Takes candidates [C, d], a sequence of contexts [Q, d] and k, and returns the indices [Q, k] of the candidates
        that score best for each context, best first, by :func:`mibfast.functional.top_k`.
    sized : bool
        Whether the loss has parameters for a number of modalities and features, its first arguments.
    unit : str
        Of the loss.
    settings_beyond_three : mapping
        Arguments for more than three modalities.
    joint : bool
        Whether the loss takes only samples that have all modalities.
    """

    settings: Mapping[str, Any]
    retrieve: Callable[[Tensor, Sequence[Tensor], int], Tensor]
    sized: bool = False
    unit: str = "nats"
    settings_beyond_three: Mapping[str, Any] = field(default_factory=dict)
    joint: bool = False

    @property
    def _own_arguments(self) -> tuple[str, ...]:
        return ("modalities", "features") if self.sized else ()

    def loss(self, modalities: int, features: int, /, **options: Any) -> nn.Module:
        """Make the loss for a number of modalities and features; RunError for arguments that it does not take."""
        self.refuse_options(options)
        sizes = {"modalities": modalities, "features": features} if self.sized else {}
        settings = {**self.settings, **(self.settings_beyond_three if modalities > 3 else {})}
        with _misfits_refused():
            return built(partial(self.kind, **sizes, **{**settings, **options}))

    def refuse_misfit(self, modalities: Sequence[str], features: int, /, **options: Any) -> None:
        """Raise RunError where the loss does not take embeddings of these modalities, by trying two samples."""
        loss = self.loss(len(modalities), features, **options)
        with _misfits_refused(), torch.no_grad():
            loss({name: torch.randn(2, features) for name in modalities})


@dataclass(frozen=True)
class Fusion(Method):
    """A way to predict labels from several modalities, all of which a sample must have.

    Attributes
    ----------
    title : str
    kind : type of FusionModel
    estimates_beta : bool
        Whether its bottleneck's weight `beta`, where it is left out, is estimated from the data before training.
    """

    kind: type[FusionModel]
    estimates_beta: bool = False

    @property
    def _own_arguments(self) -> tuple[str, ...]:
        return ("encoders", "features", "task")

    @property
    def beta(self) -> float | None:
        """The default of the bottleneck's weight; None where there is no such weight, or it is estimated."""
        parameter = inspect.signature(self.kind).parameters.get("beta")
        return None if parameter is None else parameter.default

    def needs_beta(self, options: Mapping[str, Any]) -> bool:
        """Return whether beta is to be estimated: it is left out, and there is a bottleneck for it to weigh."""
        return self.estimates_beta and "beta" not in options and bool(options.get("bottleneck", True))

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of training, in order."""
        return self.kind.stages

    def model(self, encoders: Mapping[str, nn.Module], features: int, task: Task, /, **options: Any) -> FusionModel:
        """Make the model; RunError for arguments that it does not take."""
        self.refuse_options(options)
        with _misfits_refused():
            return built(partial(self.kind, encoders, features, task, **options))

    def refuse_misfit(self, modalities: Sequence[str], features: int, task: Task, /, **options: Any) -> None:
        """Raise RunError where the model does not take these modalities and this task, by trying a few samples."""
        if self.estimates_beta:
            options = {"beta": 1.0, **options}
        model = self.model({name: nn.Identity() for name in modalities}, features, task, **options)
        target = {
            Classification: torch.arange(4) % task.outputs,
            Regression: torch.randn(4, task.outputs),
            AnomalyDetection: torch.zeros(4, dtype=torch.int64),
        }[type(task)]
        if isinstance(task, AnomalyDetection):
            task.set_center(torch.ones(1, task.outputs))
        views = {name: torch.randn(4, features) for name in modalities}
        with _misfits_refused(), torch.no_grad():
            for stage in self.stages:
                model.terms(views, target, stage)


def by_cosines(candidates: Tensor, context: Sequence[Tensor], k: int) -> Tensor:
    """Retrieve by the sum of a candidate's cosines with the context."""
    return F.top_k(torch.stack([unit(z) for z in context]).sum(0), unit(candidates), k)[1]


def by_projection(candidates: Tensor, context: Sequence[Tensor], k: int, ridge: float = 1e-8) -> Tensor:
    """Retrieve by the cosine of a candidate with its ridge projection on the context."""
    return F.top_k(torch.stack(tuple(context), dim=1), candidates, k, score="ridge_projection", ridge=ridge)[1]


def _by_volume(candidates: Tensor, context: Sequence[Tensor], k: int) -> Tensor:
    """Retrieve by the smallest volume that a candidate spans with the context; with one embedding, by the sine."""
    return F.top_k(torch.stack(tuple(context), dim=1), candidates, k, score="gram_volume")[1]


def _by_area(candidates: Tensor, context: Sequence[Tensor], k: int) -> Tensor:
    """Retrieve by the smallest area of a candidate's triangle with two embeddings; with one, by the cosine."""
    if len(context) == 1:
        return by_cosines(candidates, context, k)
    return F.top_k(torch.stack(tuple(context), dim=1), candidates, k, score="triangle_area")[1]


def _by_multilinear_product(candidates: Tensor, context: Sequence[Tensor], k: int) -> Tensor:
    """Retrieve by the multilinear inner product of unit embeddings."""
    query = torch.stack([unit(z) for z in context], dim=1)
    return F.top_k(query, unit(candidates), k, score="symile")[1]


# The baselines of the OVA-IB paper: its temperature, and the positive left out of their denominator as well.
_BASELINE = {"temperature": 0.01, "positive_in_denominator": False}
# As GRAM's and TRIANGLE's released code.
_LEARNED = {"learnable_temperature": True}

ALIGNMENTS = {
    "ova-ib": Alignment("OVA-IB", losses.OVAIBLoss, {}, by_projection),
    "clip": Alignment("pairwise CLIP", losses.PairwiseCLIPLoss, _BASELINE, by_cosines),
    "clip-ib": Alignment("pairwise CLIP + IB", losses.PairwiseCLIPIBLoss, _BASELINE, by_cosines),
    # A learned projector takes all other modalities and retrieves by its prediction; fewer do by OVA-IB's score.
    "ova-ib-mlp": Alignment(
        "OVA-IB with learned projectors",
        losses.LearnedProjectorOVAIBLoss,
        {},
        by_projection,
        sized=True,
        joint=True,
    ),
    # A batch of 128 has 2 million combinations of three modalities and 268 million of four.
    "symile": Alignment(
        "Symile",
        losses.SymileLoss,
        {"learnable_scale": True},
        _by_multilinear_product,
        settings_beyond_three={"negatives": "shuffled"},
        joint=True,
    ),
    "gram": Alignment("GRAM", losses.GRAMLoss, _LEARNED, _by_volume, joint=True),
    "triangle": Alignment("TRIANGLE", losses.TRIANGLELoss, _LEARNED, _by_area, joint=True),
    "siglip": Alignment("SigLIP", losses.SigLIPLoss, {}, by_cosines),
    "barlow-twins": Alignment("Barlow Twins", losses.BarlowTwinsLoss, {}, by_cosines, unit="", joint=True),
}

FUSIONS = {
    "omib": Fusion(OMIB.title, OMIB, estimates_beta=True),
    **{name: Fusion(kind.title, kind) for name, kind in fusion.METHODS.items()},
}

METHODS: dict[str, Alignment | Fusion] = {**ALIGNMENTS, **FUSIONS}


def method(name: str) -> Alignment | Fusion:
    """Return a method by its name; RunError, which suggests the nearest, for an unknown one."""
    if name not in METHODS:
        raise RunError(f"unknown method {name!r}{nearest(name, METHODS)}")
    return METHODS[name]
