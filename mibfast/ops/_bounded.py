"""A clamp whose gradient leads back inside its bounds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Bounded(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, low: float, high: float) -> Tensor:
        return x.clamp(low, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, float], output: Tensor) -> None:
        x, ctx.low, ctx.high = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        # Gradient descent would move these further out.
        outward = ((x > ctx.high) & (upstream < 0)) | ((x < ctx.low) & (upstream > 0))
        return upstream.masked_fill(outward, 0.0), None, None


def bounded(x: Tensor, low: float, high: float) -> Tensor:
    """Clamp x to [low, high]. Outside, only gradients whose descent leads back inside pass; a plain clamp passes none.

    Examples
    --------
    >>> import torch
    >>> from mibfast.nn.bounded import bounded
    >>> logvar = torch.tensor([5.0, 5.0], requires_grad=True)
    >>> (bounded(logvar, -10.0, 4.0) * torch.tensor([1.0, -1.0])).sum().backward()
    >>> logvar.grad
    tensor([1., 0.])
    """
    result: Tensor = _Bounded.apply(x, low, high)  # type: ignore[no-untyped-call]
    return result
