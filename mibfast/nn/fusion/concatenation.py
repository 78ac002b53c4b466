"""Concatenation: the representations side by side, and a multilayer perceptron on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mibfast.nn.fusion.model import FusionModel
from mibfast.nn.fusion.tasks import Task
from mibfast.nn.mlp import MLPEncoder


class Concatenation(FusionModel):
    """The representations side by side, and a multilayer perceptron with one hidden layer on them.

    Parameters
    ----------
    encoders : mapping from a modality's name to nn.Module
        From samples [N, ...] to representations [N, features].
    features : int
        Length of a representation.
    task : Task
        What is predicted.
    hidden_features : int
        Width of the hidden layer.

    Examples
    --------
    >>> import torch
    >>> from mibfast.nn import fusion
    >>> encoders = {"image": torch.nn.Linear(8, 4), "text": torch.nn.Linear(6, 4)}
    >>> model = fusion.Concatenation(encoders, 4, fusion.Classification(3))
    >>> views = {"image": torch.randn(5, 8), "text": torch.randn(5, 6)}
    >>> model(views).shape
    torch.Size([5, 3])
    >>> sorted(model.terms(views, torch.tensor([0, 1, 2, 0, 1])))
    ['loss']
    """

    def __init__(
        self, encoders: Mapping[str, nn.Module], features: int, task: Task, hidden_features: int = 512
    ) -> None:
        super().__init__(encoders, features, task)
        self.predictor = MLPEncoder(len(encoders) * features, task.outputs, hidden_features, depth=2)

    def predict(self, representations: Sequence[Tensor]) -> Tensor:
        """Return predictions [N, task.outputs] from representations, M of [N, features]."""
        prediction: Tensor = self.predictor(torch.cat(list(representations), dim=1))
        return prediction

    def terms(self, views: Mapping[str, Tensor], target: Any, stage: str = "main") -> dict[str, Tensor]:
        """Return the task's mean loss."""
        return {"loss": self.task.loss(self(views), target).mean()}
