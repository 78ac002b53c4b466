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

import numpy as np
import torch
from torch import Tensor

from mibfast import _buffers
from mibfast.kernels.pairwise import engine_cpu as engine
from mibfast.kernels.pairwise import reductions_cpu as reductions
from mibfast.kernels.pairwise import scores_cpu as scores
from mibfast.kernels.pairwise.rows_cpu import Rows

_SCORE, _REDUCTION = scores.INNER_PRODUCT, reductions.SIGMOID_LOSS


def _operands(query: Tensor, key: Tensor) -> tuple[Rows, engine.Columns]:
    rows = Rows(query.detach())
    operands = key.detach().to(rows.dtype).contiguous()[None]
    return rows, engine.Columns(operands, operands.new_empty(0, key.shape[0]))


def _given(n: int, scale: Tensor, bias: Tensor) -> np.ndarray:
    state = np.zeros((reductions.ROW_STATES, n))
    state[reductions.SCALE], state[reductions.BIAS] = float(scale), float(bias)
    return state


def _gradients(query: Tensor, key: Tensor, rows: Rows, needed: list[bool]) -> engine.Gradients:
    return engine.Gradients(
        torch.from_numpy(_buffers.empty(tuple(query.shape), rows.numpy_dtype)).zero_() if needed[0] else None,
        torch.from_numpy(_buffers.empty((1, *key.shape), rows.numpy_dtype)) if needed[1] else None,
        None,
    )


def _results(gradients: engine.Gradients, query: Tensor, key: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The gradients of query and key, in this dtype; one that was not needed is empty."""
    d_query = query.new_empty(query.shape, dtype=dtype) if gradients.rows is None else gradients.rows.to(dtype)
    d_key = key.new_empty(key.shape, dtype=dtype) if gradients.columns is None else gradients.columns[0].to(dtype)
    return d_query, d_key


def siglip(query: Tensor, key: Tensor, scale: Tensor, bias: Tensor, offset: int) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of each query [N], and its derivatives by scale and bias [N], float64."""
    rows, columns = _operands(query, key)
    state, _, _ = engine.reduce(_SCORE, _REDUCTION, rows, columns, offset, 0, _given(rows.n, scale, bias))
    by_scale, by_bias = state[reductions.SCALE_GRADIENT], state[reductions.BIAS_GRADIENT]
    losses = torch.from_numpy(state[reductions.SOFTPLUS_SUM]).to(rows.dtype, copy=True)
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
    offset: int,
) -> list[Tensor | None]:
    """Gradients of `siglip`, those that are needed, for an upstream gradient [N]."""
    d_numbers = [
        torch.dot(upstream.double(), each) if need else None
        for each, need in zip((by_scale, by_bias), needed[2:], strict=True)
    ]
    if not any(needed[:2]):
        return [None, None, *d_numbers]
    rows, columns = _operands(query, key)
    gradients = _gradients(query, key, rows, needed)
    row_weights = _given(rows.n, scale, bias)
    row_weights[reductions.ROW_UPSTREAM] = upstream.double().numpy()
    engine.gradient(
        _SCORE,
        _REDUCTION,
        rows,
        columns,
        offset,
        0,
        row_weights=row_weights,
        column_weights=np.zeros((3, 1), rows.numpy_dtype),
        gradients=gradients,
    )
    return [*_results(gradients, query, key, query.dtype), *d_numbers]


def siglip_with_gradient(
    query: Tensor, key: Tensor, scale: Tensor, bias: Tensor, needed: list[bool], offset: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The mean of the losses of queries, and its gradients: of query and key in the engine's dtype, scale and bias."""
    rows, columns = _operands(query, key)
    gradients = _gradients(query, key, rows, needed)
    weight = 1.0 / rows.n
    state = engine.reduce_with_gradient(
        _SCORE,
        _REDUCTION,
        rows,
        columns,
        offset,
        0,
        upstream=weight,
        label_smoothing=0.0,
        gradients=gradients,
        row_state=_given(rows.n, scale, bias),
    )
    loss, by_scale, by_bias = (
        weight * state[result].sum()
        for result in (reductions.SOFTPLUS_SUM, reductions.SCALE_GRADIENT, reductions.BIAS_GRADIENT)
    )
    return (
        torch.tensor(loss, dtype=rows.dtype),
        *_results(gradients, query, key, rows.dtype),
        torch.tensor(by_scale, dtype=scale.dtype),
        torch.tensor(by_bias, dtype=bias.dtype),
    )
