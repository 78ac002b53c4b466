"""Numbers that a loss may learn: a temperature, and a scale of scores."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mibfast import _check
from mibfast._precision import at_least_float32
from mibfast.losses._loss import EmbeddingsLoss

# Both are learned as a logarithm (as CLIP learns its logit scale), so that no step can make them negative, and used in
# float32 at least where the model is cast to a shorter dtype.


class Temperature(nn.Module):
    """A positive temperature: a constant, or a parameter."""

    def __init__(self, operation: str, initial: float, learnable: bool) -> None:
        super().__init__()
        self.initial = _check.initial(operation, "temperature", initial, "learnable_temperature")
        learned = _check.boolean(operation, "learnable_temperature", learnable)
        self.log_temperature = nn.Parameter(torch.empty(())) if learned else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set it to its initial value."""
        if self.log_temperature is not None:
            nn.init.constant_(self.log_temperature, math.log(self.initial))

    def forward(self) -> float | Tensor:
        """Return the temperature: a number, or a 0-d tensor with a gradient."""
        return self.initial if self.log_temperature is None else at_least_float32(self.log_temperature).exp()

    def extra_repr(self) -> str:
        """Return the settings, for `repr`."""
        return f"{self.initial:g}, learnable={self.log_temperature is not None}"


class ScaledLoss(EmbeddingsLoss):
    """A loss whose scores are multiplied by a positive number: a constant, or a parameter."""

    def _set_scale(self, initial: float, flag: str, learnable: bool) -> None:
        """Take the initial scale, and whether it is learned, as the constructor's argument `flag` says."""
        self.initial_scale = _check.initial(self._name, "scale", initial, flag)
        setattr(self, flag, _check.boolean(self._name, flag, learnable))
        self.log_scale = nn.Parameter(torch.empty(())) if learnable else None

    def reset_parameters(self) -> None:
        """Set what is learned to its initial value."""
        if self.log_scale is not None:
            nn.init.constant_(self.log_scale, math.log(self.initial_scale))

    def scale(self) -> float | Tensor:
        """Return the scale: a number, or a 0-d tensor with a gradient."""
        return self.initial_scale if self.log_scale is None else at_least_float32(self.log_scale).exp()
