"""The record of a training: losses by epoch and step, the best weights, and a state to resume from."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from mibfast._termination import Request, Terminated
from mibfast.data import MultimodalData
from mibfast.train.errors import DivergedError, RunError
from mibfast.train.fitting.batches import Batches, shuffled
from mibfast.train.fitting.config import RunConfig
from mibfast.train.fitting.modules import MultimodalModule
from mibfast.train.fitting.requirements import usable
from mibfast.train.fitting.targets import PREDICTION, Target
from mibfast.train.json_files import NUMBER, check_finite, check_form
from mibfast.train.methods import Alignment, method

# Longer warm-ups let branches memorise their samples: docs/fusion-comparison.md.
_WARM_UP_EPOCHS = 1
# The form of a state, as torch.load returns it.
_MEANS = {"sums": {str: NUMBER}, "count": int}
_EPOCH = {"epoch": int, "step": int, "train_loss": NUMBER, "validation_loss": NUMBER, "skipped_batches": int}
_STATE = {
    "weights": {str: Tensor},
    "optimizer": {"state": Mapping, "param_groups": list},
    # Of the optimizer's parameters those that have a state: not all do, since some may never have had a gradient.
    "stepped": [int],
    "best_weights": {str: Tensor},
    "epochs": [{**_EPOCH, "seconds": NUMBER, "loading_seconds": NUMBER}],
    "step": int,
    "means": _MEANS,
    "steps": {"rows": [{str: NUMBER}], "stride": int, "open": _MEANS},
    "skipped": int,
    "spent": NUMBER,
    "waited": NUMBER,
}
# Rows of the table of steps, at most.
_STEPS = 4096


class Means:
    """Running means of named terms."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.count = 0

    def add(self, terms: Mapping[str, float]) -> None:
        """Add terms, the same ones each time."""
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1

    def values(self) -> dict[str, float]:
        """Return the mean of each term."""
        return {name: value / self.count for name, value in self.sums.items()}

    def state(self) -> dict[str, Any]:
        """Return what :meth:`restore` takes."""
        return {"sums": self.sums, "count": self.count}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a state."""
        self.sums, self.count = dict(state["sums"]), int(state["count"])


class StepTable:
    """Terms of every step in a bounded number of rows, each the mean over the same number of steps.

    That number doubles whenever the table is full. Steps after the last full row wait for the next.

    Parameters
    ----------
    limit : int
        Of rows; even.

    Attributes
    ----------
    rows : list of dict
        `step`, the row's last one, and the mean of each term.

    Examples
    --------
    >>> from mibfast.train.fitting.recording import StepTable
    >>> table = StepTable(limit=4)
    >>> for step in range(1, 7):
    ...     table.add(step, {"loss": float(step)})
    >>> table.rows
    [{'step': 2, 'loss': 1.5}, {'step': 4, 'loss': 3.5}, {'step': 6, 'loss': 5.5}]
    """

    def __init__(self, limit: int = _STEPS) -> None:
        self._limit, self._stride = limit, 1
        self._open = Means()
        self.rows: list[dict[str, float]] = []

    def add(self, step: int, terms: Mapping[str, float]) -> None:
        """Add a step's terms; the same ones each time."""
        self._open.add(terms)
        if self._open.count < self._stride:
            return
        self.rows.append({"step": step, **self._open.values()})
        self._open = Means()
        if len(self.rows) == self._limit:
            self.rows = list(map(_merged, self.rows[::2], self.rows[1::2]))
            self._stride *= 2

    def state(self) -> dict[str, Any]:
        """Return what :meth:`restore` takes."""
        return {"rows": self.rows, "stride": self._stride, "open": self._open.state()}

    def check(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError for what is no state of such a table."""
        rows, stride, waiting = state["rows"], state["stride"], state["open"]
        if stride < 1 or len(rows) >= self._limit or not 0 <= waiting["count"] < stride:
            raise ValueError(f"its steps are {len(rows)} rows of {stride} steps and {waiting['count']} more")
        if any(row.keys() != rows[0].keys() for row in rows):
            raise ValueError("its steps have not the same terms in every row")
        if bool(waiting["sums"]) != bool(waiting["count"]):
            raise ValueError(f"its steps have the sums {waiting['sums']} of {waiting['count']} steps")

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a state."""
        self.rows, self._stride = list(state["rows"]), int(state["stride"])
        self._open.restore(state["open"])


def _merged(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    return {name: second[name] if name == "step" else (first[name] + second[name]) / 2 for name in first}


class Recording(Checkpoint):
    """The record of a training, as a state that can be written after any batch and resumed from.

    What is random in a batch is seeded by the run's seed and the batch's number, so that it does not depend on where
    training was interrupted.

    Parameters
    ----------
    config : RunConfig
    stages : sequence of str
        Of training. Each but the last, a warm-up, lasts `config.warm_up_epochs`, the last `config.epochs` or until
        patience ends. Losses of different stages are not comparable: the last one's alone choose the weights. Of an
        alignment it is the validation loss, of a fusion the validation loss of its predictions: branches that have
        memorised their samples would end the training of a fusion that has not.

    Attributes
    ----------
    save : callable, optional
        Called with the state, after every epoch, every `config.checkpoint_minutes`, and where the run is to end.
    termination : Request
        Where it is made, training ends as soon as there is a state to go on from.
    epochs : list of dict
        A row an epoch: `epoch`, `step`, `train_loss`, `validation_loss`, `skipped_batches`, `seconds`,
        `loading_seconds`; losses in the method's unit. Of a fusion also its `stage`, where it has several, and the mean
        of every term that its loss is made of, `train_TERM` and `validation_TERM`.
    steps : StepTable
        Loss and terms of the last stage's steps, where there are terms.
    best_weights : dict
        Of the last stage's epoch with the lowest of these.
    step : int
        Number of batches that were trained on, those among them that were skipped since samples lack modalities.
    batches, validation_batches : Batches
        Of the current epoch.
    """

    def __init__(self, config: RunConfig, stages: Sequence[str] = ("main",)) -> None:
        self._config, self._stages = config, stages
        self._warm_up = _WARM_UP_EPOCHS if config.warm_up_epochs is None else config.warm_up_epochs
        self.save: Callable[[Mapping[str, Any]], None] | None = None
        self.termination = Request()
        self.epochs: list[dict[str, Any]] = []
        self.best_weights: dict[str, Tensor] = {}
        self.step = 0
        self.batches: Batches
        self.validation_batches: Batches
        self.steps = StepTable()
        self._means, self._validation_means = Means(), Means()
        self._skipped = 0
        self._spent = self._waited = 0.0
        self._since = self._saved = time.monotonic()
        self._optimizer_state: dict[str, Any] | None = None
        self.weights: dict[str, Tensor] = {}

    @property
    def total_epochs(self) -> int:
        """The number of epochs of all stages, at most."""
        return self._epochs_before_last_stage + self._config.epochs

    @property
    def _epochs_before_last_stage(self) -> int:
        return self._warm_up * (len(self._stages) - 1)

    @property
    def stage(self) -> str:
        """The stage of the epoch that is due."""
        done = len(self.epochs)
        return self._stages[-1 if done >= self._epochs_before_last_stage else done // self._warm_up]

    @property
    def best_epoch(self) -> int:
        """The number, from 1, of the last stage's epoch whose weights are the best; 0 before there is one."""
        return self._best_of(self.epochs)

    def _best_of(self, epochs: Sequence[Mapping[str, Any]]) -> int:
        before = self._epochs_before_last_stage
        losses = [choosing_loss(row) for row in epochs[before:]]
        return 1 + before + losses.index(min(losses)) if losses else 0

    @property
    def over(self) -> bool:
        """Whether all epochs are done, or `patience` of the last stage's without a better one."""
        done, best = len(self.epochs), self.best_epoch
        return done >= self.total_epochs or (best > 0 and done - best >= self._config.patience)

    def state(self, weights: Mapping[str, Tensor], optimizer_state: Mapping[str, Any]) -> dict[str, Any]:
        """Return what :meth:`restore` takes: tensors and plain values only."""
        return {
            "weights": dict(weights),
            "optimizer": dict(optimizer_state),
            "stepped": sorted(optimizer_state["state"]),
            "best_weights": self.best_weights,
            "epochs": self.epochs,
            "step": self.step,
            "means": self._means.state(),
            "steps": self.steps.state(),
            "skipped": self._skipped,
            "spent": self._spent + time.monotonic() - self._since,
            "waited": self._waited + self.batches.waited,
        }

    def restore(self, state: Any, module: MultimodalModule, batches: int) -> None:
        """Take over a state.

        Parameters
        ----------
        state
            What :meth:`state` has returned, or anything else that was in a file.
        module : MultimodalModule
            That goes on: whether the state is one of its own.
        batches : int
            Of an epoch.

        Raises
        ------
        RunError
            For what is no state of such a module.
        """
        try:
            check_form(state, _STATE)
            epochs, step = state["epochs"], state["step"]
            stages = (str,) if len(self._stages) > 1 else (str, type(None))
            check_form([row.get("stage") for row in epochs], [stages], "its stages")
            _check_rows(epochs, batches)
            done = state["means"]["count"] + state["skipped"]
            if divmod(step, batches) != (len(epochs), done) or min(state["means"]["count"], state["skipped"]) < 0:
                raise ValueError(f"step {step} is not {len(epochs)} epochs of {batches} batches and {done}")
            if len(epochs) > self.total_epochs:
                raise ValueError(f"it has {len(epochs)} epochs, and the run has {self.total_epochs}")
            self.steps.check(state["steps"])
            check_finite({name: state[name] for name in ("spent", "waited")}, "its time")
            weights = module.state_dict()
            _check_alike(state["weights"], weights)
            _check_alike(state["best_weights"], weights if self._best_of(epochs) else {})
            _check_optimizer(module.configure_optimizers(), state["optimizer"])
            if (numbers := set(state["optimizer"]["state"])) != set(state["stepped"]):
                raise ValueError(f"its optimizer has states of parameters {sorted(numbers)}, not {state['stepped']}")
        except ValueError as error:
            raise RunError(f"{error}") from error
        self.epochs, self.weights, self._optimizer_state = epochs, state["weights"], state["optimizer"]
        self.best_weights, self.step = state["best_weights"], step
        self._means.restore(state["means"])
        self.steps.restore(state["steps"])
        self._skipped = state["skipped"]
        self._spent, self._waited = state["spent"], state["waited"]

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Bring the optimizer into the state that was restored, and start the clock."""
        if self._optimizer_state is not None:
            trainer.optimizers[0].load_state_dict(self._optimizer_state)
            self._optimizer_state = None
        self._since = self._saved = time.monotonic()

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Tell the module which stage it is in."""
        assert isinstance(module, MultimodalModule)
        module.stage = self.stage

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
            terms = _numbers(outputs)
            if not math.isfinite(terms["loss"]):
                remedy = " or a higher temperature" if isinstance(method(self._config.method), Alignment) else ""
                raise DivergedError(
                    f"the loss became {terms['loss']} at step {self.step + 1}, in epoch {len(self.epochs) + 1}; "
                    f"a lower learning_rate{remedy} may help"
                )
            self._means.add(terms)
            if len(terms) > 1 and self.stage == self._stages[-1]:
                self.steps.add(self.step + 1, terms)
        else:
            self._skipped += 1
        self.step += 1
        due = self.termination.made or time.monotonic() - self._saved >= 60 * self._config.checkpoint_minutes
        # After an epoch's last batch, the state is written with its validation.
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
            self._validation_means.add(_numbers(outputs if isinstance(outputs, Mapping) else {"loss": outputs}))

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Close the epoch's row, keep the weights where they are the best, and write the state."""
        for part, means in (("training", self._means), ("validation", self._validation_means)):
            if not means.count:
                raise RunError(
                    f"no {part} batch of epoch {len(self.epochs) + 1} has anything to take the loss of: its samples "
                    "have no two modalities in common; a higher batch_size may help"
                )
        train, validation = self._means.values(), self._validation_means.values()
        # For a fusion, the loss of its predictions chooses the epoch; it need not be a term of the loss.
        for name, what in (("loss", "the validation loss"), (PREDICTION, "the validation loss of predictions")):
            value = validation.get(name, 0.0)
            if not math.isfinite(value):
                raise DivergedError(f"{what} became {value} in epoch {len(self.epochs) + 1}")
        now = time.monotonic()
        waited = self._waited + self.batches.waited + self.validation_batches.waited
        self.epochs.append(
            {
                "epoch": len(self.epochs) + 1,
                "step": self.step,
                **({"stage": self.stage} if len(self._stages) > 1 else {}),
                "train_loss": train.pop("loss"),
                "validation_loss": validation.pop("loss"),
                "skipped_batches": self._skipped,
                "seconds": round(self._spent + now - self._since, 3),
                "loading_seconds": round(waited, 3),
                **{f"train_{name}": value for name, value in train.items()},
                **{f"validation_{name}": value for name, value in validation.items()},
            }
        )
        if self.best_epoch == len(self.epochs):
            self.best_weights = {name: x.detach().clone() for name, x in module.state_dict().items()}
        self._means, self._validation_means, self._skipped = Means(), Means(), 0
        self._spent = self._waited = 0.0
        self._since = now
        if trainer.logger is not None:
            shown = ("train_", "validation_", "seconds")
            scalars = {name: value for name, value in self.epochs[-1].items() if name.startswith(shown)}
            trainer.logger.log_metrics(scalars, step=len(self.epochs))
        # That wait is counted; the state written below begins the next epoch.
        self.batches.waited = 0.0
        trainer.should_stop = self.over
        self._write(trainer, module)

    def _write(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if self.save is not None:
            self.save(self.state(module.state_dict(), trainer.optimizers[0].state_dict()))
        self._saved = time.monotonic()
        if self.termination.made:
            raise Terminated


def _check_alike(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise ValueError for weights whose names, shapes or dtypes are not those of a module."""
    if list(weights) != list(expected):
        raise ValueError(f"it holds {len(weights)} weights, or others than the module's {len(expected)}")
    for name, x in expected.items():
        there = weights[name]
        if (there.shape, there.dtype, there.layout) != (x.shape, x.dtype, torch.strided):
            raise ValueError(f"its weights {name} are {list(there.shape)} of {there.dtype}, expected {list(x.shape)}")


def _check_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Raise ValueError for a state that is not one of this optimizer with its settings."""
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    numbers = [group["params"] for group in optimizer.state_dict()["param_groups"]]
    try:
        if [group["params"] for group in state["param_groups"]] != numbers:
            raise ValueError(f"its parameters are not numbered {numbers}")
        optimizer.load_state_dict(dict(state))
    except Exception as error:
        # What torch raises depends on what is wrong.
        raise ValueError(f"its optimizer: {str(error) or type(error).__name__}") from error
    for group, saved in zip(optimizer.param_groups, settings, strict=True):
        for key, value in saved.items():
            if group.get(key, value) != value:
                raise ValueError(f"its optimizer's {key} is {group[key]} and not {value}")
    for parameter, saved in optimizer.state.items():
        check_form(saved, {"step": Tensor, "exp_avg": Tensor, "exp_avg_sq": Tensor}, "its optimizer's state")
        for key, x in saved.items():
            if x.shape != (torch.Size() if key == "step" else parameter.shape):
                raise ValueError(f"its optimizer's {key} is {list(x.shape)} for weights {list(parameter.shape)}")


def _check_rows(epochs: Sequence[Mapping[str, Any]], batches: int) -> None:
    """Raise ValueError where rows are not those of the first epochs, one after the other."""
    for number, row in enumerate(epochs, 1):
        check_form({name: value for name, value in row.items() if name != "stage"}, {str: NUMBER}, f"epoch {number}")
        if (row["epoch"], row["step"]) != (number, number * batches):
            raise ValueError(f"epoch {number} is recorded as epoch {row['epoch']} at step {row['step']}")
        chosen_by = (f"validation_{PREDICTION}", "train_loss", "validation_loss")
        check_finite({name: row[name] for name in chosen_by if name in row}, f"epoch {number}")


def choosing_loss(row: Mapping[str, Any]) -> float:
    """Return the validation loss that chooses an epoch: for a fusion, the loss of its predictions."""
    return float(row.get(f"validation_{PREDICTION}", row["validation_loss"]))


def _numbers(terms: Mapping[str, Tensor]) -> dict[str, float]:
    """Return terms as floats, read back in one go."""
    values = torch.stack([x.detach().double() for x in terms.values()]).tolist()
    return dict(zip(terms, values, strict=True))


class EpochsOfData(lightning.LightningDataModule):
    """The batches of each epoch, beginning where a recording stands.

    Parameters
    ----------
    data : MultimodalData
    config : RunConfig
    recording : Recording
    target : Target, optional
        What a fusion predicts.
    """

    def __init__(
        self, data: MultimodalData, config: RunConfig, recording: Recording, target: Target | None = None
    ) -> None:
        super().__init__()
        self._data, self._config, self._recording = data, config, recording
        self._train, validation = (usable(data, config, split, target) for split in ("train", "validation"))
        self._targets = None if target is None or data.labels is None else target.encoded(data.labels)
        # Shuffled, since neighbours may be alike, but the same at every epoch.
        self._validation = shuffled(validation, config.seed, 0)

    def train_dataloader(self) -> Any:
        """Return what is left of the epoch that is due."""
        indices = self._train
        epoch, done = divmod(self._recording.step, len(indices) // self._config.batch_size)
        order = shuffled(indices, self._config.seed, epoch + 1)
        self._recording.batches = Batches(self._data, order, self._config.batch_size, done, self._targets)
        return self._recording.batches

    def val_dataloader(self) -> Any:
        """Return the validation batches; one, where they are fewer samples than a batch."""
        size = min(self._config.batch_size, len(self._validation))
        self._recording.validation_batches = Batches(self._data, self._validation, size, targets=self._targets)
        return self._recording.validation_batches
