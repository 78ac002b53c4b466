"""Targets of fusions: labels as the numbers that a task takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mibfast.data import DataError, MultimodalData
from mibfast.data.multimodal import SPLITS
from mibfast.nn import fusion
from mibfast.train.errors import RunError
from mibfast.train.json_files import NUMBER, check_form

_LISTED_CLASSES = 5
TASKS = ("classification", "regression", "anomaly-detection")
# The key of a batch's targets; names of modalities hold no dot.
TARGET = ".target"
# The validation loss of predictions alone, which chooses the epoch.
PREDICTION = "prediction"


@dataclass(frozen=True)
class Target:
    """The meaning of labels to a fusion.

    Attributes
    ----------
    task : {"classification", "regression", "anomaly-detection"}
    classes : tuple
        Of a classification, in the order of its logits: those of the training samples.
    unlearned : tuple
        Other classes of the data, of which no sample was trained on: nothing is scored of theirs.
    mean, deviation : tuple of float
        Of a regression's targets in the training split. Losses are of standardised targets, so that a learning rate and
        a bottleneck's weight mean the same whatever unit the targets have; predictions are in the targets' own.
    normal : str, optional
        The label, as text, of the samples that are no anomalies.
    sentiment : bool
        Whether a regression has one target with both signs in [-3, 3], as CMU-MOSI's: of all labels, so that runs that
        split them differently are scored alike.
    """

    task: str
    classes: tuple[Any, ...] = ()
    unlearned: tuple[Any, ...] = ()
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    normal: str | None = None
    sentiment: bool = False

    @property
    def unit(self) -> str:
        """Of the task's loss."""
        return "nats" if self.task == "classification" else ""

    @property
    def title(self) -> str:
        """The task with its classes or targets, for messages."""
        if self.task == "classification":
            return f"classification of {len(self.classes)} classes"
        if self.task == "regression":
            return f"regression of {len(self.mean)} target{'s' * (len(self.mean) > 1)}"
        return f"anomaly detection, class {self.normal!r} normal"

    def task_for(self, features: int) -> fusion.Task:
        """Return the task, for representations of a length."""
        if self.task == "classification":
            return fusion.Classification(len(self.classes))
        return fusion.Regression(len(self.mean)) if self.task == "regression" else fusion.AnomalyDetection(features)

    def encoded(self, labels: NDArray[Any]) -> Tensor:
        """Return labels as the task takes them.

        A class's position among the classes, -1 where it is none of them; standardised targets, float32; 1 for an
        anomaly and 0 for what is normal.
        """
        if self.task == "classification":
            classes = np.asarray(self.classes)
            order = np.argsort(classes)
            places = np.searchsorted(classes, labels, sorter=order).clip(max=len(classes) - 1)
            positions = order[places]
            return torch.from_numpy(np.where(classes[positions] == labels, positions, -1))
        if self.task == "regression":
            standardised = (labels - self._shaped(labels, self.mean)) / self._shaped(labels, self.deviation)
            return torch.from_numpy(standardised.astype(np.float32))
        return torch.from_numpy((~self.is_normal(labels)).astype(np.int64))

    def learns(self, labels: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which samples [N] are trained on, by their labels: those of the known classes, or the normal ones."""
        if self.task == "classification":
            return np.isin(labels, np.asarray(self.classes))
        return self.is_normal(labels) if self.task == "anomaly-detection" else np.ones(len(labels), np.bool_)

    def in_units(self, prediction: Tensor) -> Tensor:
        """Return a regression's predictions [N, targets] in the targets' own units; others as they are."""
        if self.task != "regression":
            return prediction
        return prediction * prediction.new_tensor(self.deviation) + prediction.new_tensor(self.mean)

    def is_normal(self, labels: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which labels [N] are the normal one."""
        normal: NDArray[np.bool_] = _texts(labels) == self.normal
        return normal

    @staticmethod
    def _shaped(labels: NDArray[Any], values: tuple[float, ...]) -> Any:
        return np.asarray(values) if labels.ndim == 2 else values[0]

    def to_json(self) -> dict[str, Any]:
        """Return what :meth:`from_json` takes."""
        return {name: list(x) if isinstance(x, tuple) else x for name, x in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, content: Any) -> Target:
        """Make a target of what a run's config holds; TypeError or ValueError where that is none."""
        check_form(content, {"task": str}, "its target")
        given: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in content.items()}
        target = cls(**given)
        if target.task not in TASKS:
            raise ValueError(f"unknown task {target.task!r}")
        for name in ("classes", "unlearned"):
            kind = str if target.classes and isinstance(target.classes[0], str) else NUMBER
            check_form(list(getattr(target, name)), [kind], f"its target's {name}")
        check_form([list(target.mean), list(target.deviation)], [[NUMBER]], "its target's mean and deviation")
        check_form([target.normal, target.sentiment], [(str, type(None), bool)], "its target's normal and sentiment")
        whole = {
            "classification": len(set(target.classes)) == len(target.classes) >= 2,
            "regression": len(target.mean) == len(target.deviation) >= 1 and min(target.deviation) > 0,
            "anomaly-detection": isinstance(target.normal, str),
        }
        if not whole[target.task]:
            raise ValueError(f"its target is none of {target.task}")
        return target


def task_of(labels: NDArray[Any], wanted: str = "auto") -> str:
    """Return the task that labels fit: classification for integers and strings, regression for floats.

    Raises
    ------
    DataError
        For labels that do not fit the task that is wanted, or any.
    """
    kind = "regression" if labels.dtype.kind == "f" else "classification"
    task = kind if wanted == "auto" else wanted
    if task == "classification":
        refuse_no_classes(labels)
        classes = len(np.unique(labels))
        if not 2 <= classes <= len(labels) // 2:
            raise DataError(f"labels do not fit classification: {classes} classes among {len(labels)} samples")
    else:
        if labels.dtype.kind == "U":
            raise DataError("labels do not fit regression: they hold strings")
        if (np.ptp(labels.astype(np.float64), axis=0) == 0).any():
            raise DataError("labels do not fit regression: a target never varies")
    return task


def refuse_no_classes(labels: NDArray[Any]) -> None:
    """Raise DataError for labels that are no classes: several a sample, or numbers that are not whole."""
    if labels.dtype.kind == "f" and (labels.ndim > 1 or (labels != np.round(labels)).any()):
        raise DataError("labels do not fit classification: they hold numbers that are not whole")


def target_of(data: MultimodalData, task: str = "auto", normal_class: Any = None) -> Target:
    """Return what a data set's labels are to a fusion, of the samples that have all modalities.

    Classes are those of the training samples; see :attr:`Target.unlearned` for others.

    Parameters
    ----------
    data : MultimodalData
    task : {"auto", "classification", "regression", "anomaly-detection"}
        By itself it is classification, or regression where labels are floats.
    normal_class : int or str, optional
        The label of normal samples, of anomaly detection alone.

    Raises
    ------
    RunError
        For a task that there is not, or a normal class that is missing or not called for.
    DataError
        Where there are no labels, labels do not fit the task, there are less than two classes to train, or no normal
        sample is in a split.
    """
    if task not in ("auto", *TASKS):
        raise RunError(f"task must be one of {', '.join(('auto', *TASKS))}, got {task!r}")
    if (task == "anomaly-detection") != (normal_class is not None):
        raise RunError(
            "anomaly-detection needs a normal_class, the label of what is normal"
            if normal_class is None
            else f"a normal_class is of anomaly-detection, and the task is {task!r}"
        )
    labels = data.labels
    if labels is None:
        raise DataError(f"{data.name}: a fusion is trained to predict labels, and there are none")
    try:
        if task == "anomaly-detection":
            # Every anomaly may have a class of its own.
            refuse_no_classes(labels)
            kind = "classification"
        else:
            kind = task_of(labels, task)
    except DataError as error:
        raise DataError(f"{data.name}: {error}") from error
    parts = {split: labels[_complete(data, split).numpy()] for split in SPLITS}
    if kind == "regression":
        training = parts["train"].astype(np.float64).reshape(len(parts["train"]), -1)
        if not len(training) or (np.ptp(training, axis=0) == 0).any():
            raise DataError(f"{data.name}: a target does not vary in the training split")
        return Target(
            "regression",
            mean=tuple(training.mean(0).tolist()),
            deviation=tuple(training.std(0).tolist()),
            sentiment=bool(training.shape[1] == 1 and -3 <= labels.min() < 0 < labels.max() <= 3),
        )
    classes = np.unique(labels)
    if task != "anomaly-detection":
        trained = np.unique(parts["train"])
        if len(trained) < 2:
            got = f"class {trained.tolist()[0]!r} alone" if len(trained) else "no class"
            raise DataError(f"{data.name}: the training split is of {got}{_of_complete(data)}; expected two or more")
        unlearned = classes[~np.isin(classes, trained)]
        return Target("classification", classes=tuple(trained.tolist()), unlearned=tuple(unlearned.tolist()))
    if str(normal_class) not in _texts(classes):
        listed = ", ".join(_texts(classes)[:20])
        raise DataError(f"{data.name}: no sample is of the normal class {normal_class}; there are {listed}")
    target = Target("anomaly-detection", normal=str(normal_class))
    for split in SPLITS:
        if not target.is_normal(parts[split]).any():
            raise DataError(
                f"{data.name}: no sample of the {split} split is of the normal class {normal_class}{_of_complete(data)}"
            )
    return target


def class_notes(target: Target, data: MultimodalData) -> list[str]:
    """Say of which classes something is left out of a classification, and what: they have few samples, as a rule."""
    if target.task != "classification" or data.labels is None:
        return []
    notes = []
    parts = {split: data.labels[_complete(data, split).numpy()] for split in SPLITS}
    if target.unlearned:
        left = sum(int(np.isin(part, np.asarray(target.unlearned)).sum()) for part in parts.values())
        notes.append(
            f"no training sample is of {_named(target.unlearned)}: {_samples(left)} of validation and test left out"
        )
    for split, without in (("validation", "chooses no epoch"), ("test", "is not scored")):
        missing = [each for each in target.classes if not (parts[split] == each).any()]
        if missing:
            notes.append(f"no {split} sample is of {_named(missing)}, which is trained on and {without}")
    return notes


def _named(classes: Sequence[Any]) -> str:
    listed = ", ".join(map(repr, classes[:_LISTED_CLASSES]))
    more = f" and {len(classes) - _LISTED_CLASSES} more" if len(classes) > _LISTED_CLASSES else ""
    return f"class{'es' * (len(classes) > 1)} {listed}{more}"


def _samples(count: int) -> str:
    return f"{count} sample{'s' * (count != 1)}"


def _complete(data: MultimodalData, split: str) -> Tensor:
    indices = data.indices(split)
    return indices[data.has(indices, list(data.views))]


def _of_complete(data: MultimodalData) -> str:
    return " and has all modalities" if data.presence else ""


def _texts(labels: NDArray[Any]) -> NDArray[np.str_]:
    # Whole floats can be classes too.
    return (labels.astype(np.int64) if labels.dtype.kind == "f" else labels).astype(np.str_)
