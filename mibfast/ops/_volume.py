"""The boundary of volumes, which Gram volumes and triangle areas share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mibfast.kernels.launch_configuration import LARGEST_WHOLE_D
from mibfast.kernels.pairwise import reference as pairwise
from mibfast.kernels.volume import reference
from mibfast.kernels.volume.reference import GRAM, SQUARED_TRIANGLE, TRIANGLE
from mibfast.ops._boundary import (
    accumulation_dtype,
    inverse_temperature,
    kernels,
    of_any_number,
    operation,
    pairwise_offers,
    scaled,
    temperature_tensor,
)

__all__ = ["GRAM", "SQUARED_TRIANGLE", "TRIANGLE"]


def offers(x: Tensor, others: int) -> dict[str, str | None]:
    """The backends with kernels of volumes, and why one cannot take vectors [..., d] of so many others a sample."""
    found, d = pairwise_offers(x, "K", others), x.shape[-1]
    if found["triton"] is None and d > LARGEST_WHOLE_D[others]:
        found["triton"] = f"d = {d}, and its kernels of K = {others} hold vectors of d <= {LARGEST_WHOLE_D[others]}"
    return found


def info_nce(
    function: type[torch.autograd.Function],
    backend: str,
    kind: str,
    z: Sequence[Tensor],
    temperature: float | Tensor,
    label_smoothing: float,
) -> Tensor:
    """Two-way InfoNCE of minus the volumes of an anchor and its others; `function` holds the compiled way."""
    if backend == "reference":
        scores = -reference.volumes(kind, z[0], z[1:]) * inverse_temperature(temperature)
        return pairwise.info_nce(scores, symmetric=True, label_smoothing=label_smoothing).mean()
    tau = temperature_tensor(temperature)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (tau, *z)):
        return function.apply(backend, (kind, label_smoothing), tau, *z)  # type: ignore[no-any-return,no-untyped-call]
    return volume_info_nce(kind, z[0], list(z[1:]), tau, label_smoothing, backend)  # type: ignore[no-any-return]


def _fake_gradients(anchor: Tensor, others: list[Tensor]) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in (anchor, *others)]


def _fake_volumes(kind: str, anchor: Tensor, others: list[Tensor], backend: str) -> Tensor:
    return anchor.new_empty((anchor.shape[0], others[0].shape[0]), dtype=accumulation_dtype(anchor.dtype))


@operation(fake=_fake_volumes)
def volumes(kind: str, anchor: Tensor, others: list[Tensor], backend: str) -> Tensor:
    return kernels("volume", backend).volumes(kind, anchor, others)  # type: ignore[no-any-return]


@operation(fake=lambda upstream, kind, anchor, others, backend: _fake_gradients(anchor, others))
def volumes_backward(upstream: Tensor, kind: str, anchor: Tensor, others: list[Tensor], backend: str) -> list[Tensor]:
    return kernels("volume", backend).volumes_backward(upstream, kind, anchor, others)  # type: ignore[no-any-return]


def _fake_loss(kind: str, anchor: Tensor, *_: Any) -> Tensor:
    return anchor.new_empty((), dtype=accumulation_dtype(anchor.dtype))


@operation(fake=_fake_loss)
def volume_info_nce(
    kind: str, anchor: Tensor, others: list[Tensor], temperature: Tensor, label_smoothing: float, backend: str
) -> Tensor:
    launcher = kernels("volume", backend).info_nce
    return launcher(kind, anchor, others, temperature, label_smoothing)  # type: ignore[no-any-return]


def _fake_loss_with_gradient(
    kind: str, anchor: Tensor, others: list[Tensor], temperature: Tensor, *_: Any
) -> tuple[Tensor, list[Tensor]]:
    loss = _fake_loss(kind, anchor)
    return loss, [*(x.new_empty(x.shape, dtype=loss.dtype) for x in (anchor, *others)), temperature.new_empty(())]


@operation(fake=_fake_loss_with_gradient)
def volume_info_nce_with_gradient(
    kind: str, anchor: Tensor, others: list[Tensor], temperature: Tensor, label_smoothing: float, backend: str
) -> tuple[Tensor, list[Tensor]]:
    launcher = kernels("volume", backend).info_nce_with_gradient
    return launcher(kind, anchor, others, temperature, label_smoothing)  # type: ignore[no-any-return]


# Forward and backward of the operations' autograd functions. An operation makes a Function of them, under its own name.


@of_any_number
def volumes_forward(ctx: Any, backend: str, kind: str, anchor: Tensor, *others: Tensor) -> Tensor:
    ctx.save_for_backward(anchor, *others)
    ctx.backend, ctx.kind = backend, kind
    return volumes(kind, anchor, list(others), backend)  # type: ignore[no-any-return]


def volumes_gradients(ctx: Any, upstream: Tensor) -> Any:
    anchor, *others = ctx.saved_tensors
    gradients = volumes_backward(upstream, ctx.kind, anchor, others, ctx.backend)
    return None, None, *(g if need else None for g, need in zip(gradients, ctx.needs_input_grad[2:], strict=True))


@of_any_number
def loss_forward(
    ctx: Any, backend: str, settings: tuple[str, float], temperature: Tensor, anchor: Tensor, *others: Tensor
) -> Tensor:
    """The loss and its gradient in one go, so that the backward has only to scale."""
    kind, label_smoothing = settings
    loss, gradients = volume_info_nce_with_gradient(kind, anchor, list(others), temperature, label_smoothing, backend)
    ctx.save_for_backward(gradients[-1], *gradients[:-1])
    ctx.dtypes = [x.dtype for x in (temperature, anchor, *others)]
    return loss  # type: ignore[no-any-return]


def loss_gradients(ctx: Any, upstream: Tensor) -> Any:
    gradients = zip(ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad[2:], strict=True)
    return None, None, *(scaled(g, upstream, dtype) if need else None for g, dtype, need in gradients)
