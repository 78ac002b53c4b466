"""Arithmetic beyond the range of short dtypes: float32 at least, and norms that neither overflow nor underflow."""

from __future__ import annotations

import torch
from torch import Tensor

from mibfast import _check


def at_least_float32(x: Tensor) -> Tensor:
    """Return float64 as it is, and anything shorter as float32."""
    return x if x.dtype == torch.float64 else x.float()


def unit(x: Tensor) -> Tensor:
    """Divide rows [..., d] of float32 or float64 by their Euclidean norm; rows of zeros stay zero, with gradient zero.

    Rows of every finite magnitude have norm 1 afterwards, although float32 cannot hold squares above 1.8e19.
    """
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    if _squares_in_range(norm):
        return x / norm
    x, _ = rescaled(x)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / norm.masked_fill(norm == 0, torch.inf)


def rescaled(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale each row by a power of two so that its largest entry is about 1; return the rows and the powers [..., 1].

    The scaling is exact, and a constant to autograd.
    """
    largest = torch.linalg.vector_norm(x.detach(), torch.inf, dim=-1, keepdim=True)
    # Beyond these bounds the power itself would not be a normal number.
    bound = 1022 if x.dtype == torch.float64 else 126
    exponent = torch.frexp(largest).exponent.clamp(-bound, bound)
    power = torch.exp2(-exponent.to(x.dtype))
    return x * power, power


def _squares_in_range(norm: Tensor) -> bool:
    """Whether norms are exact and positive; False where reading them would wait for a device or break a graph."""
    if norm.device.type != "cpu" or not _check.readable(norm):
        return False
    smallest, largest = torch.aminmax(norm.detach())
    limits = torch.finfo(norm.dtype)
    return bool(smallest.item() > limits.tiny**0.5 / limits.eps and largest.item() < torch.inf)
