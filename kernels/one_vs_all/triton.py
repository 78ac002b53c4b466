"""OVA-IB's one-vs-all InfoNCE in Triton: projections made into keys, swept by the pairwise engine, one modality a time.

Per-sample keys: all M unit queries and leave-one-out keys come from one pass over the embeddings
(`projection/triton.py`), in their dtype, as a normalisation in plain PyTorch would leave them; a modality then costs
what one-way InfoNCE costs (3 GEMMs of N^2 d with the gradient, `pairwise/triton.py`); and one pass brings the
gradients of queries and keys back. Beside the GEMMs the passes are small: 4 M N d numbers moved forward and 4 backward.

Pairwise keys: a modality costs 4 (M - 1) GEMMs of its M - 1 tiles, from bases that one pass over the others whitens.

Memory beyond the gradients: queries and keys, each replaced by its gradient as the modalities are swept; or one
modality's bases and their gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mibfast.kernels.pairwise import scores
from mibfast.kernels.pairwise import triton as pairwise
from mibfast.kernels.pairwise.gradient_triton import Wanted, Weights
from mibfast.kernels.pairwise.pairs_triton import Pairs, Scalar
from mibfast.kernels.projection import triton as projection

_RIDGE_PROJECTION = scores.named("ridge_projection")


def info_nce(
    z: Sequence[Tensor], temperature: Tensor, ridge: float, keys: str, positive_in_denominator: bool
) -> tuple[Tensor, Tensor]:
    """One-vs-all InfoNCE of each sample and modality [M, N], and its log-sum-exps [M, N], float64."""
    if keys == "per_sample":
        queries, projections, _, _ = projection.unit_queries_and_keys(z, ridge)
        options = ("inner_product", False, 0, positive_in_denominator, False, 0.0)
        pairs = zip(queries, projections, strict=True)
        results = [pairwise.info_nce(query, key, temperature, *options)[:2] for query, key in pairs]
    else:
        flags = pairwise.info_nce_flags(positive_in_denominator, False, 0.0)
        results = [
            pairwise.losses(_RIDGE_PROJECTION, _cosines(z, m, ridge, temperature), flags, 0.0)[:2]
            for m in range(len(z))
        ]
    return torch.stack([r[0] for r in results]), torch.stack([r[1] for r in results])


def _others(z: Sequence[Tensor], m: int) -> list[Tensor]:
    return [x for k, x in enumerate(z) if k != m]


def _cosines(z: Sequence[Tensor], m: int, ridge: float, temperature: Tensor) -> Pairs:
    """Modality m as the query, the others as its contexts."""
    return pairwise.cosines(z[m], _others(z, m), ridge, Scalar.of(temperature.detach(), inverted=True))


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
    if keys == "pairwise":
        _, *gradients, grad_tau = _sweep_pairwise(
            z, temperature, ridge, positive_in_denominator, wants_temperature, upstream, lse
        )
        return [*(g.to(x.dtype) for g, x in zip(gradients, z, strict=True)), grad_tau]
    queries, projections, inverse, key_scales = projection.unit_queries_and_keys(z, ridge)
    grad_temperature = []
    for m in range(len(z)):
        queries[m], projections[m], grad_tau = pairwise.info_nce_backward(
            upstream[m],
            queries[m],
            projections[m],
            temperature,
            lse[m],
            lse.new_empty(0),
            [True, True, wants_temperature],
            score="inner_product",
            normalize=False,
            offset=0,
            positive_in_denominator=positive_in_denominator,
            symmetric=False,
            label_smoothing=0.0,
        )
        grad_temperature.append(grad_tau)
    gradients = projection.unit_queries_and_keys_backward(queries, projections, z, inverse, key_scales)
    return [*gradients, torch.stack(grad_temperature).sum(0)]


def info_nce_with_gradient(
    z: Sequence[Tensor],
    temperature: Tensor,
    needed: Sequence[bool],
    ridge: float,
    keys: str,
    positive_in_denominator: bool,
) -> list[Tensor]:
    """The mean of one-vs-all InfoNCE over samples and modalities, and its gradients in float32, still to be scaled."""
    wants_temperature = needed[-1]
    if keys == "pairwise":
        return _sweep_pairwise(z, temperature, ridge, positive_in_denominator, wants_temperature)
    queries, projections, inverse, key_scales = projection.unit_queries_and_keys(z, ridge)
    losses, grad_temperature = [], []
    for m in range(len(z)):
        loss, queries[m], projections[m], grad_tau = pairwise.info_nce_with_gradient(
            queries[m],
            projections[m],
            temperature,
            [True, True, wants_temperature],
            score="inner_product",
            normalize=False,
            offset=0,
            positive_in_denominator=positive_in_denominator,
            symmetric=False,
            label_smoothing=0.0,
        )
        losses.append(loss)
        grad_temperature.append(grad_tau)
    gradients = projection.unit_queries_and_keys_backward(
        queries, projections, z, inverse, key_scales, weight=1.0 / len(z), dtype=torch.float32
    )
    return [torch.stack(losses).mean(), *gradients, torch.stack(grad_temperature).mean(0)]


def _sweep_pairwise(
    z: Sequence[Tensor],
    temperature: Tensor,
    ridge: float,
    positive_in_denominator: bool,
    wants_temperature: bool,
    upstream: Tensor | None = None,
    lse: Tensor | None = None,
) -> list[Tensor]:
    """The mean of the losses, zero where their log-sum-exps are given, the gradients in float32, the temperature's.

    Gradients are for an upstream gradient [M, N], or of the mean.
    """
    flags = pairwise.info_nce_flags(positive_in_denominator, False, 0.0)
    into = [torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in z]
    factor = 1.0 if upstream is not None else 1.0 / (len(z) * z[0].shape[0])
    loss = torch.zeros((), dtype=torch.float32, device=z[0].device)
    grad_temperature = []
    for m in range(len(z)):
        pairs = _cosines(z, m, ridge, temperature)
        if lse is None:
            each, row_lse, _ = pairwise.losses(_RIDGE_PROJECTION, pairs, flags, 0.0)
            loss += each.mean() / len(z)
        else:
            row_lse = lse[m]
        weights = Weights(None if upstream is None else upstream[m].contiguous(), factor, row_lse)
        wanted = Wanted(statistics=True, sums=int(wants_temperature), dtype=torch.float32)
        gradients = pairwise.losses_gradient(_RIDGE_PROJECTION, pairs, flags, weights, wanted)
        pairwise.cosines_backward(gradients, pairs, _others(z, m), ridge, into[m], _others(into, m))
        grad_temperature.append(pairwise.temperature_gradient(gradients, temperature, factor))
    return [loss, *into, torch.stack(grad_temperature).sum(0)]
