"""Critics of inner products and of one or two hidden layers over all pairs in Triton; `cpu.py` has the formulas.

Inner products are of the pairwise engine, 1 GEMM of 2 N N' d FLOPs forward and 3 backward, or 4 up to d = 128, whatever
is asked for. Hidden layers have files of their own, `one_layer_triton.py` and `two_layers_triton.py`.
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
from mibfast.kernels.pairwise.gradient_triton import Wanted, Weights, gradient
from mibfast.kernels.pairwise.pairs_triton import Pairs, Scalar, rows_in_place
from mibfast.kernels.pairwise.reduce_triton import reduce
from mibfast.kernels.pairwise.triton import INNER_PRODUCT

_SOFTPLUS_SUMS = reductions.named("softplus")


def _operands(x: Tensor, y: Tensor, parameters: Sequence[Tensor]) -> Operands:
    return OneLayer(x, y, *parameters) if len(parameters) == 2 else TwoLayers(x, y, *parameters)


def _pairs(x: Tensor, y: Tensor, clip: float = math.inf, offset: int = 0) -> Pairs:
    """Pairs of inner products; a bound of their scores takes the place of a bias."""
    bound = Scalar.of(clip if clip < math.inf else 0.0)
    return Pairs(rows_in_place(x), rows_in_place(y)[None], bias=bound, offset=offset)


def _flags(positive: bool, clip: float = math.inf, columns: bool = False) -> int:
    flags = 0 if positive else POSITIVE_EXCLUDED
    flags |= CLAMPED if clip < math.inf else 0
    return flags | (TWO_WAY if columns else 0)


def log_sum_exp(
    x: Tensor, y: Tensor, parameters: list[Tensor], positive: bool, clip: float, columns: bool, offset: int
) -> list[Tensor]:
    """As `cpu.log_sum_exp`, of any parameters."""
    positives, *wide = _positives_and_log_sum_exps(x, y, parameters, positive, clip, columns, offset)
    return [positives, *(lse.to(positives.dtype, copy=True) for lse in wide), *wide]


def _positives_and_log_sum_exps(
    x: Tensor, y: Tensor, parameters: list[Tensor], positive: bool, clip: float, columns: bool, offset: int
) -> tuple[Tensor, Tensor, Tensor]:
    if not parameters:
        return pairwise.log_sum_exps(INNER_PRODUCT, _pairs(x, y, clip, offset), _flags(positive, clip, columns))
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
    positive: bool,
    clip: float,
    columns: bool,
    offset: int,
) -> list[Tensor]:
    """As `cpu.log_sum_exp_backward`; all gradients are formed of additive scores."""
    of_columns = {"grad_columns": grad_columns if columns else None, "column_lse": column_lse if columns else None}
    if not parameters:
        gradients = pairwise.log_sum_exps_gradient(
            INNER_PRODUCT,
            _pairs(x, y, clip, offset),
            _flags(positive, clip, columns),
            Wanted(needed[0], needed[1]),
            grad_positives=grad_positives,
            grad_rows=grad_rows,
            row_lse=row_lse,
            **of_columns,
        )
        return [*gradients.of_rows_and_columns(x, y)]
    upstream = Upstream(grad_positives, grad_rows, row_lse=row_lse, **of_columns)
    objective = Objective(False, positive, clip, offset)
    return _operands(x, y, parameters).gradients(upstream, objective, (x, y, *parameters))


def softplus(x: Tensor, y: Tensor, parameters: list[Tensor], positive: bool) -> tuple[Tensor, Tensor]:
    """As `cpu.softplus`."""
    if not parameters:
        states = reduce(INNER_PRODUCT, _SOFTPLUS_SUMS, _pairs(x, y), _flags(positive))
        return states.positives, states.rows[0].sum(0, dtype=torch.float64).float()
    return _operands(x, y, parameters).softplus(Objective(True, positive))


def softplus_backward(
    grad_positives: Tensor,
    grad_rows: Tensor,
    x: Tensor,
    y: Tensor,
    parameters: list[Tensor],
    needed: list[bool],
    positive: bool,
) -> list[Tensor]:
    """As `cpu.softplus_backward`; all gradients are formed of additive scores."""
    if not parameters:
        weights = Weights(pairwise.apart(grad_rows, grad_positives, None))
        wanted = Wanted(needed[0], needed[1])
        gradients = gradient(INNER_PRODUCT, _SOFTPLUS_SUMS, _pairs(x, y), _flags(positive), weights, wanted)
        return [*gradients.of_rows_and_columns(x, y)]
    upstream, objective = Upstream(grad_positives, grad_rows), Objective(True, positive)
    return _operands(x, y, parameters).gradients(upstream, objective, (x, y, *parameters))
