"""OVA-IB's one-vs-all InfoNCE in Triton, with per-sample keys: unit queries and keys, then the pairwise sweep of each.

All M unit queries and leave-one-out keys come from one pass over the embeddings (`projection/triton.py`), in their
dtype, as a normalisation in plain PyTorch would leave them; a modality then costs what one-way InfoNCE costs (3 GEMMs
of N^2 d with the gradient, `pairwise/triton.py`); and one pass brings the gradients of queries and keys back. Beside
the GEMMs the passes are small: 4 M N d numbers moved forward and 4 backward. On an H200 at N = 32768, M = 3, d = 256 in
bfloat16 that is 84 us at the datasheet's bandwidth beside 6.3 ms of 3 M GEMMs at 790 TFLOP/s. Measured: not run.

Memory beyond the gradients: queries and keys, each replaced by its gradient as the modalities are swept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mibfast.kernels.pairwise import triton as pairwise
from mibfast.kernels.projection import triton as projection


def info_nce(
    z: Sequence[Tensor], temperature: Tensor, ridge: float, keys: str, positive_in_denominator: bool
) -> tuple[Tensor, Tensor]:
    """One-vs-all InfoNCE of each sample and modality [M, N], and its log-sum-exps [M, N], float64."""
    _per_sample(keys)
    queries, projections, _, _ = projection.unit_queries_and_keys(z, ridge)
    results = [
        pairwise.info_nce(query, key, temperature, 0, positive_in_denominator, False, 0.0)[:2]
        for query, key in zip(queries, projections, strict=True)
    ]
    return torch.stack([r[0] for r in results]), torch.stack([r[1] for r in results]).double()


def info_nce_backward(
    upstream: Tensor,
    z: Sequence[Tensor],
    temperature: Tensor,
    lse: Tensor,
    ridge: float,
    keys: str,
    positive_in_denominator: bool,
    wants_temperature: bool,
) -> list[Tensor]:
    """Gradients of `info_nce` for an upstream gradient [M, N]: those of the M embeddings, and the temperature's."""
    _per_sample(keys)
    queries, projections, inverse, key_scales = projection.unit_queries_and_keys(z, ridge)
    d_temperature = []
    for m in range(len(z)):
        queries[m], projections[m], of_temperature = pairwise.info_nce_backward(
            upstream[m],
            queries[m],
            projections[m],
            temperature,
            lse[m],
            lse.new_empty(0),
            [True, True, wants_temperature],
            0,
            positive_in_denominator,
            False,
            0.0,
        )
        d_temperature.append(of_temperature)
    gradients = projection.unit_queries_and_keys_backward(queries, projections, z, inverse, key_scales)
    return [*gradients, torch.stack(d_temperature).sum(0)]


def info_nce_mean(
    z: Sequence[Tensor],
    temperature: Tensor,
    ridge: float,
    keys: str,
    positive_in_denominator: bool,
    wants_temperature: bool,
) -> tuple[Tensor, list[Tensor]]:
    """The mean of one-vs-all InfoNCE over samples and modalities, and its gradients in float32, still to be scaled."""
    _per_sample(keys)
    queries, projections, inverse, key_scales = projection.unit_queries_and_keys(z, ridge)
    losses, d_temperature = [], []
    for m in range(len(z)):
        loss, queries[m], projections[m], of_temperature = pairwise.info_nce_mean(
            queries[m],
            projections[m],
            temperature,
            [True, True, wants_temperature],
            0,
            positive_in_denominator,
            False,
            0.0,
        )
        losses.append(loss)
        d_temperature.append(of_temperature)
    gradients = projection.unit_queries_and_keys_backward(
        queries, projections, z, inverse, key_scales, weight=1.0 / len(z), dtype=torch.float32
    )
    return torch.stack(losses).mean(), [*gradients, torch.stack(d_temperature).mean(0)]


def _per_sample(keys: str) -> None:
    if keys != "per_sample":
        raise NotImplementedError(f"one_vs_all_info_nce: no Triton kernel of keys={keys!r}")
