"""Training encoders of several modalities with an alignment loss."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import RichProgressBar
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mibfast.data import MultimodalData
from mibfast.nn import MLPEncoder, ProjectionHead


class AlignmentModule(lightning.LightningModule):
    """An encoder and a projection head for each modality, trained by one loss over all of them.

    Parameters
    ----------
    in_features : mapping from a modality's name to the length of its vectors
    loss : nn.Module
        Takes the mapping of embeddings, as those of `mibfast.losses` do.
    features : int
        Length of representations and embeddings.
    learning_rate : float
        Of Adam.

    Attributes
    ----------
    curves : dict
        "train" and "validation": the loss of each epoch, in nats.
    """

    def __init__(
        self, in_features: Mapping[str, int], loss: nn.Module, features: int = 256, learning_rate: float = 1e-3
    ) -> None:
        super().__init__()
        self.modalities = list(in_features)
        self.encoders = nn.ModuleDict({name: MLPEncoder(size, features) for name, size in in_features.items()})
        self.heads = nn.ModuleDict({name: ProjectionHead(features, features) for name in in_features})
        self.loss = loss
        self.learning_rate = learning_rate
        self.curves: dict[str, list[float]] = {"train": [], "validation": []}
        self._sums: dict[str, list[Tensor]] = {"train": [], "validation": []}

    def represent(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the representation [N, features] of each modality, for downstream tasks."""
        return {name: self.encoders[name](views[name]) for name in self.modalities}

    def forward(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the embedding [N, features] of each modality, for the loss and for retrieval."""
        return {name: self.heads[name](x) for name, x in self.represent(views).items()}

    def _step(self, batch: tuple[Tensor, ...], split: str) -> Tensor:
        loss: Tensor = self.loss(self(dict(zip(self.modalities, batch, strict=True))))
        self._sums[split].append(loss.detach())
        return loss

    def training_step(self, batch: tuple[Tensor, ...], _: int) -> Tensor:
        """Return the loss of a batch."""
        loss = self._step(batch, "train")
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, ...], _: int) -> None:
        """Collect the loss of a validation batch."""
        self._step(batch, "validation")

    def _close_epoch(self, split: str) -> None:
        self.curves[split].append(float(torch.stack(self._sums[split]).mean()))
        self._sums[split].clear()

    def on_train_epoch_end(self) -> None:
        """Add the epoch's training loss to the curve."""
        self._close_epoch("train")

    def on_validation_epoch_end(self) -> None:
        """Add the epoch's validation loss to the curve."""
        self._close_epoch("validation")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam over all parameters, the loss's among them."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


def fit(
    data: MultimodalData,
    loss: nn.Module,
    *,
    epochs: int,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    seed: int = 0,
    progress: bool = True,
) -> AlignmentModule:
    """Train encoders on the training split; repeatable for a seed on one machine.

    Parameters
    ----------
    data : MultimodalData
    loss : nn.Module
        Takes the mapping from a modality's name to its embeddings.
    epochs, batch_size : int
        Positive. A last batch that is smaller is left out: the loss depends on the number of negatives.
    learning_rate : float
    seed : int
        Of the initial weights and of the order of batches.
    progress : bool
        Show a progress bar.

    Returns
    -------
    AlignmentModule
        In evaluation mode.
    """
    # Its advertisements and its remarks about hardware.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    lightning.seed_everything(seed, verbose=False)
    module = AlignmentModule({name: view.shape[1] for name, view in data.views.items()}, loss, 256, learning_rate)
    loaders = {
        split: DataLoader(
            TensorDataset(*data.split(split)[0].values()),
            batch_size=batch_size,
            shuffle=split == "train",
            drop_last=True,
            generator=torch.Generator().manual_seed(seed),
        )
        for split in ("train", "validation")
    }
    options: dict[str, Any] = {"callbacks": [RichProgressBar(leave=True)]} if progress else {}
    with warnings.catch_warnings():
        # The data lie in memory: worker processes would only cost.
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*LeafSpec.*")
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=progress,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            **options,
        )
        trainer.fit(module, loaders["train"], loaders["validation"])
    return module.eval()
