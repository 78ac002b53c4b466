"""The temperature of a loss: a constant, or a parameter learned as its logarithm."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mibfast import _check
from mibfast.losses.precision import at_least_float32


class Temperature(nn.Module):
    """A positive temperature.

    Learned as its logarithm (as CLIP learns its logit scale), so that no step can make it negative, and kept in float32
    at least when the model is cast to a shorter dtype.

    Parameters
    ----------
    initial : float
        Positive.
    learnable : bool
    """

    def __init__(self, operation: str, initial: float, learnable: bool) -> None:
        super().__init__()
        if isinstance(initial, Tensor):
            raise TypeError(
                f"{operation}: temperature must be a positive number, got {_check.described(initial)}; "
                "learnable_temperature=True makes it a parameter"
            )
        learned = _check.boolean(operation, "learnable_temperature", learnable)
        self.initial = _check.positive(operation, "temperature", initial)
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
