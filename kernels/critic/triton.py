"""Critics of two embeddings and of one or two hidden layers over all pairs in Triton; `cpu.py` has the formulas.

Scores of two embeddings are of the pairwise engine, 1 GEMM of 2 N N' d FLOPs forward and 3 backward, or 4 up to d =
128, whatever is asked for. Hidden layers have files of their own, `one_layer_triton.py` and `two_layers_triton.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mibfast.kernels.critic.one_layer_triton import OneLayer
from mibfast.kernels.critic.operands_triton import Objective, Operands, Upstream
from mibfast.kernels.critic.two_layers_triton import TwoLayers
from mibfast.kernels.pairwise import reductions
from mibfast.kernels.pairwise import triton as pairwise
from mibfast.kernels.pairwise.flags import CLAMPED, POSITIVE_EXCLUDED, TWO_WAY
from mibfast.kernels.pairwise.gradient_triton import Weights, gradient
from mibfast.kernels.pairwise.pairs_triton import Scalar
from mibfast.kernels.pairwise.reduce_triton import reduce

_SOFTPLUS_SUMS = reductions.named("softplus")


def _operands(x: Tensor, y: Tensor, parameters: Sequence[Tensor]) -> Operands:
    return OneLayer(x, y, *parameters) if len(parameters) == 2 else TwoLayers(x, y, *parameters)


def _embeddings(x: Tensor, y: Tensor, score: str, clip: float = math.inf, offset: int = 0) -> pairwise.Embeddings:
    """Pairs of two embeddings; a bound of their scores takes the place of a bias."""
    return pairwise.Embeddings(x, y, None, score, offset, Scalar.of(clip if clip < math.inf else 0.0))


def _flags(positive: bool, clip: float = math.inf, columns: bool = False) -> int:
    flags = 0 if positive else POSITIVE_EXCLUDED
    flags |= CLAMPED if clip < math.inf else 0
    return flags | (TWO_WAY if columns else 0)


def log_sum_exp(
    x: Tensor, y: Tensor, parameters: list[Tensor], score: str, positive: bool, clip: float, columns: bool, offset: int
) -> list[Tensor]:
    """As `cpu.log_sum_exp`, of any parameters."""
    positives, *wide = _positives_and_log_sum_exps(x, y, parameters, score, positive, clip, columns, offset)
    return [positives, *(lse.to(positives.dtype, copy=True) for lse in wide), *wide]


def _positives_and_log_sum_exps(
    x: Tensor, y: Tensor, parameters: list[Tensor], score: str, positive: bool, clip: float, columns: bool, offset: int
) -> tuple[Tensor, Tensor, Tensor]:
    if not parameters:
        embeddings = _embeddings(x, y, score, clip, offset)
        return pairwise.log_sum_exps(embeddings.score, embeddings.pairs, _flags(positive, clip, columns))
    operands, objective = _operands(x, y, parameters), Objective(False, positive, clip, offset)
    positives, row_lse = operands.log_sum_exp(objective)
    column_lse = operands.log_sum_exp(objective, transposed=True)[1] if columns else row_lse.new_empty(0)
    return positives, row_lse, column_lse


def log_sum_exp_backward(
    grad_positives: Tensor,
    grad_rows: Tensor,
    grad_columns: Tensor,
    x: Tensor,
    y: Tensor,
    parameters: list[Tensor],
    row_lse: Tensor,
    column_lse: Tensor,
    needed: list[bool],
    score: str,
    positive: bool,
    clip: float,
    columns: bool,
    offset: int,
) -> list[Tensor]:
    """As `cpu.log_sum_exp_backward`; all gradients are formed of additive scores."""
    column_upstream = {"grad_columns": grad_columns if columns else None, "column_lse": column_lse if columns else None}
    if not parameters:
        embeddings = _embeddings(x, y, score, clip, offset)
        gradients = pairwise.log_sum_exps_gradient(
            embeddings.score,
            embeddings.pairs,
            _flags(positive, clip, columns),
            embeddings.wanted(needed),
            grad_positives=grad_positives,
            grad_rows=grad_rows,
            row_lse=row_lse,
            **column_upstream,
        )
        return [*embeddings.embedding_results(gradients, x.dtype)]
    upstream = Upstream(grad_positives, grad_rows, row_lse=row_lse, **column_upstream)
    objective = Objective(False, positive, clip, offset)
    return _operands(x, y, parameters).gradients(upstream, objective, (x, y, *parameters))


def softplus(x: Tensor, y: Tensor, parameters: list[Tensor], score: str, positive: bool) -> tuple[Tensor, Tensor]:
    """As `cpu.softplus`."""
    if not parameters:
        embeddings = _embeddings(x, y, score)
        states = reduce(embeddings.score, _SOFTPLUS_SUMS, embeddings.pairs, _flags(positive))
        return states.positives, states.rows[0].sum(0, dtype=torch.float64).float()
    return _operands(x, y, parameters).softplus(Objective(True, positive))


def softplus_backward(
    grad_positives: Tensor,
    grad_rows: Tensor,
    x: Tensor,
    y: Tensor,
    parameters: list[Tensor],
    needed: list[bool],
    score: str,
    positive: bool,
) -> list[Tensor]:
    """As `cpu.softplus_backward`; all gradients are formed of additive scores."""
    if not parameters:
        embeddings, weights = _embeddings(x, y, score), Weights(pairwise.apart(grad_rows, grad_positives, None))
        pairs, wanted = embeddings.pairs, embeddings.wanted(needed)
        gradients = gradient(embeddings.score, _SOFTPLUS_SUMS, pairs, _flags(positive), weights, wanted)
        return [*embeddings.embedding_results(gradients, x.dtype)]
    upstream, objective = Upstream(grad_positives, grad_rows), Objective(True, positive)
    return _operands(x, y, parameters).gradients(upstream, objective, (x, y, *parameters))
