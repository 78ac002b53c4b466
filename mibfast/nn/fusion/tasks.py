"""What a fusion predicts: the loss of a prediction, and how far two predictions of a sample are apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mibfast import _check
from mibfast._precision import at_least_float32


class Task(nn.Module):
    """A kind of target.

    Attributes
    ----------
    outputs : int
        Length of a prediction.
    biased : bool
        Whether the layers that make predictions may have biases.
    """

    outputs: int
    biased: ClassVar[bool] = True

    def loss(self, prediction: Tensor, target: Any) -> Tensor:
        """Return the loss [N] of predictions [N, outputs]: float64 for float64 predictions, else float32."""
        raise NotImplementedError

    def divergence(self, prediction: Tensor, reference: Tensor) -> Tensor:
        """Return KL(p || q) [N], in nats up to a factor that all predictions share, of what two predictions say."""
        raise NotImplementedError

    def _predictions(self, argument: str, x: Any) -> Tensor:
        name = type(self).__name__
        _check.tensor(name, argument, x, "N outputs")
        _check.size(name, argument, x, 1, self.outputs)
        return at_least_float32(x)


class Classification(Task):
    """One of some classes: predictions are logits, the loss is the cross-entropy.

    Parameters
    ----------
    classes : int
        At least 2.

    Examples
    --------
    >>> import torch
    >>> from mibfast.nn.fusion import Classification
    >>> task = Classification(2)
    >>> task.loss(torch.zeros(1, 2), torch.tensor([1]))
    tensor([0.6931])
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        _check.count("Classification", "classes", classes)
        if classes < 2:
            raise ValueError(f"Classification: classes must be at least 2, got {classes}")
        self.outputs = classes

    def loss(self, prediction: Tensor, target: Any) -> Tensor:
        """Return the cross-entropy [N], in nats, of logits [N, classes] and int64 targets [N] in [0, classes)."""
        logits = self._predictions("prediction", prediction)
        if not _check.has_shape(target, *logits.shape[:1]) or target.dtype != torch.int64:
            expected = f"int64 of shape {list(logits.shape[:1])}"
            raise TypeError(f"Classification: target must be {expected}, got {_check.described(target)}")
        # No index is left out: -100 would have a loss of 0.
        unused = torch.iinfo(torch.int64).min
        return nn.functional.cross_entropy(logits, target, reduction="none", ignore_index=unused)

    def divergence(self, prediction: Tensor, reference: Tensor) -> Tensor:
        """Return the categorical KL [N] of logits [N, classes]."""
        p = self._predictions("prediction", prediction).log_softmax(1)
        q = self._predictions("reference", reference).log_softmax(1)
        return nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(1)


class Regression(Task):
    """Real targets: the loss is the squared or the absolute error, summed over a sample's targets.

    Two predictions are apart as normal distributions of one variance: by half their squared distance. OMIB's paper has
    no divergence for regression; the variance cancels in the ratios that it is used for.

    Parameters
    ----------
    targets : int
        Numbers a sample.
    error : {"squared", "absolute"}

    Examples
    --------
    >>> import torch
    >>> from mibfast.nn.fusion import Regression
    >>> Regression().loss(torch.zeros(2, 1), torch.tensor([1.0, 3.0]))
    tensor([1., 9.])
    """

    def __init__(self, targets: int = 1, error: str = "squared") -> None:
        super().__init__()
        _check.count("Regression", "targets", targets)
        self.outputs, self.error = targets, _check.choice("Regression", "error", error, ("squared", "absolute"))

    def loss(self, prediction: Tensor, target: Any) -> Tensor:
        """Return the error [N] of predictions [N, targets] for targets [N, targets], or [N] where there is one."""
        predicted = self._predictions("prediction", prediction)
        fits = _check.has_shape(target, *predicted.shape) or (
            self.outputs == 1 and _check.has_shape(target, *predicted.shape[:1])
        )
        if not fits or not target.is_floating_point():
            raise TypeError(
                f"Regression: target must be floating-point of shape {list(predicted.shape)}, got "
                f"{_check.described(target)}"
            )
        difference: Tensor = predicted - target.reshape(predicted.shape)
        return (difference.square() if self.error == "squared" else difference.abs()).sum(1)

    def divergence(self, prediction: Tensor, reference: Tensor) -> Tensor:
        """Return half the squared distance [N] of predictions [N, targets]."""
        difference = self._predictions("prediction", prediction) - self._predictions("reference", reference)
        return difference.square().sum(1) / 2


class AnomalyDetection(Task):
    """Deep support vector data description: normal samples lie near a centre, and a sample's score is its distance.

    All training samples are normal; targets say so, or are None. The centre is set once, from the predictions that the
    untrained network makes, with coordinates near zero moved away from it: a centre at zero, biases in the last layer
    or bounded activations let the network collapse to a constant (Ruff et al., 2018, section 3.3).

    Parameters
    ----------
    features : int
        Length of a prediction.
    minimum : float
        Coordinates of the centre are at least this far from 0.

    Attributes
    ----------
    center : Tensor [features]
        A buffer, NaN until :meth:`set_center`.

    Examples
    --------
    >>> import torch
    >>> from mibfast.nn.fusion import AnomalyDetection
    >>> task = AnomalyDetection(2)
    >>> task.set_center(torch.tensor([[1.0, 0.02], [3.0, 0.02]]))
    >>> task.center
    tensor([2.0000, 0.1000])
    >>> task.loss(torch.tensor([[2.0, 1.1]]), None)
    tensor([1.])
    """

    center: Tensor
    biased = False

    def __init__(self, features: int, minimum: float = 0.1) -> None:
        super().__init__()
        _check.count("AnomalyDetection", "features", features)
        self.outputs, self.minimum = features, minimum
        self.register_buffer("center", torch.empty(features))
        # Asked of the buffer, every loss would wait for the device.
        self._centred = False
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Unset the centre."""
        nn.init.constant_(self.center, torch.nan)
        self._centred = False

    @torch.no_grad()
    def set_center(self, predictions: Tensor) -> None:
        """Set the centre to the mean of predictions [N, features], coordinates near 0 moved to +- `minimum`."""
        center = self._predictions("predictions", predictions).mean(0)
        sign = torch.where(center < 0, -1.0, 1.0).to(center)
        self.center.copy_(torch.where(center.abs() < self.minimum, sign * self.minimum, center))
        self._centred = not bool(self.center.isnan().any())

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if f"{prefix}center" in state_dict:
            self._centred = not bool(state_dict[f"{prefix}center"].isnan().any())

    def loss(self, prediction: Tensor, target: Any = None) -> Tensor:
        """Return the squared distance [N] of predictions [N, features] from the centre, which is the anomaly score.

        RuntimeError where no centre is set.
        """
        predicted = self._predictions("prediction", prediction)
        if not self._centred:
            raise RuntimeError("AnomalyDetection: no centre is set; call set_center with the untrained predictions")
        return (predicted - self.center).square().sum(1)

    def divergence(self, prediction: Tensor, reference: Tensor) -> Tensor:
        """Return half the squared distance [N] of predictions [N, features]."""
        difference = self._predictions("prediction", prediction) - self._predictions("reference", reference)
        return difference.square().sum(1) / 2
