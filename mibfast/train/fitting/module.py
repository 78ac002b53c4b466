"""The base of the Lightning modules: encoders by modality, an optimizer, a stage of training."""

from __future__ import annotations

from collections.abc import Mapping

import lightning
import torch
from torch import Tensor


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
