"""OVA-IB's one-vs-all InfoNCE on the CPU: projections made into keys, swept by the pairwise engine, one modality a
time.

Per-sample keys: the M keys of a sample share one small inverse (`projection/cpu.py`), and a modality costs the 3 GEMMs
of N^2 d of a one-way sweep. Pairwise keys: a modality costs the 3 (M - 1) GEMMs of its M - 1 tiles. At N = 4096, d =
256, M = 3 the projections are 1% of the time. Memory beyond the gradients: one modality's keys, their gradient and a
tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mibfast import _buffers
from mibfast.kernels.pairwise import cpu as pairwise
from mibfast.kernels.pairwise import engine_cpu as engine
from mibfast.kernels.pairwise.rows_cpu import Rows
from mibfast.kernels.pairwise.tiles_cpu import Columns, Gradients
from mibfast.kernels.projection import cpu as projection


class _Modality:
    """One modality as the query, the others as keys: what the engine sweeps, and the way back of its gradients."""

    def __init__(
        self,
        z: Sequence[Tensor],
        m: int,
        temperature: Tensor,
        ridge: float,
        inverse: Tensor | None,
        wants_temperature: bool = False,
    ) -> None:
        self._z, self._m, self._ridge, self._inverse = z, m, ridge, inverse
        self._others = [k for k in range(len(z)) if k != m]
        if inverse is None:
            score, columns = pairwise.projection_columns([z[k].detach() for k in self._others], ridge)
        else:
            keys = projection.unit_leave_one_out(z, inverse, m)
            score, columns = pairwise.INNER_PRODUCT, Columns(keys[None], keys.new_empty(0, len(keys)))
        self.pairs = engine.Pairs(
            score,
            Rows(z[m].detach(), unit=True),
            columns,
            scale=pairwise.inverse_temperature(temperature),
            wants_grad_scale=wants_temperature,
        )

    def gradients(self, into: Sequence[Tensor]) -> Gradients:
        return Gradients(into[self._m], *pairwise.column_gradients(self.pairs.product_columns))

    def backward(self, gradients: Gradients, into: Sequence[Tensor]) -> None:
        """Add the gradients of the keys to those of the embeddings."""
        assert gradients.columns is not None
        if self._inverse is None:
            others, targets = [self._z[k] for k in self._others], [into[k] for k in self._others]
            projection.whitened_bases_backward(gradients.columns, gradients.statistics, others, self._ridge, targets)
        else:
            projection.unit_leave_one_out_backward(gradients.columns[0], self._z, self._inverse, self._m, into)


def _inverse(z: Sequence[Tensor], ridge: float, keys: str) -> Tensor | None:
    return projection.inverse_gram(z, ridge) if keys == "per_sample" else None


def _zeros(z: Sequence[Tensor]) -> list[Tensor]:
    dtype = np.float64 if z[0].dtype == torch.float64 else np.float32
    return [torch.from_numpy(_buffers.empty(tuple(x.shape), dtype)).zero_() for x in z]


def info_nce(
    z: Sequence[Tensor], temperature: Tensor, ridge: float, keys: str, positive_in_denominator: bool
) -> tuple[Tensor, Tensor]:
    """One-vs-all InfoNCE of each sample and modality [M, N], and its log-sum-exps [M, N], float64."""
    objective = pairwise.Objective(positive_in_denominator=positive_in_denominator)
    inverse = _inverse(z, ridge, keys)
    results = []
    for m in range(len(z)):
        modality = _Modality(z, m, temperature, ridge, inverse)
        results.append(pairwise.losses(modality.pairs, objective)[:2])
    return torch.stack([r[0] for r in results]), torch.stack([r[1] for r in results])


def info_nce_backward(
    upstream: Tensor,
    z: Sequence[Tensor],
    temperature: Tensor,
    lse: Tensor,
    needed: Sequence[bool],
    ridge: float,
    keys: str,
    positive_in_denominator: bool,
) -> list[Tensor]:
    """Gradients of `info_nce` for an upstream gradient [M, N]: those of the M embeddings, and the temperature's."""
    wants_temperature = needed[-1]
    objective = pairwise.Objective(positive_in_denominator=positive_in_denominator)
    inverse = _inverse(z, ridge, keys)

    def sweep(m: int, modality: _Modality, gradients: Gradients) -> None:
        pairwise.losses_gradient(modality.pairs, objective, upstream[m], lse[m], lse.new_empty(0), gradients)

    *gradients, grad_temperature = _gradients(z, temperature, ridge, inverse, wants_temperature, sweep)
    return [*(g.to(z[0].dtype) for g in gradients), grad_temperature]


def info_nce_with_gradient(
    z: Sequence[Tensor],
    temperature: Tensor,
    needed: Sequence[bool],
    ridge: float,
    keys: str,
    positive_in_denominator: bool,
) -> list[Tensor]:
    """The mean of one-vs-all InfoNCE, and the gradients of `info_nce_backward`, but in the engine's dtype."""
    wants_temperature = needed[-1]
    objective = pairwise.Objective(positive_in_denominator=positive_in_denominator)
    inverse = _inverse(z, ridge, keys)
    weight = 1.0 / (len(z) * z[0].shape[0])
    loss = torch.zeros((), dtype=torch.float64)

    def sweep(m: int, modality: _Modality, gradients: Gradients) -> None:
        loss.add_(pairwise.sum_with_gradient(modality.pairs, objective, weight, gradients))

    gradients = _gradients(z, temperature, ridge, inverse, wants_temperature, sweep)
    return [loss.to(pairwise.accumulation_dtype(z[0].dtype)), *gradients]


def _gradients(
    z: Sequence[Tensor], temperature: Tensor, ridge: float, inverse: Tensor | None, wants_temperature: bool, sweep: Any
) -> list[Tensor]:
    into = _zeros(z)

    def add_gradients(m: int) -> Tensor:
        # A function of its own, so that one modality's keys are gone before the next one's are made.
        modality = _Modality(z, m, temperature, ridge, inverse, wants_temperature)
        gradients = modality.gradients(into)
        sweep(m, modality, gradients)
        modality.backward(gradients, into)
        return pairwise.temperature_gradient(modality.pairs, temperature)

    return [*into, torch.stack([add_gradients(m) for m in range(len(z))]).sum(0)]
