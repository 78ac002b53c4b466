"""The boundary of volumes, which Gram volumes and triangle areas share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from mibfast.kernels.launch_configuration import LARGEST_WHOLE_D
from mibfast.kernels.pairwise import reference as pairwise
from mibfast.kernels.volume import reference
from mibfast.kernels.volume.reference import GRAM, SQUARED_TRIANGLE, TRIANGLE
from mibfast.ops._boundary import (
    DifferentiableOperation,
    OperationWithGradient,
    accumulation_dtype,
    inverse_temperature,
    pairwise_offers,
    temperature_tensor,
)

__all__ = ["GRAM", "SQUARED_TRIANGLE", "TRIANGLE"]


def offers(x: Tensor, others: int) -> dict[str, str | None]:
    """The backends with kernels of volumes, and why one cannot take vectors [..., d] of so many others a sample."""
    backends, d = pairwise_offers(x, "K", others), x.shape[-1]
    if backends["triton"] is None and d > LARGEST_WHOLE_D[others]:
        backends["triton"] = f"d = {d}, and its kernels of K = {others} hold vectors of d <= {LARGEST_WHOLE_D[others]}"
    return backends


def info_nce(
    loss: OperationWithGradient,
    backend: str,
    kind: str,
    z: Sequence[Tensor],
    temperature: float | Tensor,
    label_smoothing: float,
) -> Tensor:
    """Two-way InfoNCE of minus the volumes of an anchor and its others; `loss` is the compiled operation."""
    if backend == "reference":
        scores = -reference.volumes(kind, z[0], z[1:]) * inverse_temperature(temperature)
        return pairwise.info_nce(scores, symmetric=True, label_smoothing=label_smoothing).mean()
    return loss(backend, (*z, temperature_tensor(temperature)), _LossOptions(kind, label_smoothing))[0]


class _Options(NamedTuple):
    kind: str


class _LossOptions(NamedTuple):
    kind: str
    label_smoothing: float


def _volumes(anchor: Tensor, others: list[Tensor], kind: str, backend: str) -> list[Tensor]:
    shape = (anchor.shape[0], others[0].shape[0])
    return [anchor.new_empty(shape, dtype=accumulation_dtype(anchor.dtype))]


def _loss(anchor: Tensor, *_: Any) -> list[Tensor]:
    return [anchor.new_empty((), dtype=accumulation_dtype(anchor.dtype))]


def volumes_operation(name: str) -> DifferentiableOperation:
    """Declare the volumes [N, N'] of anchors and others under a name."""
    return DifferentiableOperation(name, "volume", "anchor *others", _volumes, options=_Options, launcher="volumes")


def loss_operation(name: str) -> OperationWithGradient:
    """Declare two-way InfoNCE of minus the volumes under a name."""
    operands = "anchor *others temperature"
    return OperationWithGradient(name, "volume", operands, _loss, options=_LossOptions, launcher="info_nce")
