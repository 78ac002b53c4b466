"""Standardisation of raw features, with statistics that are saved with a model's weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Standardisation(nn.Module):
    """Shift and scale features to mean 0 and standard deviation 1; constant features become 0.

    The mean is subtracted in the input's dtype, but in float64 of integers and in float32 of shorter floats, so that
    features with a large mean and a small spread keep their digits; the result is float32.

    Parameters
    ----------
    mean, deviation : Tensor [...]
        Broadcast to an input's last dimensions. Saved as buffers, in float64.

    Examples
    --------
    >>> import torch
    >>> from mibfast.nn import Standardisation
    >>> Standardisation(torch.tensor([1.0, 5.0]), torch.tensor([2.0, 0.0]))(torch.tensor([[3.0, 5.0]]))
    tensor([[1., 0.]])
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self._statistics = mean.double(), deviation.double()
        self.register_buffer("mean", torch.empty_like(self._statistics[0]))
        self.register_buffer("scale", torch.empty_like(self._statistics[1]))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the buffers to the statistics given to the constructor."""
        mean, deviation = self._statistics
        self.mean.copy_(mean)
        # A feature that is constant in training is uninformative, and stays 0 even where it varies later.
        self.scale.copy_(torch.where(deviation > 0, 1 / deviation, 0.0))

    def forward(self, x: Tensor) -> Tensor:
        """Standardise features [..., *mean.shape]."""
        x = x.to(torch.promote_types(x.dtype, torch.float32) if x.is_floating_point() else torch.float64)
        return ((x - self.mean.to(x.dtype)) * self.scale.to(x.dtype)).float()
