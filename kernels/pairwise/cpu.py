"""InfoNCE's log-sum-exps on the CPU engine: which sweeps a loss needs, and what goes into their weights.

With R_i the log-sum-exp of row i and C_j that of column j (the positive in or out), p the positive's score, eps the
label smoothing and s-bar a mean of scores, the loss of sample i is

    one way     R_i - (1 - eps) p_i - eps mean_j s_ij
    both ways   half the sum of that and C_j - (1 - eps) p_i - eps mean_k s_kj, of the positive's column j.

With a mean over samples, one way takes one sweep and 3 GEMMs, and so do both ways where all pairs fit one tile (a
thousand samples); everything else takes a sweep for the loss and one for the gradient, 4 GEMMs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mibfast import _buffers
from mibfast.kernels.pairwise import engine_cpu as engine
from mibfast.kernels.pairwise import reductions_cpu as reductions
from mibfast.kernels.pairwise import scores_cpu as scores
from mibfast.kernels.pairwise.rows_cpu import Rows
from mibfast.kernels.projection import cpu as projection
from mibfast.kernels.vector_math import WEIGHT_EXPONENT

# NaN and infinity are results here, not accidents.
_QUIET = np.errstate(all="ignore")
# One reference for all columns holds while none lies further below it, nats; float32 weights end at e^-110.
_DEEPEST_COLUMN = {torch.float32: 80.0, torch.float64: 600.0}
# e^(R_i - C_j) is formed as a product of two numbers while no R exceeds a C by more, nats.
_LARGEST_EXCESS = {torch.float32: 60.0, torch.float64: 600.0}
# A Gram matrix I - U of bases changes a cosine by less than U / 2, float32 rounds it by 6e-8.
_UNSEEN_SHRINKAGE = 2e-8


@dataclass(frozen=True)
class Objective:
    """What InfoNCE to compute; the positive of row i is column i + offset.

    Log-sum-exps are of scores brought into [-clip, clip], where there is a bound; positives are not.
    """

    offset: int = 0
    positive_in_denominator: bool = True
    symmetric: bool = False
    label_smoothing: float = 0.0
    clip: float = math.inf

    @property
    def reduction(self) -> int:
        if self.clip < math.inf:
            clamped, both_ways = reductions.CLAMPED_LOG_SUM_EXP, reductions.TWO_WAY_CLAMPED_LOG_SUM_EXP
            return both_ways if self.symmetric else clamped
        return reductions.TWO_WAY_LOG_SUM_EXP if self.symmetric else reductions.LOG_SUM_EXP

    @property
    def flags(self) -> int:
        flags = 0 if self.positive_in_denominator else reductions.POSITIVE_EXCLUDED
        return flags | (reductions.TOTALS if self.label_smoothing else 0)

    def columns_of_positives(self, n: int) -> slice:
        """The columns of the positives of n rows."""
        return slice(self.offset, self.offset + n)


def losses(score: int, rows: Rows, columns: engine.Columns, objective: Objective) -> tuple[Tensor, Tensor, Tensor]:
    """InfoNCE of each row [N] in the engine's dtype, and log-sum-exps of rows [N] and columns [N' or 0], float64."""
    row_state, column_state, column_lse = log_sum_exps(score, rows, columns, objective)
    result = _losses(row_state, column_state, column_lse, objective, columns.count)
    return (
        torch.from_numpy(result).to(rows.dtype),
        torch.from_numpy(row_state[reductions.LSE]),
        torch.from_numpy(column_lse),
    )


def log_sum_exps(
    score: int, rows: Rows, columns: engine.AnyColumns, objective: Objective
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The row state [5, N], the column state [2, N'] and the log-sum-exps of columns [N' or 0], float64."""
    row_state = np.zeros((reductions.ROW_STATES, rows.n))
    if objective.clip < math.inf:
        row_state[reductions.CLIP] = objective.clip
    arguments = (score, objective.reduction, rows, columns, objective.offset, objective.flags, row_state)
    _, column_state, reference = engine.reduce(*arguments)
    column_lse = np.empty(0)
    if objective.symmetric:
        column_lse = _column_lse(column_state[reductions.COLUMN_SUM], reference, rows.dtype)
        # A NaN is no sign of a column far below the reference.
        if np.nanmin(column_lse, initial=np.inf) < reference - _DEEPEST_COLUMN[rows.dtype]:
            column_lse = _column_lse_exactly(score, rows, columns, objective)
    return row_state, column_state, column_lse


@_QUIET
def _losses(
    row_state: np.ndarray, column_state: np.ndarray, column_lse: np.ndarray, objective: Objective, n_columns: int
) -> np.ndarray:
    smoothing, n = objective.label_smoothing, row_state.shape[1]
    target = (1.0 - smoothing) * row_state[reductions.POSITIVE]
    result: np.ndarray = row_state[reductions.LSE] - target
    if smoothing:
        result -= smoothing / n_columns * row_state[reductions.TOTAL]
    if objective.symmetric:
        positives = objective.columns_of_positives(n)
        other = column_lse[positives] - target
        if smoothing:
            other -= smoothing / n * column_state[reductions.COLUMN_TOTAL, positives]
        result = 0.5 * (result + other)
    return result


@_QUIET
def _column_lse(sums: np.ndarray, reference: float | np.ndarray, dtype: torch.dtype) -> np.ndarray:
    scale = WEIGHT_EXPONENT * math.log(2.0) if dtype == torch.float32 else 0.0
    lse: np.ndarray = np.log(sums) - scale + reference
    return lse


def _column_lse_exactly(score: int, rows: Rows, columns: engine.AnyColumns, objective: Objective) -> np.ndarray:
    """Log-sum-exps of columns with a reference each: a second sweep, for columns too far below the others."""
    excluded = not objective.positive_in_denominator
    maxima, sums = engine.reduce_columns(score, rows, columns, objective.offset, excluded, objective.clip)
    lse = _column_lse(sums, maxima, rows.dtype)
    return np.where((maxima == -np.inf) & ~np.isnan(sums), -np.inf, lse)


def sum_with_gradient(
    score: int,
    rows: Rows,
    columns: engine.Columns,
    objective: Objective,
    weight: float,
    gradients: engine.Gradients,
) -> Tensor:
    """`weight` times the sum of one-way InfoNCE over rows, a float64 scalar, and its gradients, in one sweep."""
    row_state = engine.reduce_with_gradient(
        score,
        reductions.LOG_SUM_EXP,
        rows,
        columns,
        objective.offset,
        objective.flags,
        upstream=weight,
        label_smoothing=objective.label_smoothing,
        gradients=gradients,
    )
    each = _losses(row_state, np.empty((2, 1)), np.empty(0), objective, columns.count)
    return torch.tensor(weight * each.sum(), dtype=torch.float64)


@_QUIET
def sum_both_ways_with_gradient(
    score: int,
    rows: Rows,
    columns: engine.Columns,
    objective: Objective,
    weight: float,
    gradients: engine.Gradients,
) -> Tensor:
    """`weight` times the sum of two-way InfoNCE, a float64 scalar, and its gradients: from one tile where it serves."""
    # Smoothed, a pair's weight depends on whether its column is a positive's.
    if engine.fits_one_tile(rows, columns, score) and (rows.n == columns.count or not objective.label_smoothing):
        positives = objective.columns_of_positives(rows.n)

        def weigh_columns(row_state: np.ndarray, state: np.ndarray, reference: float) -> np.ndarray | None:
            sums = state[reductions.COLUMN_SUM, positives]
            lse = _column_lse(sums, reference, rows.dtype)
            # NaN, infinities and columns far below the others fail the comparison.
            if not (reference > -np.inf and float((reference - lse).max()) <= _LARGEST_EXCESS[rows.dtype]):
                return None
            row_state[reductions.ROW_MAXIMUM] -= reference
            weights = np.zeros((3, columns.count), rows.numpy_dtype)
            weights[reductions.COLUMN_SOFTMAX, positives] = 1.0 / sums
            return weights

        row_state, column_state, reference, done = engine.reduce_both_ways_with_gradient(
            score,
            objective.reduction,
            rows,
            columns,
            objective.offset,
            objective.flags,
            upstream=weight,
            label_smoothing=objective.label_smoothing,
            weigh_columns=weigh_columns,
            gradients=gradients,
        )
        if done:
            column_lse = _column_lse(column_state[reductions.COLUMN_SUM], reference, rows.dtype)
            return torch.tensor(weight * _losses(row_state, column_state, column_lse, objective, columns.count).sum())
    each, row_lse, column_lse_tensor = losses(score, rows, columns, objective)
    upstream = torch.full((rows.n,), weight, dtype=torch.float64)
    losses_gradient(score, rows, columns, objective, upstream, row_lse, column_lse_tensor, gradients)
    return weight * each.double().sum()


@_QUIET
def losses_gradient(
    score: int,
    rows: Rows,
    columns: engine.Columns,
    objective: Objective,
    upstream: Tensor,
    row_lse: Tensor,
    column_lse: Tensor,
    gradients: engine.Gradients,
) -> None:
    """Gradients of `losses` for an upstream gradient [N]."""
    smoothing, g = objective.label_smoothing, upstream.double().numpy()
    half = 0.5 if objective.symmetric else 1.0
    grad_columns = np.zeros(columns.count if objective.symmetric else 0)
    if objective.symmetric:
        grad_columns[objective.columns_of_positives(rows.n)] = half * g
    log_sum_exps_gradient(
        score,
        rows,
        columns,
        objective,
        row_lse=row_lse.numpy(),
        column_lse=column_lse.numpy(),
        grad_rows=half * g,
        grad_columns=grad_columns,
        grad_positives=-(1.0 - smoothing) * g,
        grad_row_totals=-smoothing / columns.count * half * g,
        grad_column_totals=-smoothing / rows.n * grad_columns,
        gradients=gradients,
    )


@_QUIET
def log_sum_exps_gradient(
    score: int,
    rows: Rows,
    columns: engine.AnyColumns,
    objective: Objective,
    *,
    row_lse: np.ndarray,
    column_lse: np.ndarray,
    grad_rows: np.ndarray,
    grad_columns: np.ndarray,
    grad_positives: np.ndarray,
    grad_row_totals: np.ndarray | float = 0.0,
    grad_column_totals: np.ndarray | float = 0.0,
    gradients: engine.Gradients,
) -> None:
    """Gradients, given those of the log-sum-exps of rows [N] and columns [N'], of positives, and of sums of scores."""
    flags = objective.flags
    row_weights = np.zeros((5, rows.n))
    # A row of -inf has no softmax: exp(s - inf) = 0.
    row_weights[reductions.ROW_LSE] = np.where(row_lse == -np.inf, np.inf, row_lse)
    row_weights[reductions.ROW_SOFTMAX] = grad_rows
    row_weights[reductions.ROW_POSITIVE] = grad_positives
    clamped = objective.clip < math.inf
    row_weights[reductions.ROW_CLIP if clamped else reductions.ROW_SHIFT] = (
        objective.clip if clamped else grad_row_totals
    )
    column_weights = np.zeros((3, columns.count if objective.symmetric or objective.label_smoothing else 1))
    if objective.symmetric:
        column_weights[reductions.COLUMN_SHIFT] = grad_column_totals
        highest, lowest = float(row_lse.max()), float(column_lse.min())
        if highest - lowest <= _LARGEST_EXCESS[rows.dtype] and not clamped:
            middle = 0.5 * (highest + lowest)
            row_weights[reductions.ROW_FACTOR] = np.exp(row_lse - middle)
            column_weights[reductions.COLUMN_SOFTMAX] = grad_columns * np.exp(middle - column_lse)
        else:
            flags |= reductions.SEPARATE_EXPONENTIALS
            column_weights[reductions.COLUMN_LSE] = np.where(column_lse == -np.inf, np.inf, column_lse)
            column_weights[reductions.COLUMN_SOFTMAX] = grad_columns
    numpy_dtype = np.float64 if rows.dtype == torch.float64 else np.float32
    engine.gradient(
        score,
        objective.reduction,
        rows,
        columns,
        objective.offset,
        flags,
        row_weights=row_weights,
        column_weights=column_weights.astype(numpy_dtype),
        gradients=gradients,
    )


@_QUIET
def log_sum_exp_of_rows(row_lse: np.ndarray) -> float:
    """The log-sum-exp over all pairs from those of rows [N]."""
    if np.isnan(row_lse).any():
        return math.nan
    level = float(row_lse.max())
    if math.isinf(level):
        return level
    return level + math.log(float(np.exp(row_lse - level).sum()))


@_QUIET
def log_sum_exp_of_all_with_gradient(
    score: int, rows: Rows, columns: engine.AnyColumns, gradients: engine.Gradients
) -> tuple[float, float]:
    """The log-sum-exp over all pairs but the positives, and its gradients, those of columns up to a factor, the second.

    The weight of a pair is its row's softmax times e^(R_i - L). L is known at the end: until then weights are relative
    to the largest R so far, with the factor of float32 weights.
    """
    level, scale = -math.inf, 2.0**WEIGHT_EXPONENT if rows.dtype == torch.float32 else 1.0
    levels = np.zeros(rows.n)

    def weigh_block(row_state: np.ndarray, factors: np.ndarray, first: int, count: int) -> float:
        nonlocal level
        lse = row_state[reductions.LSE, first : first + count]
        # A NaN is no level, and comes out of the exponential.
        before, level = level, max(level, float(np.fmax.reduce(lse)))
        levels[first : first + count] = level if level > -math.inf else 0.0
        factors[:count] *= scale * np.exp(lse - levels[first : first + count])
        return math.exp(before - level) if before < level else 1.0

    row_state = engine.reduce_with_gradient(
        score,
        reductions.LOG_SUM_EXP,
        rows,
        columns,
        0,
        reductions.POSITIVE_EXCLUDED | reductions.WITHOUT_TARGET,
        upstream=1.0,
        label_smoothing=0.0,
        gradients=gradients,
        weigh_block=weigh_block,
    )
    total = log_sum_exp_of_rows(row_state[reductions.LSE])
    if gradients.rows is not None:
        # In two steps: e^(R - L) 2^-58 is subnormal in float32 where e^(R - L) is not.
        by_row = np.exp(levels - total)[:, None].astype(rows.numpy_dtype)
        gradients.rows.mul_(torch.from_numpy(by_row)).mul_(1.0 / scale)
    return total, float(np.exp(level - total)) / scale


def inverse_temperature(temperature: Tensor) -> float:
    """1 / temperature; NaN where it is not positive and finite."""
    tau = float(temperature)
    return 1.0 / tau if 0.0 < tau < math.inf else math.nan


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The engine's dtype: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _operands(query: Tensor, key: Tensor, temperature: Tensor, needs_temperature: bool) -> tuple[Rows, engine.Columns]:
    dtype = accumulation_dtype(query.dtype)
    scale = inverse_temperature(temperature)
    rows = Rows(query.detach(), scale=scale, scaled=needs_temperature)
    operands = key.detach().to(dtype).contiguous()[None]
    return rows, engine.Columns(operands, operands.new_empty(0, key.shape[0]))


def _gradients(query: Tensor, key: Tensor, dtype: torch.dtype, needed: list[bool]) -> engine.Gradients:
    numpy_dtype = np.float64 if dtype == torch.float64 else np.float32
    return engine.Gradients(
        torch.from_numpy(_buffers.empty(tuple(query.shape), numpy_dtype)).zero_() if needed[0] else None,
        torch.from_numpy(_buffers.empty((1, *key.shape), numpy_dtype)) if needed[1] else None,
        None,
    )


def _results(
    gradients: engine.Gradients, rows: Rows, query: Tensor, key: Tensor, temperature: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query and key, in this dtype, and of the temperature; those that were not needed are empty."""
    d_query = query.new_empty(query.shape, dtype=dtype) if gradients.rows is None else gradients.rows.to(dtype)
    d_key = key.new_empty(key.shape, dtype=dtype) if gradients.columns is None else gradients.columns[0].to(dtype)
    # dL/dtau = -dL/d(1 / tau) / tau^2
    d_temperature = torch.tensor(-rows.scale_gradient * rows.scale**2, dtype=temperature.dtype)
    return d_query, d_key, d_temperature


def info_nce(
    query: Tensor,
    key: Tensor,
    temperature: Tensor,
    offset: int,
    positive_in_denominator: bool,
    symmetric: bool,
    label_smoothing: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """InfoNCE of each query [N], and the log-sum-exps of rows [N] and columns ([N'], or [0] one way), float64."""
    rows, columns = _operands(query, key, temperature, False)
    objective = Objective(offset, positive_in_denominator, symmetric, label_smoothing)
    return losses(scores.INNER_PRODUCT, rows, columns, objective)


def info_nce_backward(
    upstream: Tensor,
    query: Tensor,
    key: Tensor,
    temperature: Tensor,
    row_lse: Tensor,
    column_lse: Tensor,
    needed: list[bool],
    offset: int,
    positive_in_denominator: bool,
    symmetric: bool,
    label_smoothing: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `info_nce` with respect to query, key and temperature, those that are needed."""
    rows, columns = _operands(query, key, temperature, needed[2])
    gradients = _gradients(query, key, rows.dtype, needed)
    objective = Objective(offset, positive_in_denominator, symmetric, label_smoothing)
    losses_gradient(scores.INNER_PRODUCT, rows, columns, objective, upstream, row_lse, column_lse, gradients)
    return _results(gradients, rows, query, key, temperature, query.dtype)


def info_nce_with_gradient(
    query: Tensor,
    key: Tensor,
    temperature: Tensor,
    needed: list[bool],
    offset: int,
    positive_in_denominator: bool,
    symmetric: bool,
    label_smoothing: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The mean of InfoNCE and its gradients, as `info_nce_backward` gives them but in the engine's dtype."""
    rows, columns = _operands(query, key, temperature, needed[2])
    gradients = _gradients(query, key, rows.dtype, needed)
    objective = Objective(offset, positive_in_denominator, symmetric, label_smoothing)
    sweep = sum_both_ways_with_gradient if symmetric else sum_with_gradient
    loss = sweep(scores.INNER_PRODUCT, rows, columns, objective, 1.0 / query.shape[0], gradients)
    return loss.to(rows.dtype), *_results(gradients, rows, query, key, temperature, rows.dtype)


def partial_lse(
    rows: Tensor, columns: Tensor, temperature: Tensor, offset: int, positive_in_denominator: bool
) -> list[Tensor]:
    """Positives [N], log-sum-exps of rows [N] and of columns [N'], and both once more in float64."""
    left, right = _operands(rows, columns, temperature, False)
    objective = Objective(offset, positive_in_denominator, symmetric=True)
    state, _, column_lse = log_sum_exps(scores.INNER_PRODUCT, left, right, objective)
    positives = torch.from_numpy(state[reductions.POSITIVE]).to(left.dtype, copy=True)
    wide = (torch.from_numpy(state[reductions.LSE].copy()), torch.from_numpy(column_lse))
    return [positives, *(lse.to(left.dtype, copy=True) for lse in wide), *wide]


def partial_lse_backward(
    grad_positives: Tensor,
    grad_row_lse: Tensor,
    grad_column_lse: Tensor,
    rows: Tensor,
    columns: Tensor,
    temperature: Tensor,
    row_lse: Tensor,
    column_lse: Tensor,
    needed: list[bool],
    offset: int,
    positive_in_denominator: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of rows, columns and temperature, for those of the positives and of both log-sum-exps."""
    left, right = _operands(rows, columns, temperature, needed[2])
    gradients = _gradients(rows, columns, left.dtype, needed)
    log_sum_exps_gradient(
        scores.INNER_PRODUCT,
        left,
        right,
        Objective(offset, positive_in_denominator, symmetric=True),
        row_lse=row_lse.numpy(),
        column_lse=column_lse.numpy(),
        grad_rows=grad_row_lse.double().numpy(),
        grad_columns=grad_column_lse.double().numpy(),
        grad_positives=grad_positives.double().numpy(),
        gradients=gradients,
    )
    return _results(gradients, left, rows, columns, temperature, rows.dtype)


def _cosines(candidates: Tensor, context: Tensor, ridge: float) -> tuple[int, Rows, engine.Columns]:
    score, columns = projection_columns(context.detach().unbind(1), ridge)
    return score, Rows(candidates.detach(), unit=True), columns


def projection_columns(contexts: Sequence[Tensor], ridge: float) -> tuple[int, engine.Columns]:
    """The score of cosines with projections on K contexts [N', d] each, and its columns: their whitened bases.

    Where the ridge shrinks no float32 projection by anything that float32 shows, the score that leaves it out serves.
    """
    bases, grams, largest = projection.whitened_bases(contexts, ridge)
    if bases.dtype == torch.float32 and largest <= _UNSEEN_SHRINKAGE:
        return scores.PROJECTION, engine.Columns(bases, grams[:0])
    return scores.RIDGE_PROJECTION, engine.Columns(bases, grams)


def column_gradients(columns: engine.Columns) -> tuple[Tensor, Tensor | None]:
    """Room for the gradients of operands and statistics."""
    statistics = torch.empty_like(columns.statistics) if columns.statistics.shape[0] else None
    operands = columns.operands
    return torch.from_numpy(_buffers.empty(tuple(operands.shape), operands.numpy().dtype)), statistics


def projection_score(candidates: Tensor, context: Tensor, ridge: float) -> Tensor:
    """cos(c, P_i c) of candidates [C, d] and contexts [Q, K, d]: [C, Q] in the engine's dtype."""
    score, rows, columns = _cosines(candidates, context, ridge)
    return engine.dense(score, rows, columns)


def projection_score_backward(
    upstream: Tensor, candidates: Tensor, context: Tensor, needed: Sequence[bool], ridge: float
) -> tuple[Tensor, Tensor]:
    """Gradients of `projection_score` for an upstream gradient [C, Q]."""
    score, rows, columns = _cosines(candidates, context, ridge)
    operands, statistics = column_gradients(columns)
    d_candidates = torch.zeros(candidates.shape, dtype=rows.dtype)
    engine.dense_gradient(score, rows, columns, upstream, engine.Gradients(d_candidates, operands, statistics))
    count, k, d = context.shape
    d_contexts = torch.zeros(k, count, d, dtype=rows.dtype)
    projection.whitened_bases_backward(operands, statistics, context.detach().unbind(1), ridge, d_contexts.unbind(0))
    return d_candidates.to(candidates.dtype), d_contexts.transpose(0, 1).to(context.dtype)
