"""Concatenation: concatenated representations, and a perceptron on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from mibfast.nn.fusion.model import FusionModel
from mibfast.nn.fusion.prediction import prediction_head
from mibfast.nn.fusion.tasks import Task


class Concatenation(FusionModel):
    """Concatenated representations, and a perceptron on them.

    Without a hidden layer it is what OGM-GE (Peng et al., CVPR 2022) releases as concatenation, and the same family of
    functions as its sum of one linear layer a modality.

    Parameters
    ----------
    encoders, features, task
        As those of :class:`FusionModel`.
    hidden_features : int or None
        Width of the hidden layer; None for a linear layer alone.

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

    title: ClassVar[str] = "concatenation"

    def __init__(
        self, encoders: Mapping[str, nn.Module], features: int, task: Task, hidden_features: int | None = 512
    ) -> None:
        super().__init__(encoders, features, task)
        self.predictor = prediction_head("Concatenation", len(encoders) * features, task, hidden_features)

    def predict(self, representations: Sequence[Tensor]) -> Tensor:
        """Return predictions [N, task.outputs] from representations, M of [N, features]."""
        prediction: Tensor = self.predictor(torch.cat(list(representations), dim=1))
        return prediction
