"""Log-likelihoods of what is observed, given a decoder's output."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from mibfast import _check

Likelihood: TypeAlias = Callable[[Tensor, Tensor], Tensor]
_NAME = "BottleneckLoss"


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _same_shape(prediction: Tensor, target: Tensor) -> None:
    _check.same_shape(_NAME, prediction=prediction, target=target)


def gaussian(prediction: Tensor, target: Tensor) -> Tensor:
    """Log-likelihoods [N] under unit variance, without the constant -D/2 ln 2 pi."""
    _same_shape(prediction, target)
    return -0.5 * (_wide(target) - _wide(prediction)).square().flatten(1).sum(1)


def bernoulli(prediction: Tensor, target: Tensor) -> Tensor:
    """Log-likelihoods [N] of targets in [0, 1], under the probabilities whose logits are predicted."""
    _same_shape(prediction, target)
    each = torch.nn.functional.binary_cross_entropy_with_logits(_wide(prediction), _wide(target), reduction="none")
    return -each.flatten(1).sum(1)


def categorical(prediction: Tensor, target: Tensor) -> Tensor:
    """Log-likelihoods [N] of class indices [N], under the probabilities whose logits [N, K] are predicted."""
    if prediction.ndim != 2 or target.shape != prediction.shape[:1] or target.dtype.is_floating_point:
        raise ValueError(
            f"{_NAME}: a categorical likelihood is of logits [N, K] and class indices [N], "
            f"got {_check.described(prediction)} and {_check.described(target)}"
        )
    return -torch.nn.functional.cross_entropy(_wide(prediction), target.long(), reduction="none")


LIKELIHOODS: dict[str, Likelihood] = {"gaussian": gaussian, "bernoulli": bernoulli, "categorical": categorical}
