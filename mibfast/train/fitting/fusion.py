"""A fusion of several modalities, as a Lightning module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from mibfast.nn.fusion import AnomalyDetection, FusionModel
from mibfast.train.fitting.module import MultimodalModule
from mibfast.train.fitting.targets import PREDICTION, TARGET, Target


class FusionModule(MultimodalModule):
    """A fusion, trained by its own loss in its own stages to predict labels.

    A batch holds targets beside the modalities, under :data:`mibfast.train.fitting.targets.TARGET`. All of its samples
    have all modalities.

    Parameters
    ----------
    model : FusionModel
    target : Target
        What the labels are to it.
    learning_rate, weight_decay : float
        Of AdamW. One optimizer goes through all stages; a parameter that a stage does not train is left as it is.

    Examples
    --------
    >>> import torch
    >>> from mibfast.nn import MLPEncoder, fusion
    >>> from mibfast.train.fitting.fusion import FusionModule
    >>> from mibfast.train.fitting.targets import Target
    >>> target = Target("classification", classes=("cat", "dog"))
    >>> encoders = {"image": MLPEncoder(64, 32), "text": MLPEncoder(16, 32)}
    >>> module = FusionModule(fusion.Concatenation(encoders, 32, target.of(32)), target)
    >>> module({"image": torch.randn(8, 64), "text": torch.randn(8, 16)}).shape
    torch.Size([8, 2])
    """

    def __init__(
        self, model: FusionModel, target: Target, learning_rate: float = 1e-3, weight_decay: float = 0.0
    ) -> None:
        super().__init__(learning_rate, weight_decay)
        self.model, self.target = model, target
        self.stage = model.stages[-1]

    @property
    def modalities(self) -> list[str]:
        """Names of the modalities, in order."""
        return self.model.modalities

    def represent(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the representation [N, features] of each modality in `views`."""
        return {name: encoder(views[name]) for name, encoder in self.model.encoders.items() if name in views}

    def forward(self, views: Mapping[str, Tensor]) -> Tensor:
        """Return logits [N, classes], targets [N, targets] in their own units, or anomaly scores [N, 1]."""
        prediction = self.model(views)
        if self.target.task == "anomaly-detection":
            return self.model.task.loss(prediction, None)[:, None]
        return self.target.in_units(prediction)

    @torch.no_grad()
    def set_center(self, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Set the centre of anomaly detection to the mean of what the untrained model predicts of batches."""
        assert isinstance(self.model.task, AnomalyDetection)
        training = self.training
        self.eval()
        total, count = torch.zeros(self.model.task.outputs, dtype=torch.float64), 0
        for batch in batches:
            prediction = self.model(batch)
            total, count = total + prediction.double().sum(0), count + len(prediction)
        self.model.task.set_center((total / count).to(self.model.task.center)[None])
        self.train(training)

    def training_step(self, batch: Mapping[str, Tensor], _: int) -> dict[str, Tensor]:
        """Return a batch's loss and the terms of the stage."""
        return self.model.terms(batch, batch[TARGET], self.stage)

    def validation_step(self, batch: Mapping[str, Tensor], position: int) -> dict[str, Tensor]:
        """Return a validation batch's loss and terms, with the same noise at every epoch.

        In the last stage there is also "prediction", the task's mean loss of what the model predicts: without noise and
        without what else a method minimises, so that it means the same for all.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(position)
            terms = self.model.terms(batch, batch[TARGET], self.stage)
        if self.stage == self.model.stages[-1]:
            terms[PREDICTION] = self.model.task.loss(self.model(batch), batch[TARGET]).mean()
        return terms
