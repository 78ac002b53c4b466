"""Encoders of several modalities and one loss over all of them, as a Lightning module."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mibfast._check import NothingPresentError
from mibfast.data.multimodal import PRESENCE
from mibfast.nn import ProjectionHead
from mibfast.train.fitting.module import MultimodalModule


class AlignmentModule(MultimodalModule):
    """An encoder and a projection head for each modality, trained by one loss over all of them.

    A batch is a mapping from a modality's name to its samples, as they came: an encoder standardises them itself. Where
    samples lack modality NAME, the batch holds a bool tensor [N] under `NAME.presence`, True where a sample has it. An
    encoder and its batch statistics then see the samples that have its modality alone; embeddings of the others are
    zeros, and the loss is given `presence`. A batch that leaves it nothing is skipped: its step changes no weight.

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
        return {name: self._of_present(views, name, self.encoders[name]) for name in self.modalities if name in views}

    def forward(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the embedding [N, features] of each modality in `views`, for the loss and for retrieval."""
        return {
            name: self._of_present(views, name, self.encoders[name], self.heads[name])
            for name in self.modalities
            if name in views
        }

    def _of_present(self, views: Mapping[str, Tensor], name: str, *modules: nn.Module) -> Tensor:
        """Pass the samples that have a modality through modules, and return zeros for the others."""
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
        """Return the loss of a batch, or None where what samples lack leaves nothing to take it of."""
        return self._loss(batch)

    def validation_step(self, batch: Mapping[str, Tensor], _: int) -> Tensor | None:
        """Return the loss of a validation batch, or None where what samples lack leaves nothing to take it of."""
        return self._loss(batch)

    def _loss(self, batch: Mapping[str, Tensor]) -> Tensor | None:
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

    def _presence(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """Return a bool tensor [N, M], or None where a batch does not say that anything is missing."""
        if not any(f"{name}{PRESENCE}" in batch for name in self.modalities):
            return None
        n, device = len(batch[self.modalities[0]]), batch[self.modalities[0]].device
        everything = torch.ones(n, dtype=torch.bool, device=device)
        return torch.stack([batch.get(f"{name}{PRESENCE}", everything) for name in self.modalities], dim=1)
