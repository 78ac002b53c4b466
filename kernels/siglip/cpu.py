"""SigLIP's loss on the CPU: a softplus reduction of inner products by the pairwise engine.

With z_ij = scale q_i . k_j + bias and p the positive of row i, the loss of a row and its derivatives are

    L_i = softplus(-z_ip) + sum_{j != p} softplus(z_ij),    dL_i/dz_ij = sigmoid(z_ij) - [j = p].

The weight of a pair depends on no other pair, so loss and gradient take one sweep and 3 GEMMs of 2 N N' d FLOPs, and no
positive, row or column needs a second look. The row pass adds for each score one exponential, one division and a
polynomial for the logarithm: 0.9 ns on one core, a tenth of the GEMMs. Scale and bias are applied in
that pass, where their gradients are summed as well: so a scale of zero, or a negative one, has its gradient too, and
rows of float32 are read where they lie. Memory beyond operands and gradients is the tile.

Source: Zhai et al. (2023), arXiv 2303.15343, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mibfast.kernels.pairwise import cpu as pairwise
from mibfast.kernels.pairwise import engine_cpu as engine
from mibfast.kernels.pairwise import one_tile_cpu, reductions
from mibfast.kernels.pairwise.reductions import sigmoid_loss

_SIGMOID_LOSS = reductions.named("sigmoid_loss")


def _embeddings(
    query: Tensor, key: Tensor, offset: int, normalize: bool, needed: Sequence[bool] = (False, False)
) -> pairwise.Embeddings:
    return pairwise.Embeddings(query, key, None, "inner_product", offset, needed[:2], normalize)


def _row_state(n: int, scale: Tensor, bias: Tensor) -> np.ndarray:
    state = np.zeros((sigmoid_loss.ROW_STATES, n))
    state[sigmoid_loss.SCALE], state[sigmoid_loss.BIAS] = float(scale), float(bias)
    return state


def siglip(
    query: Tensor, key: Tensor, scale: Tensor, bias: Tensor, normalize: bool, offset: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of each query [N], and its derivatives by scale and bias [N], float64."""
    pairs = _embeddings(query, key, offset, normalize).pairs
    state = engine.reduce(pairs, _SIGMOID_LOSS, 0, _row_state(pairs.rows.n, scale, bias)).rows
    by_scale, by_bias = state[sigmoid_loss.GRAD_SCALE], state[sigmoid_loss.GRAD_BIAS]
    losses = torch.from_numpy(state[sigmoid_loss.LOSS]).to(pairs.rows.dtype, copy=True)
    return losses, torch.from_numpy(by_scale.copy()), torch.from_numpy(by_bias.copy())


def siglip_backward(
    upstream: Tensor,
    query: Tensor,
    key: Tensor,
    scale: Tensor,
    bias: Tensor,
    by_scale: Tensor,
    by_bias: Tensor,
    needed: list[bool],
    normalize: bool,
    offset: int,
) -> list[Tensor | None]:
    """Gradients of `siglip`, those that are needed, for an upstream gradient [N]."""
    d_numbers = [
        torch.dot(upstream.double(), each) if need else None
        for each, need in zip((by_scale, by_bias), needed[2:], strict=True)
    ]
    if not any(needed[:2]):
        return [None, None, *d_numbers]
    embeddings = _embeddings(query, key, offset, normalize, needed)
    pairs, gradients = embeddings.pairs, embeddings.gradients
    row_weights = np.zeros((sigmoid_loss.ROW_WEIGHTS, pairs.rows.n))
    row_weights[sigmoid_loss.UPSTREAM] = upstream.double().numpy()
    row_weights[sigmoid_loss.WEIGHT_SCALE], row_weights[sigmoid_loss.WEIGHT_BIAS] = float(scale), float(bias)
    engine.gradient(pairs, _SIGMOID_LOSS, 0, row_weights=row_weights, gradients=gradients)
    return [*embeddings.embedding_results(query.dtype), *d_numbers]


def siglip_with_gradient(
    query: Tensor, key: Tensor, scale: Tensor, bias: Tensor, needed: list[bool], normalize: bool, offset: int
) -> tuple[Tensor | None, ...]:
    """The mean of the losses of queries, and its gradients: of query and key in the engine's dtype, scale and bias."""
    n = len(query)
    weight, dtype, state = 1.0 / n, pairwise.accumulation_dtype(query.dtype), _row_state(n, scale, bias)
    grads: tuple[Tensor | None, Tensor | None]
    if one_tile_cpu.serves_embeddings(query, key):
        code, pair = reductions.code(_SIGMOID_LOSS, 0), (query, key)
        few = one_tile_cpu.sweep_embeddings(
            pairwise.INNER_PRODUCT,
            code,
            0,
            *pair,
            state,
            needed[:2],
            normalize=normalize,
            offset=offset,
            upstream=weight,
        )
        assert few is not None
        grads = few.grad_query, few.grad_key
    else:
        embeddings = _embeddings(query, key, offset, normalize, needed)
        pairs, gradients = embeddings.pairs, embeddings.gradients
        engine.reduce_with_gradient(pairs, _SIGMOID_LOSS, 0, upstream=weight, gradients=gradients, row_state=state)
        grads = embeddings.embedding_results(dtype)
    loss, by_scale, by_bias = (
        weight * state[result].sum() for result in (sigmoid_loss.LOSS, sigmoid_loss.GRAD_SCALE, sigmoid_loss.GRAD_BIAS)
    )
    return (
        torch.scalar_tensor(float(loss), dtype=dtype),
        *grads,
        torch.scalar_tensor(float(by_scale), dtype=scale.dtype),
        torch.scalar_tensor(float(by_bias), dtype=bias.dtype),
    )
