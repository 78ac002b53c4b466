"""Deep support vector data description: the loss, thresholds and the F1 score."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mibfast import _check
from mibfast._precision import at_least_float32


def svdd_loss(prediction: Tensor, center: Tensor) -> Tensor:
    """Return the mean over samples of the squared distance from a centre (Ruff et al., 2018, Eq. 4, without decay).

    OMIB's appendix H squares the distance, its section 4 does not; the square is Ruff's, and its gradient fades at the
    centre. The appendix's penalty on the weights is the optimizer's weight decay.

    Parameters
    ----------
    prediction : Tensor [N, d]
        float64, float32, bfloat16 or float16.
    center : Tensor [d]
        See :meth:`mibfast.nn.fusion.AnomalyDetection.set_center`.

    Returns
    -------
    Tensor
        A scalar; float64 for float64 inputs, else float32.

    Raises
    ------
    TypeError, ValueError
        For other shapes, unequal dtypes or devices.

    Examples
    --------
    >>> import torch
    >>> from mibfast import omib
    >>> omib.svdd_loss(torch.tensor([[1.0, 2.0], [1.0, 0.0]]), torch.tensor([1.0, 1.0]))
    tensor(1.)
    """
    _check.tensor("svdd_loss", "prediction", prediction, "N d")
    _check.tensor("svdd_loss", "center", center, "d")
    _check.same_dimension("svdd_loss", prediction=prediction, center=center)
    _check.alike("svdd_loss", prediction=prediction, center=center)
    prediction, center = (at_least_float32(x) for x in _check.promoted([prediction, center]))
    return (prediction - center).square().sum(1).mean()


def anomaly_threshold(scores: ArrayLike | Tensor, quantile: float = 0.95) -> float:
    """Return the score above which a sample is called an anomaly: a quantile of the training samples' scores.

    Training samples are normal, so 1 - quantile is the rate of false alarms to expect of others like them.

    Parameters
    ----------
    scores : array or Tensor [N]
        Of the training samples: `task.loss(model(views), None)`.
    quantile : float
        In [0, 1].

    Raises
    ------
    TypeError, ValueError
        For scores that are not finite or not [N], or a quantile out of range.

    Examples
    --------
    >>> from mibfast import omib
    >>> omib.anomaly_threshold([1.0, 2.0, 3.0, 4.0, 5.0], 0.75)
    4.0
    """
    level = _check.number("anomaly_threshold", "quantile", quantile, 0.0, 1.0)
    return float(np.quantile(_scores("anomaly_threshold", scores), level))


def f1_at_true_count(scores: ArrayLike | Tensor, labels: ArrayLike | Tensor) -> float:
    """Return the F1 score of calling the highest scores anomalies, as many as there are (OMIB, appendix K).

    With as many calls as anomalies, precision, recall and F1 are one number. Where the threshold falls among equal
    scores, it is its mean over their orders.

    Parameters
    ----------
    scores : array or Tensor [N]
        Finite; larger is more anomalous.
    labels : array or Tensor [N]
        True or 1 for an anomaly, False or 0 for a normal sample.

    Raises
    ------
    TypeError, ValueError
        For scores that are not finite, labels that are not 0 or 1, unequal lengths, or no anomaly.

    Examples
    --------
    >>> from mibfast import omib
    >>> omib.f1_at_true_count([0.1, 0.9, 0.8, 0.3], [0, 1, 0, 1])
    0.5
    """
    name = "f1_at_true_count"
    given, anomalies = _scores(name, scores), _array(name, "labels", labels)
    if anomalies.shape != given.shape:
        raise ValueError(f"{name}: labels must be {list(given.shape)} as scores are, got {list(anomalies.shape)}")
    if not np.isin(anomalies, (0, 1)).all():
        raise ValueError(f"{name}: labels must be 0 or 1, got {_check.described(labels)}")
    count = int(anomalies.sum())
    if not count:
        raise ValueError(f"{name}: labels must hold at least one anomaly, got none in {len(anomalies)}")
    threshold = np.sort(given)[-count]
    above, at = given > threshold, given == threshold
    hits = anomalies[above].sum() + anomalies[at].mean() * (count - above.sum())
    return float(hits / count)


def _array(name: str, argument: str, x: ArrayLike | Tensor) -> NDArray[Any]:
    if not isinstance(x, torch.Tensor):
        return _check.array(name, argument, x)
    if x.layout != torch.strided or x.is_nested or x.is_meta:
        raise TypeError(f"{name}: {argument} must be a dense tensor with numbers in it, got {_check.described(x)}")
    x = x.detach().cpu().resolve_neg().resolve_conj()
    # NumPy has no bfloat16.
    array: NDArray[Any] = (x.double() if x.is_floating_point() else x).numpy()
    return array


def _scores(name: str, scores: ArrayLike | Tensor) -> NDArray[np.number[Any]]:
    given = _array(name, "scores", scores)
    if given.dtype.kind not in "fiu" or given.ndim != 1 or not given.size:
        raise TypeError(f"{name}: scores must be numbers [N], got {_check.described(scores)}")
    if not np.isfinite(given).all():
        raise ValueError(f"{name}: scores must be finite, got {int((~np.isfinite(given)).sum())} that are not")
    return given.astype(np.float64) if given.dtype.kind == "f" else given
