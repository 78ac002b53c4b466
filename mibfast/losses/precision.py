"""The precision of norms and of what losses learn: float32 at least, in models cast to shorter dtypes too."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Return float64 as it is, and anything shorter as float32."""
    return x if x.dtype == torch.float64 else x.float()
