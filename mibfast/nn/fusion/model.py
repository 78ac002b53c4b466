"""What all fusions share: an encoder for each modality, a prediction from all of them, and a loss of named terms."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from mibfast import _check
from mibfast._modules import ResettableModule
from mibfast.nn.fusion.collapse import collapse_risks
from mibfast.nn.fusion.tasks import Task


class FusionModel(ResettableModule):
    """Encoders of M modalities, fused into one prediction.

    Subclasses define :meth:`predict`, and `_terms`, which :meth:`terms` calls, where they minimise more than the task's
    loss; `mibfast.nn.fusion.METHODS` lists them for the command line, with the first line of their docstrings.

    Parameters
    ----------
    encoders : mapping from a modality's name to nn.Module
        From samples [N, ...] to representations [N, features].
    features : int
        Length of a representation.
    task : Task
        What is predicted.

    Attributes
    ----------
    title : str
        The method's name in tables and messages.
    stages : tuple of str
        Of training, in order; the validation loss of the last one chooses the weights.
    """

    title: ClassVar[str]
    stages: ClassVar[tuple[str, ...]] = ("main",)

    def __init__(self, encoders: Mapping[str, nn.Module], features: int, task: Task) -> None:
        super().__init__()
        name = type(self).__name__
        if not isinstance(encoders, Mapping) or len(encoders) < 2:
            raise ValueError(
                f"{name}: encoders must be a mapping of at least 2 modalities, got {_check.described(encoders)}"
            )
        if not isinstance(task, Task):
            raise TypeError(f"{name}: task must be a mibfast.nn.fusion.Task, got {_check.described(task)}")
        _check.count(name, "features", features)
        for each, encoder in encoders.items():
            if not isinstance(encoder, nn.Module):
                raise TypeError(f"{name}: encoders[{each!r}] must be an nn.Module, got {_check.described(encoder)}")
        self.encoders = nn.ModuleDict(encoders)
        self.features, self.task = features, task
        risks = [] if task.biased else collapse_risks(self.encoders)
        if risks:
            listed = ", ".join(risks[:6]) + (f" and {len(risks) - 6} more" if len(risks) > 6 else "")
            warnings.warn(
                f"{name}: for anomaly detection encoders should have no bias and no bounded activation, with which "
                "they can map all samples to the centre (Ruff et al., 2018, section 3.3); encoders have "
                f"{listed}",
                stacklevel=3,
            )

    @property
    def modalities(self) -> list[str]:
        """Names of the modalities, in order."""
        return list(self.encoders)

    def encode(self, views: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the representation [N, features] of each modality, in order."""
        operation, representations = type(self).__name__, {}
        if not isinstance(views, Mapping):
            raise TypeError(
                f"{operation}: views must be a mapping from a modality's name to its samples, "
                f"got {_check.described(views)}"
            )
        missing = [name for name in self.encoders if name not in views]
        if missing:
            raise ValueError(
                f"{operation}: views must hold {', '.join(self.modalities)}; {', '.join(missing)} are missing"
            )
        for name, encoder in self.encoders.items():
            argument = f"the output of encoders[{name!r}]"
            z = representations[argument] = _check.tensor(operation, argument, encoder(views[name]), "N features")
            _check.size(operation, argument, z, 1, self.features)
        _check.same_shape(operation, **representations)
        return list(representations.values())

    def predict(self, representations: Sequence[Tensor]) -> Tensor:
        """Return predictions [N, task.outputs] from representations, M of [N, features]; nothing is drawn."""
        raise NotImplementedError

    def forward(self, views: Mapping[str, Tensor]) -> Tensor:
        """Return predictions [N, task.outputs] of samples."""
        return self.predict(self.encode(views))

    def terms(self, views: Mapping[str, Tensor], target: Any, stage: str = "main") -> dict[str, Tensor]:
        """Return what a stage of training minimises, under "loss", and the terms that it is made of, means over N.

        All but the loss are detached. ValueError for a stage that is not one of :attr:`stages`.
        """
        _check.choice(type(self).__name__, "stage", stage, self.stages)
        terms = self._terms(views, target, stage)
        return {name: x if name == "loss" else x.detach() for name, x in terms.items()}

    def _terms(self, views: Mapping[str, Tensor], target: Any, stage: str) -> dict[str, Tensor]:
        """Return the loss and its terms; here it is the task's mean loss alone."""
        return {"loss": self.task.loss(self(views), target).mean()}
