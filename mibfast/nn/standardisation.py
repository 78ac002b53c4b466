"""Standardisation of raw features by statistics that are kept with the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Standardisation(nn.Module):
    """Shift and scale features to mean 0 and standard deviation 1; what is constant becomes 0.

    The difference to the mean is taken in the input's dtype, in float64 of integers and in float32 of shorter floats:
    features that are large beside their spread keep their digits. The result is float32.

    Parameters
    ----------
    mean, deviation : Tensor [...]
        Broadcast to an input's last dimensions. Kept as buffers, in float64.

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
        """Set the buffers to the statistics that the module was made with."""
        mean, deviation = self._statistics
        self.mean.copy_(mean)
        # A feature that never varied in training says nothing, whatever it does later.
        self.scale.copy_(torch.where(deviation > 0, 1 / deviation, 0.0))

    def forward(self, x: Tensor) -> Tensor:
        """Standardise features [..., *mean.shape]."""
        x = x.to(torch.promote_types(x.dtype, torch.float32) if x.is_floating_point() else torch.float64)
        return ((x - self.mean.to(x.dtype)) * self.scale.to(x.dtype)).float()
