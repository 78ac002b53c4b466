"""Probes: simple predictors fitted to frozen representations."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PROBES = ("linear", "mlp")


@dataclass(frozen=True)
class Probed:
    """A probe's result on each test sample.

    Attributes
    ----------
    metrics : mapping
        From a metric's name to numerators [n] and denominators [n]: its value on any samples is the sum of the one over
        the sum of the other, or one less that where `complemented` names it.
    complemented : frozenset of str
    """

    metrics: dict[str, tuple[NDArray[Any], NDArray[Any]]]
    complemented: frozenset[str] = frozenset()

    def size(self, metric: str) -> int:
        """Return the number of samples of a metric."""
        return len(self.metrics[metric][0])

    def value(self, metric: str, chosen: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return a metric of all samples, or of each selection of samples [..., n]."""
        above, below = self.metrics[metric]
        if chosen is not None:
            above, below = above[chosen], below[chosen]
        ratio: NDArray[Any] = above.sum(-1) / below.sum(-1)
        return 1 - ratio if metric in self.complemented else ratio


def probe(
    kind: str,
    task: str,
    train: tuple[NDArray[Any], NDArray[Any]],
    test: tuple[NDArray[Any], NDArray[Any]],
    seed: int = 0,
) -> Probed:
    """Fit a probe on training representations [n, features] and their labels, and apply it to test samples.

    The linear probe is logistic regression with an L2 penalty of 1, or ridge regression. The MLP has four linear
    layers with 256 units between them, as in OVA-IB's evaluation (arXiv 2605.29900), and stops early on a tenth of
    its training samples. Features are standardised.

    Parameters
    ----------
    kind : {"linear", "mlp"}
    task : {"classification", "regression"}
    train, test : (array [n, features], array [n] or [n, K])
    seed : int
        Of the MLP.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    perceptron: dict[str, Any] = {
        "hidden_layer_sizes": (256, 256, 256),
        "early_stopping": True,
        "random_state": seed,
        "max_iter": 200,
    }
    if task == "classification":
        labels = np.unique(train[1])
        # The early stopping of scikit-learn splits by class, which needs two samples of each.
        counts = np.unique(train[1], return_counts=True)[1]
        perceptron["early_stopping"] = bool(counts.min() >= 2 and 0.1 * len(train[1]) >= len(labels))
        model = LogisticRegression(max_iter=2000) if kind == "linear" else MLPClassifier(**perceptron)
    else:
        model = Ridge() if kind == "linear" else MLPRegressor(**perceptron)
    targets, scale = train[1], 1.0
    if task == "regression":
        # The MLP's step sizes suit targets of unit variance.
        centre, scale = targets.mean(0), targets.std(0)
        targets = (targets - centre) / scale
    pipeline = make_pipeline(StandardScaler(), model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        pipeline.fit(train[0], targets)
    predicted = pipeline.predict(test[0])
    ones = np.ones(len(test[1]))
    if task == "classification":
        return Probed({"accuracy": ((predicted == test[1]).astype(np.float64), ones)})
    predicted = predicted.reshape(test[1].shape) * scale + centre
    errors, spread = np.square(predicted - test[1]), np.square(test[1] - test[1].mean(0))
    if errors.ndim == 2:
        # With several targets, the mean; this weights each R2 by its target's variance.
        errors, spread = errors.mean(1), spread.mean(1)
    return Probed({"MSE": (errors, ones), "R2": (errors, spread)}, frozenset({"R2"}))


@dataclass(frozen=True)
class LinearSVM:
    """The accuracy of a linear support vector machine on representations.

    Attributes
    ----------
    C : float
        The smallest of those with the highest validation accuracy.
    validation_accuracy, test_accuracy : float
    """

    C: float
    validation_accuracy: float
    test_accuracy: float


def linear_svm(
    train: tuple[NDArray[Any], NDArray[Any]],
    validation: tuple[NDArray[Any], NDArray[Any]],
    test: tuple[NDArray[Any], NDArray[Any]],
) -> LinearSVM:
    """Fit a linear SVM to representations [n, features], as they are, and their classes [n].

    C is that of logspace(-3, 2, 11) which the validation split scores highest with; test samples choose nothing.
    (DVMIB's released code chooses by the test split and reports the validation split.)
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    best = LinearSVM(math.nan, -1.0, math.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for C in np.logspace(-3, 2, 11):
            model = LinearSVC(C=C, random_state=0).fit(*train)
            accuracy = float(model.score(*validation))
            if accuracy > best.validation_accuracy:
                best = LinearSVM(float(C), accuracy, float(model.score(*test)))
    return best
