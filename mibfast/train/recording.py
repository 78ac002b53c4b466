"""The part of training that must survive its end: losses by epoch, the best weights, the state to resume from."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from mibfast.data import MultimodalData
from mibfast.train.batches import Batches, shuffled
from mibfast.train.config import RunConfig
from mibfast.train.errors import DivergedError, RunError
from mibfast.train.methods import method


class Recording(Checkpoint):
    """Everything that training adds up, as a state that can be written at any batch and gone on from.

    What is random in a batch is seeded by the run's seed and the batch's number, so that it does not depend on where
    training was interrupted.

    Parameters
    ----------
    config : RunConfig

    Attributes
    ----------
    save : callable, optional
        Called with the state, after every epoch and every `config.checkpoint_minutes`.
    epochs : list of dict
        A row an epoch: `epoch`, `step`, `train_loss`, `validation_loss`, `skipped_batches`, `seconds`,
        `loading_seconds`; losses in the method's unit.
    best_weights : dict
        Of the epoch with the lowest validation loss.
    step : int
        Number of batches that were trained on, those among them that were skipped since samples lack modalities.
    batches, validation_batches : Batches
        Of the current epoch.
    """

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self.save: Callable[[Mapping[str, Any]], None] | None = None
        self.epochs: list[dict[str, float]] = []
        self.best_weights: dict[str, Tensor] = {}
        self.step = 0
        self.batches: Batches
        self.validation_batches: Batches
        self._losses: list[float] = []
        self._validation_losses: list[float] = []
        self._skipped = 0
        self._spent = self._waited = 0.0
        self._since = self._saved = time.monotonic()
        self._optimizer_state: dict[str, Any] | None = None
        self.weights: dict[str, Tensor] = {}

    @property
    def best_epoch(self) -> int:
        """The number, from 1, of the epoch with the lowest validation loss; 0 before there is one."""
        losses = [row["validation_loss"] for row in self.epochs]
        return 1 + losses.index(min(losses)) if losses else 0

    @property
    def over(self) -> bool:
        """Whether all epochs are done, or `patience` of them have passed without a lower validation loss."""
        done = len(self.epochs)
        return done >= self._config.epochs or (done > 0 and done - self.best_epoch >= self._config.patience)

    def state(self, weights: Mapping[str, Tensor], optimizer_state: Mapping[str, Any]) -> dict[str, Any]:
        """Return what :meth:`restore` takes: tensors and plain values only."""
        return {
            "weights": dict(weights),
            "optimizer": dict(optimizer_state),
            "best_weights": self.best_weights,
            "epochs": self.epochs,
            "step": self.step,
            "losses": self._losses,
            "skipped": self._skipped,
            "spent": self._spent + time.monotonic() - self._since,
            "waited": self._waited + self.batches.waited,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a state; RunError where a part of it is missing."""
        try:
            if not isinstance(state["step"], int) or not all(
                row["validation_loss"] >= -math.inf for row in state["epochs"]
            ):
                raise TypeError("epochs or step")
            self.weights, self._optimizer_state = state["weights"], state["optimizer"]
            self.best_weights, self.epochs, self.step = state["best_weights"], state["epochs"], state["step"]
            self._losses, self._skipped = state["losses"], state["skipped"]
            self._spent, self._waited = state["spent"], state["waited"]
        except (KeyError, TypeError, IndexError) as error:
            raise RunError(f"the state to resume from is damaged: {error}") from error

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Bring the optimizer into the state that was restored, and start the clock."""
        if self._optimizer_state is not None:
            trainer.optimizers[0].load_state_dict(self._optimizer_state)
            self._optimizer_state = None
        self._since = self._saved = time.monotonic()

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed what is random in the batch."""
        seed = int(np.random.SeedSequence([self._config.seed, self.step]).generate_state(1)[0])
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the batch's loss up; write the state where it is time."""
        if outputs:
            loss = float(outputs["loss"])
            if not math.isfinite(loss):
                raise DivergedError(
                    f"the loss became {loss} at step {self.step + 1}, in epoch {len(self.epochs) + 1}; "
                    "a lower learning_rate or a higher temperature may help"
                )
            self._losses.append(loss)
        else:
            self._skipped += 1
        self.step += 1
        due = time.monotonic() - self._saved >= 60 * self._config.checkpoint_minutes
        if due and batch_idx + 1 < len(self.batches):
            self._write(trainer, module)

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the batch's loss up, where there is one."""
        if outputs is not None:
            self._validation_losses.append(float(outputs))

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Close the epoch's row, keep the weights where they are the best, and write the state."""
        for part, losses in (("training", self._losses), ("validation", self._validation_losses)):
            if not losses:
                raise RunError(
                    f"no {part} batch of epoch {len(self.epochs) + 1} has anything to take the loss of: its samples "
                    "have no two modalities in common; a higher batch_size may help"
                )
        validation_loss = sum(self._validation_losses) / len(self._validation_losses)
        if not math.isfinite(validation_loss):
            raise DivergedError(f"the validation loss became {validation_loss} in epoch {len(self.epochs) + 1}")
        now = time.monotonic()
        waited = self._waited + self.batches.waited + self.validation_batches.waited
        self.epochs.append(
            {
                "epoch": len(self.epochs) + 1,
                "step": self.step,
                "train_loss": sum(self._losses) / len(self._losses),
                "validation_loss": validation_loss,
                "skipped_batches": self._skipped,
                "seconds": round(self._spent + now - self._since, 3),
                "loading_seconds": round(waited, 3),
            }
        )
        if self.best_epoch == len(self.epochs):
            self.best_weights = {name: x.detach().clone() for name, x in module.state_dict().items()}
        self._losses, self._validation_losses, self._skipped = [], [], 0
        self._spent = self._waited = 0.0
        self._since = now
        if trainer.logger is not None:
            scalars = {name: self.epochs[-1][name] for name in ("train_loss", "validation_loss", "seconds")}
            trainer.logger.log_metrics(scalars, step=len(self.epochs))
        # The batches waited for are counted; what is written below begins the next epoch.
        self.batches.waited = 0.0
        trainer.should_stop = self.over
        self._write(trainer, module)

    def _write(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if self.save is not None:
            self.save(self.state(module.state_dict(), trainer.optimizers[0].state_dict()))
        self._saved = time.monotonic()


def usable(data: MultimodalData, config: RunConfig, split: str) -> Tensor:
    """Return the indices of a split's samples that the loss takes anything of: with two modalities, or with all.

    Batches are of these alone, so that they hold as many as their size says.
    """
    fewest = None if method(config.method).joint else 2
    indices = data.indices(split)
    return indices[data.has(indices, list(data.views), fewest)]


class EpochsOfData(lightning.LightningDataModule):
    """The batches of each epoch, beginning where a recording stands.

    Parameters
    ----------
    data : MultimodalData
    config : RunConfig
    recording : Recording
    """

    def __init__(self, data: MultimodalData, config: RunConfig, recording: Recording) -> None:
        super().__init__()
        self._data, self._config, self._recording = data, config, recording
        self._train, validation = (usable(data, config, split) for split in ("train", "validation"))
        # The same samples in the same batches at every epoch, a seed's choice: neighbours may be alike.
        self._validation = shuffled(validation, config.seed, 0)

    def train_dataloader(self) -> Any:
        """Return what is left of the epoch that is due."""
        indices = self._train
        epoch, done = divmod(self._recording.step, len(indices) // self._config.batch_size)
        order = shuffled(indices, self._config.seed, epoch + 1)
        self._recording.batches = Batches(self._data, order, self._config.batch_size, start=done)
        return self._recording.batches

    def val_dataloader(self) -> Any:
        """Return the validation batches; one, where they are fewer samples than a batch."""
        size = min(self._config.batch_size, len(self._validation))
        self._recording.validation_batches = Batches(self._data, self._validation, size)
        return self._recording.validation_batches
