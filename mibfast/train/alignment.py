"""Encoders of several modalities and one loss over all of them, as a Lightning module."""

from __future__ import annotations

from collections.abc import Mapping

import lightning
import torch
from torch import Tensor, nn

from mibfast.nn import ProjectionHead


class AlignmentModule(lightning.LightningModule):
    """An encoder and a projection head for each modality, trained by one loss over all of them.

    A batch is a mapping from a modality's name to its samples, as they came: an encoder standardises them itself.

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
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.heads = nn.ModuleDict({name: ProjectionHead(features, features) for name in encoders})
        self.loss = loss
        self.learning_rate, self.weight_decay = learning_rate, weight_decay

    @property
    def modalities(self) -> list[str]:
        """Names of the modalities, in order."""
        return list(self.encoders)

    def represent(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the representation [N, features] of each modality in `views`, for downstream tasks."""
        return {name: self.encoders[name](views[name]) for name in self.modalities if name in views}

    def forward(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the embedding [N, features] of each modality in `views`, for the loss and for retrieval."""
        return {name: self.heads[name](x) for name, x in self.represent(views).items()}

    def training_step(self, batch: Mapping[str, Tensor], _: int) -> Tensor:
        """Return the loss of a batch."""
        loss: Tensor = self.loss(self(batch))
        return loss

    def validation_step(self, batch: Mapping[str, Tensor], _: int) -> Tensor:
        """Return the loss of a validation batch."""
        loss: Tensor = self.loss(self(batch))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW over all parameters, the loss's among them."""
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
