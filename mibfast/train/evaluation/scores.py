"""Scores of a fusion's predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mibfast.data import DataError
from mibfast.omib import f1_at_true_count
from mibfast.train.fitting.targets import Target

_Metric = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Scored:
    """Predictions of n samples, and metrics of them.

    Attributes
    ----------
    metrics : mapping
        From a metric's name to a function of predictions and labels, NaN where some samples do not determine it.
    prediction, label : Tensor [n, ...]
    """

    metrics: Mapping[str, _Metric]
    prediction: Tensor
    label: Tensor

    def size(self, metric: str) -> int:
        """Return the number of samples of a metric."""
        return len(self.prediction)

    def value(self, metric: str, chosen: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return a metric of all samples, or of each selection of samples [..., n]."""
        compute = self.metrics[metric]
        if chosen is None:
            return np.asarray(float(compute(self.prediction, self.label)))
        rows = torch.from_numpy(chosen.reshape(-1, chosen.shape[-1]).astype(np.int64))
        values = [float(compute(self.prediction[row], self.label[row])) for row in rows]
        return np.array(values).reshape(chosen.shape[:-1])


def scored(target: Target, prediction: Tensor, labels: NDArray[Any]) -> Scored:
    """Score predictions of samples.

    - Classification: accuracy, and F1, the mean over classes.
    - Regression: MAE and Pearson's r, means over targets. One target that takes both signs and lies in [-3, 3], in all
      labels of the run's data (:attr:`Target.sentiment`), also has the figures of sentiment analysis: Acc-2 and F1, of
      its sign among the samples where it is not zero (F1 is the mean over both signs, weighted by how many samples
      have them); and Acc-7, of its value and its prediction, clipped to [-3, 3] and rounded.
    - Anomaly detection: AUC, and F1 at the threshold that as many samples exceed as there are anomalies. Of scores that
      say nothing this F1 is the share of anomalies on average, where AUC is 0.5.

    Parameters
    ----------
    target : Target
    prediction : Tensor [n, outputs]
        As :meth:`mibfast.train.Run.predict` returns them.
    labels : array [n] or [n, targets]
        Samples of classes that the run's own data had, and its training had not, are left out.

    Raises
    ------
    DataError
        For labels of another kind or shape than the run's, other classes that it was not trained on, and where there is
        nothing to score, or there are no anomalies or nothing else.
    """
    _check_kind(target, labels)
    if target.task == "regression":
        targets = torch.from_numpy(labels.astype(np.float64)).reshape(prediction.shape)
        return Scored(_regression_metrics(target.sentiment), prediction.double(), targets)
    if target.unlearned:
        kept = ~np.isin(labels, np.asarray(target.unlearned))
        if not kept.any():
            raise DataError("no sample to score is of a class that training had")
        prediction, labels = prediction[torch.from_numpy(kept)], labels[kept]
    encoded = target.encoded(labels)
    if target.task == "classification":
        if bool((encoded < 0).any()):
            unknown = labels[int((encoded < 0).nonzero()[0])].item()
            raise DataError(f"labels hold class {unknown!r}, which training had not")
        return Scored(_classification_metrics(len(target.classes)), prediction, encoded)
    if len(set(encoded.tolist())) < 2:
        raise DataError("to score anomalies, some samples must be anomalies and some not")
    return Scored(_anomaly_metrics(), prediction[:, 0], encoded)


def _check_kind(target: Target, labels: NDArray[Any]) -> None:
    """Check that labels, possibly from other data than the run's, have the kind and shape that it was trained on."""
    numbers = labels.dtype.kind in "fiub"
    outputs = len(target.mean) if target.task == "regression" else 1
    shaped = labels.ndim == 1 if outputs == 1 else labels.shape[1:] == (outputs,)
    if outputs == 1 and target.task == "regression":
        shaped = shaped or labels.shape[1:] == (1,)
    alike = numbers
    if target.task == "anomaly-detection":
        alike = True
    elif target.task == "classification":
        alike = numbers == all(isinstance(each, (int, float)) for each in target.classes)
    if not (shaped and alike):
        expected = f"{outputs} numbers a sample" if outputs > 1 else "one number a sample"
        if target.task != "regression":
            expected = "one class a sample, of the kind of the run's"
        got = f"labels are {labels.dtype} of shape {list(labels.shape)}"
        raise DataError(f"{got}; the run was trained for {target.task}, {expected}")


def _classification_metrics(classes: int) -> dict[str, _Metric]:
    from torchmetrics.functional.classification import multiclass_f1_score

    def f1(prediction: Tensor, label: Tensor) -> Tensor:
        return multiclass_f1_score(prediction, label, classes, average="macro", validate_args=False)

    return {"accuracy": lambda prediction, label: (prediction.argmax(1) == label).double().mean(), "F1": f1}


def _regression_metrics(sentiment: bool) -> dict[str, _Metric]:
    from torchmetrics.functional.classification import multiclass_f1_score
    from torchmetrics.functional.regression import pearson_corrcoef

    def polar(metric: _Metric) -> _Metric:
        def metric_of_signs(prediction: Tensor, label: Tensor) -> Tensor:
            chosen = label != 0
            if not bool(chosen.any()):
                return torch.tensor(torch.nan)
            return metric((prediction[chosen] > 0).long(), (label[chosen] > 0).long())

        return metric_of_signs

    def agreement(prediction: Tensor, label: Tensor) -> Tensor:
        return (prediction == label).double().mean()

    def weighted_f1(prediction: Tensor, label: Tensor) -> Tensor:
        return multiclass_f1_score(prediction, label, 2, average="weighted", validate_args=False)

    metrics: dict[str, _Metric] = {
        "MAE": lambda prediction, label: (prediction - label).abs().mean(),
        "Pearson r": lambda prediction, label: pearson_corrcoef(prediction, label).mean(),
    }
    if sentiment:
        metrics["Acc-2"], metrics["F1"] = polar(agreement), polar(weighted_f1)
        metrics["Acc-7"] = lambda prediction, label: agreement(
            prediction.clamp(-3, 3).round(), label.clamp(-3, 3).round()
        )
    return metrics


def _anomaly_metrics() -> dict[str, _Metric]:
    from torchmetrics.functional.classification import binary_auroc

    def auc(score: Tensor, anomaly: Tensor) -> Tensor:
        # Scores outside [0, 1] would be taken for logits and rounded by a sigmoid; only their order counts.
        if bool(anomaly.all()) or not bool(anomaly.any()):
            return torch.tensor(torch.nan)
        ranks = torch.unique(score, return_inverse=True)[1].double()
        return binary_auroc(ranks / max(1, len(ranks)), anomaly, validate_args=False)

    def f1(score: Tensor, anomaly: Tensor) -> Tensor:
        value = f1_at_true_count(score, anomaly) if bool(anomaly.any()) else torch.nan
        return torch.tensor(value, dtype=torch.float64)

    return {"AUC": auc, "F1": f1}
