"""The Lightning modules that are trained: alignments and fusions, built from a run's settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from mibfast._check import NothingPresentError
from mibfast.data.multimodal import PRESENCE
from mibfast.nn import ProjectionHead
from mibfast.nn.fusion import AnomalyDetection, FusionModel
from mibfast.train.errors import RunError
from mibfast.train.fitting.config import RunConfig
from mibfast.train.fitting.encoders import build_encoders
from mibfast.train.fitting.targets import PREDICTION, TARGET, Target
from mibfast.train.memory import refuse_more_than_memory, sketched
from mibfast.train.methods import Alignment, method


class MultimodalModule(lightning.LightningModule):
    """A Lightning module of several modalities.

    A batch is a mapping from a modality's name to its samples, as they came: an encoder standardises them itself.

    Parameters
    ----------
    learning_rate, weight_decay : float
        Of AdamW.

    Attributes
    ----------
    stage : str
        Of training, set at the beginning of each epoch.
    """

    def __init__(self, learning_rate: float, weight_decay: float) -> None:
        super().__init__()
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.stage = "main"

    @property
    def modalities(self) -> list[str]:
        """Names of the modalities, in order."""
        raise NotImplementedError

    def represent(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the representation [N, features] of each modality in `views`, as its encoder makes it."""
        raise NotImplementedError

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW over all parameters, the loss's among them."""
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)


class AlignmentModule(MultimodalModule):
    """An encoder and a projection head for each modality, trained by one loss over all of them.

    Where samples lack modality NAME, a batch holds a bool tensor [N] under `NAME.presence`, True where a sample has it.
    An encoder and its batch statistics then see only the samples that have its modality; embeddings of the others are
    zeros, and the loss takes `presence`. A batch that leaves it nothing is skipped: its step changes no weight.

    Parameters
    ----------
    encoders : mapping from a modality's name to nn.Module
        From samples [N, ...] to representations [N, features].
    loss : nn.Module
        Takes the mapping of embeddings, as those of `mibfast.losses` do.
    features : int
        Length of representations and embeddings.
    learning_rate, weight_decay : float
        Of AdamW.

    Examples
    --------
    >>> import torch, mibfast
    >>> from mibfast.nn import MLPEncoder
    >>> from mibfast.train import AlignmentModule
    >>> encoders = {"image": MLPEncoder(64, 32), "text": MLPEncoder(16, 32), "audio": MLPEncoder(8, 32)}
    >>> module = AlignmentModule(encoders, mibfast.losses.OVAIBLoss(), features=32)
    >>> batch = {"image": torch.randn(8, 64), "text": torch.randn(8, 16), "audio": torch.randn(8, 8)}
    >>> {name: list(z.shape) for name, z in module(batch).items()}
    {'image': [8, 32], 'text': [8, 32], 'audio': [8, 32]}
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        loss: nn.Module,
        features: int = 256,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, weight_decay)
        self.encoders = nn.ModuleDict(encoders)
        self.heads = nn.ModuleDict({name: ProjectionHead(features, features) for name in encoders})
        self.loss = loss
        self.features = features

    @property
    def modalities(self) -> list[str]:
        """Names of the modalities, in order."""
        return list(self.encoders)

    def represent(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the representation [N, features] of each modality in `views`, for downstream tasks."""
        return {name: self._present_only(views, name, self.encoders[name]) for name in self.modalities if name in views}

    def forward(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the embedding [N, features] of each modality in `views`, for the loss and for retrieval."""
        return {
            name: self._present_only(views, name, self.encoders[name], self.heads[name])
            for name in self.modalities
            if name in views
        }

    def _present_only(self, views: Mapping[str, Tensor], name: str, *modules: nn.Module) -> Tensor:
        """Pass the samples that have a modality through modules; return zeros for the others."""
        x, present = views[name], views.get(f"{name}{PRESENCE}")
        n, positions = len(x), None
        if present is not None and not bool(present.all()):
            positions = present.nonzero().squeeze(1)
            if not len(positions):
                return next(self.heads[name].parameters()).new_zeros(n, self.features)
            x = x[positions]
        for module in modules:
            x = module(x)
        return x if positions is None else x.new_zeros(n, self.features).index_copy(0, positions, x)

    def training_step(self, batch: Mapping[str, Tensor], _: int) -> Tensor | None:
        """Return the loss of a batch, or None where its samples have no modalities in common."""
        loss: Tensor
        presence = self._presence(batch)
        if presence is None or bool(presence.all()):
            loss = self.loss(self(batch))
            return loss
        try:
            loss = self.loss(self(batch), presence)
        except NothingPresentError:
            return None
        return loss

    def validation_step(self, batch: Mapping[str, Tensor], position: int) -> Tensor | None:
        """Return the loss of a validation batch, as :meth:`training_step` does."""
        return AlignmentModule.training_step(self, batch, position)

    def _presence(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """Return a bool tensor [N, M], or None for a batch in which no modality is missing."""
        if not any(f"{name}{PRESENCE}" in batch for name in self.modalities):
            return None
        n, device = len(batch[self.modalities[0]]), batch[self.modalities[0]].device
        everything = torch.ones(n, dtype=torch.bool, device=device)
        return torch.stack([batch.get(f"{name}{PRESENCE}", everything) for name in self.modalities], dim=1)


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
    >>> from mibfast.train import FusionModule
    >>> from mibfast.train.fitting.targets import Target
    >>> target = Target("classification", classes=("cat", "dog"))
    >>> encoders = {"image": MLPEncoder(64, 32), "text": MLPEncoder(16, 32)}
    >>> module = FusionModule(fusion.Concatenation(encoders, 32, target.task_for(32)), target)
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


def build_module(
    config: RunConfig,
    shapes: Mapping[str, Sequence[int]],
    statistics: Mapping[str, tuple[Tensor, Tensor]],
    target: Target | None = None,
    beta: Mapping[str, Any] | None = None,
) -> AlignmentModule | FusionModule:
    """Build the module that is trained; RunError where it takes more memory than is free."""
    # The size of a user's own encoders is not known before they are made.
    named = {name: encoder for name, encoder in config.encoders.items() if ":" not in encoder}
    known = dataclasses.replace(config, encoders=named, dropout=0.0)
    refuse_more_than_memory(sketched(partial(assembled, known, shapes, statistics, target, beta)))
    return assembled(config, shapes, statistics, target, beta)


def assembled(
    config: RunConfig,
    shapes: Mapping[str, Sequence[int]],
    statistics: Mapping[str, tuple[Tensor, Tensor]],
    target: Target | None,
    beta: Mapping[str, Any] | None,
) -> AlignmentModule | FusionModule:
    """Build the module of a config's method, whatever memory it takes."""
    chosen, optimizer = method(config.method), (config.learning_rate, config.weight_decay)
    # With biases, encoders could map every sample to the centre that normal samples should be near.
    bias = target is None or target.task != "anomaly-detection"
    encoders = build_encoders(shapes, statistics, config.features, config.encoders, config.depth, bias, config.dropout)
    if isinstance(chosen, Alignment):
        loss = chosen.loss(len(shapes), config.features, **config.loss)
        return AlignmentModule(encoders, loss, config.features, *optimizer)
    if target is None:
        raise RunError("a fusion needs a target")
    options = {**({} if beta is None else {"beta": beta["beta"]}), **config.loss}
    return FusionModule(
        chosen.model(encoders, config.features, target.task_for(config.features), **options), target, *optimizer
    )
