"""The layers that make predictions."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from mibfast import _check
from mibfast.nn.fusion.tasks import Task


def prediction_head(operation: str, in_features: int, task: Task, hidden_features: int | None = None) -> nn.Sequential:
    """Make a linear layer, or with hidden features two and a ReLU, to predictions; of anomalies without biases.

    With biases in it the head alone could predict the centre, whatever the sample (Ruff et al., 2018, proposition 2).
    """
    sizes = [in_features, task.outputs]
    if hidden_features is not None:
        sizes.insert(1, _check.count(operation, "hidden_features", hidden_features))
    layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair, bias=task.biased), nn.ReLU())]
    return nn.Sequential(*layers[:-1])
