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
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mibfast import _buffers
from mibfast.kernels.pairwise import engine_cpu as engine
from mibfast.kernels.pairwise import one_tile_cpu, reductions, scores
from mibfast.kernels.pairwise.flags import (
    CLAMPED,
    POSITIVE_EXCLUDED,
    SEPARATE_EXPONENTIALS,
    TOTALS,
    TWO_WAY,
    WITHOUT_TARGET,
)
from mibfast.kernels.pairwise.reductions import log_sum_exp as lse
from mibfast.kernels.pairwise.rows_cpu import Rows, unit_rows, unit_rows_backward
from mibfast.kernels.pairwise.scores import Score
from mibfast.kernels.pairwise.tiles_cpu import Columns, Gradients
from mibfast.kernels.projection import cpu as projection
from mibfast.kernels.vector_math import WEIGHT_EXPONENT

INNER_PRODUCT, LOG_SUM_EXP = scores.named("inner_product"), reductions.named("log_sum_exp")
# NaN and infinity are results here, not accidents.
_QUIET = np.errstate(all="ignore")
# One reference for all columns holds while none lies further below it, nats; float32 weights end at e^-110.
_DEEPEST_COLUMN = {torch.float32: 80.0, torch.float64: 600.0}
# e^(R_i - C_j) is formed as a product of two numbers while no R exceeds a C by more, nats.
_LARGEST_EXCESS = {torch.float32: 60.0, torch.float64: 600.0}
# A Gram matrix I - U of bases changes a cosine by less than U / 2, float32 rounds it by 6e-8.
_UNSEEN_SHRINKAGE = 2e-8


class Objective(NamedTuple):
    """What InfoNCE to compute.

    Log-sum-exps are of scores brought into [-clip, clip], where there is a bound; positives are not.
    """

    positive_in_denominator: bool = True
    symmetric: bool = False
    label_smoothing: float = 0.0
    clip: float = math.inf

    @property
    def flags(self) -> int:
        return (
            (0 if self.positive_in_denominator else POSITIVE_EXCLUDED)
            | (TWO_WAY if self.symmetric else 0)
            | (TOTALS if self.label_smoothing else 0)
            | (CLAMPED if self.clip < math.inf else 0)
        )


def columns_of_positives(pairs: engine.Pairs) -> slice:
    """The columns of the positives of all rows."""
    return slice(pairs.offset, pairs.offset + pairs.rows.n)


def losses(pairs: engine.Pairs, objective: Objective) -> tuple[Tensor, Tensor, Tensor]:
    """InfoNCE of each row [N] in the engine's dtype, and log-sum-exps of rows [N] and columns [N' or 0], float64."""
    results, column_lse = log_sum_exps(pairs, objective)
    each = _losses(results, column_lse, objective, pairs.columns.count, pairs.offset)
    return (
        torch.from_numpy(each).to(pairs.rows.dtype),
        torch.from_numpy(results.rows[lse.LSE]),
        torch.from_numpy(column_lse),
    )


def log_sum_exps(pairs: engine.Pairs, objective: Objective) -> tuple[engine.Results, np.ndarray]:
    """The results of the reduction, and the log-sum-exps of columns [N' or 0], float64."""
    row_state = np.zeros((lse.ROW_STATES, pairs.rows.n))
    if objective.clip < math.inf:
        row_state[lse.CLIP] = objective.clip
    results = engine.reduce(pairs, LOG_SUM_EXP, objective.flags, row_state)
    column_lse = np.empty(0)
    if objective.symmetric:
        above_reference = _log_of_weights(results.columns[lse.COLUMN_SUM], pairs.rows.dtype)
        column_lse = above_reference + results.reference
        # A NaN is no sign of a column far below the reference, but next to an infinite one all others are.
        deepest = np.nanmin(above_reference, initial=np.inf)
        if results.reference == np.inf or deepest < -_DEEPEST_COLUMN[pairs.rows.dtype]:
            column_lse = _column_lse_exactly(pairs, objective)
    return results, column_lse


def positives_and_log_sum_exps(pairs: engine.Pairs, objective: Objective) -> list[Tensor]:
    """Positives [N], log-sum-exps of rows [N] and of columns [N' or 0], and both once more in float64.

    Rounded to the engine's dtype, they would put an error of 1e-3 on the backward's weights of scores of 1e4.
    """
    results, column_lse = log_sum_exps(pairs, objective)
    positives = torch.from_numpy(results.rows[lse.POSITIVE]).to(pairs.rows.dtype, copy=True)
    wide = (torch.from_numpy(results.rows[lse.LSE].copy()), torch.from_numpy(column_lse))
    return [positives, *(x.to(pairs.rows.dtype, copy=True) for x in wide), *wide]


@_QUIET
def _losses(
    results: engine.Results, column_lse: np.ndarray, objective: Objective, count: int, offset: int
) -> np.ndarray:
    """The loss of each row [N], of `count` columns, the positive of row i being column i + offset."""
    smoothing, n = objective.label_smoothing, results.rows.shape[1]
    target = (1.0 - smoothing) * results.rows[lse.POSITIVE]
    losses: np.ndarray = results.rows[lse.LSE] - target
    if smoothing:
        losses -= smoothing / count * results.rows[lse.TOTAL]
    if objective.symmetric:
        positives = slice(offset, offset + n)
        other = column_lse[positives] - target
        if smoothing:
            other -= smoothing / n * results.columns[lse.COLUMN_TOTAL, positives]
        losses = 0.5 * (losses + other)
    return losses


@_QUIET
def _log_of_weights(sums: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """The logarithms of sums of weights: log-sum-exps above the reference, whose own digits may not hold them."""
    logarithms: np.ndarray = np.log(sums) - engine.log_of_weight_scale(dtype)
    return logarithms


def _column_lse_exactly(pairs: engine.Pairs, objective: Objective) -> np.ndarray:
    """Log-sum-exps of columns with a reference each: a second sweep, for columns too far below the others."""
    maxima, sums = engine.reduce_columns(pairs, not objective.positive_in_denominator, objective.clip)
    column_lse = _log_of_weights(sums, pairs.rows.dtype) + maxima
    return np.where((maxima == -np.inf) & ~np.isnan(sums), -np.inf, column_lse)


def sum_with_gradient(pairs: engine.Pairs, objective: Objective, weight: float, gradients: Gradients) -> Tensor:
    """`weight` times the sum of InfoNCE over rows, a float64 scalar, and its gradients: one way in one sweep."""
    if objective.symmetric:
        return _sum_both_ways_with_gradient(pairs, objective, weight, gradients)
    row_state = engine.reduce_with_gradient(
        pairs,
        LOG_SUM_EXP,
        objective.flags,
        upstream=weight,
        label_smoothing=objective.label_smoothing,
        gradients=gradients,
    )
    results = engine.Results(row_state, np.empty((2, 1)), -math.inf)
    each = _losses(results, np.empty(0), objective, pairs.columns.count, pairs.offset)
    return torch.tensor(weight * float(each.sum()), dtype=torch.float64)


@_QUIET
def _sum_both_ways_with_gradient(
    pairs: engine.Pairs, objective: Objective, weight: float, gradients: Gradients
) -> Tensor:
    """The same both ways: from one tile where it serves."""
    n, count, dtype = pairs.rows.n, pairs.columns.count, pairs.rows.dtype
    # Smoothed, a pair's weight depends on whether its column is a positive's.
    if engine.fits_one_tile(pairs) and (n == count or not objective.label_smoothing):
        positives = columns_of_positives(pairs)

        def make_column_weights(results: engine.Results) -> np.ndarray | None:
            sums, reference = results.columns[lse.COLUMN_SUM, positives], results.reference
            # NaN, infinities and columns far below the others fail the comparison.
            if not (-np.inf < reference < np.inf and _log_of_weights(sums, dtype).min() >= -_LARGEST_EXCESS[dtype]):
                return None
            results.rows[lse.MAXIMUM] -= reference
            weights = np.zeros((lse.COLUMN_WEIGHTS, count), pairs.rows.numpy_dtype)
            weights[lse.GRAD_COLUMN_LSE, positives] = 1.0 / sums
            return weights

        results, done = engine.reduce_both_ways_with_gradient(
            pairs,
            LOG_SUM_EXP,
            objective.flags,
            upstream=weight,
            label_smoothing=objective.label_smoothing,
            make_column_weights=make_column_weights,
            deepest=-_LARGEST_EXCESS[dtype],
            gradients=gradients,
        )
        if done:
            column_lse = _log_of_weights(results.columns[lse.COLUMN_SUM], dtype) + results.reference
            total = float(_losses(results, column_lse, objective, count, pairs.offset).sum())
            return torch.tensor(weight * total, dtype=torch.float64)
    each, row_lse, column_lse_tensor = losses(pairs, objective)
    upstream = torch.full((n,), weight, dtype=torch.float64)
    losses_gradient(pairs, objective, upstream, row_lse, column_lse_tensor, gradients)
    return weight * each.double().sum()


@_QUIET
def losses_gradient(
    pairs: engine.Pairs,
    objective: Objective,
    upstream: Tensor,
    row_lse: Tensor,
    column_lse: Tensor,
    gradients: Gradients,
) -> None:
    """Gradients of `losses` for an upstream gradient [N]."""
    smoothing, g = objective.label_smoothing, upstream.double().numpy()
    half = 0.5 if objective.symmetric else 1.0
    grad_columns = np.zeros(pairs.columns.count if objective.symmetric else 0)
    if objective.symmetric:
        grad_columns[columns_of_positives(pairs)] = half * g
    log_sum_exps_gradient(
        pairs,
        objective,
        row_lse=row_lse.numpy(),
        column_lse=column_lse.numpy(),
        grad_rows=half * g,
        grad_columns=grad_columns,
        grad_positives=-(1.0 - smoothing) * g,
        grad_row_totals=-smoothing / pairs.columns.count * half * g,
        grad_column_totals=-smoothing / pairs.rows.n * grad_columns,
        gradients=gradients,
    )


@_QUIET
def log_sum_exps_gradient(
    pairs: engine.Pairs,
    objective: Objective,
    *,
    row_lse: np.ndarray,
    column_lse: np.ndarray,
    grad_rows: np.ndarray,
    grad_columns: np.ndarray,
    grad_positives: np.ndarray,
    grad_row_totals: np.ndarray | float = 0.0,
    grad_column_totals: np.ndarray | float = 0.0,
    gradients: Gradients,
) -> None:
    """Gradients, given those of the log-sum-exps of rows [N] and columns [N'], of positives, and of sums of scores."""
    flags, dtype = objective.flags, pairs.rows.dtype
    row_weights = np.zeros((lse.ROW_WEIGHTS, pairs.rows.n))
    # A row of -inf has no softmax: exp(s - inf) = 0.
    row_weights[lse.ROW_LSE] = np.where(row_lse == -np.inf, np.inf, row_lse)
    row_weights[lse.GRAD_LSE] = grad_rows
    row_weights[lse.GRAD_POSITIVE] = grad_positives
    row_weights[lse.GRAD_TOTAL], row_weights[lse.ROW_CLIP] = grad_row_totals, objective.clip
    count = pairs.columns.count if objective.symmetric or objective.label_smoothing else 1
    column_weights = np.zeros((lse.COLUMN_WEIGHTS, count))
    if objective.symmetric:
        column_weights[lse.GRAD_COLUMN_TOTAL] = grad_column_totals
        highest, lowest = float(row_lse.max()), float(column_lse.min())
        if highest - lowest <= _LARGEST_EXCESS[dtype] and not flags & CLAMPED:
            middle = 0.5 * (highest + lowest)
            row_weights[lse.FACTOR] = np.exp(row_lse - middle)
            column_weights[lse.GRAD_COLUMN_LSE] = grad_columns * np.exp(middle - column_lse)
        else:
            flags |= SEPARATE_EXPONENTIALS
            column_weights[lse.COLUMN_LSE] = np.where(column_lse == -np.inf, np.inf, column_lse)
            column_weights[lse.GRAD_COLUMN_LSE] = grad_columns
    engine.gradient(
        pairs,
        LOG_SUM_EXP,
        flags,
        row_weights=row_weights,
        column_weights=column_weights.astype(pairs.rows.numpy_dtype),
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
def log_sum_exp_of_all_with_gradient(pairs: engine.Pairs, gradients: Gradients) -> tuple[float, float]:
    """The log-sum-exp over all pairs but the positives, and its gradients, those of columns up to a factor, the second.

    The weight of a pair is its row's softmax times e^(R_i - L). L is known at the end: until then weights are relative
    to the largest R so far, with the factor of float32 weights.
    """
    rows = pairs.rows
    level, scale = -math.inf, 2.0**WEIGHT_EXPONENT if rows.dtype == torch.float32 else 1.0
    levels = np.zeros(rows.n)

    def update_factors(row_state: np.ndarray, factors: np.ndarray, first: int, count: int) -> float:
        nonlocal level
        row_lse = row_state[lse.LSE, first : first + count]
        # A NaN is no level, and comes out of the exponential.
        before, level = level, max(level, float(np.fmax.reduce(row_lse)))
        levels[first : first + count] = level if level > -math.inf else 0.0
        factors[:count] *= scale * np.exp(row_lse - levels[first : first + count])
        return math.exp(before - level) if before < level else 1.0

    row_state = engine.reduce_with_gradient(
        pairs,
        LOG_SUM_EXP,
        POSITIVE_EXCLUDED | WITHOUT_TARGET,
        upstream=1.0,
        gradients=gradients,
        update_factors=update_factors,
    )
    total = log_sum_exp_of_rows(row_state[lse.LSE])
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


class Embeddings:
    """Pairs of two embeddings by a score that is named, their gradients, and that of the temperature."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        temperature: Tensor | None,
        score: str,
        offset: int,
        needed: Sequence[bool] = (False, False, False),
        normalize: bool = False,
    ) -> None:
        self._query, self._key, self._temperature = query, key, temperature
        named = scores.named(score)
        self._rows = Rows(query.detach(), unit=normalize, wants_norms=named.squared_norms)
        self._columns = EmbeddingColumns(key, self._rows.dtype, named, normalize)
        scale = 1.0 if temperature is None else inverse_temperature(temperature)
        wants_grad_scale = len(needed) > 2 and needed[2]
        self.pairs = engine.Pairs(
            named, self._rows, self._columns.columns, scale=scale, offset=offset, wants_grad_scale=wants_grad_scale
        )
        self.gradients = Gradients(
            zeros(query.shape, self._rows) if needed[0] else None,
            *self._columns.gradients(needed[1]),
        )

    def embedding_results(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The gradients of query and key, in this dtype; one that was not needed is empty."""
        query, rows = self._query, self.gradients.rows
        grad_query = query.new_empty(query.shape, dtype=dtype) if rows is None else rows.to(dtype)
        return grad_query, self._columns.backward(self.gradients).to(dtype)

    def results(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of query and key, in this dtype, and of the temperature; those not needed are empty."""
        assert self._temperature is not None
        return *self.embedding_results(dtype), temperature_gradient(self.pairs, self._temperature)


def zeros(shape: Sequence[int], rows: Rows) -> Tensor:
    """Room for gradients that are added to, of the dtype of rows."""
    return torch.from_numpy(_buffers.empty(tuple(shape), rows.numpy_dtype)).zero_()


class EmbeddingColumns:
    """The columns of a score of two embeddings [N', d], made unit where asked, and the way back of their gradients."""

    def __init__(self, key: Tensor, dtype: torch.dtype, score: Score = INNER_PRODUCT, normalize: bool = False) -> None:
        self._key, self._inverse_norms = key, None
        operands = key.detach().to(dtype)
        if normalize:
            operands, self._inverse_norms = unit_rows(operands)
        operands = operands.contiguous()
        statistics = operands.new_empty(0, len(operands))
        if score.squared_norms:
            statistics = torch.linalg.vector_norm(operands, dim=1, dtype=torch.float64).square().to(dtype)[None]
        self.columns = Columns(operands[None], statistics)

    def gradients(self, needed: bool) -> tuple[Tensor | None, Tensor | None]:
        """Room for the gradients of operands and statistics, where they are needed."""
        return column_gradients(self.columns) if needed else (None, None)

    def backward(self, gradients: Gradients) -> Tensor:
        """The gradient of the embeddings, in the dtype of the columns; empty where it was not needed."""
        operands = self.columns.operands[0]
        if gradients.columns is None:
            return operands.new_empty(self._key.shape)
        grad_operands = gradients.columns[0]
        if gradients.statistics is not None:
            grad_operands.addcmul_(operands, gradients.statistics[0, :, None], value=2.0)
        if self._inverse_norms is None:
            return grad_operands
        return unit_rows_backward(grad_operands, operands, self._inverse_norms)


def temperature_gradient(pairs: engine.Pairs, temperature: Tensor) -> Tensor:
    """dL/dtau = -dL/d(1 / tau) / tau^2."""
    return torch.tensor(-pairs.grad_scale * pairs.given_scale**2, dtype=temperature.dtype)


def info_nce(
    query: Tensor,
    key: Tensor,
    temperature: Tensor,
    score: str,
    normalize: bool,
    offset: int,
    positive_in_denominator: bool,
    symmetric: bool,
    label_smoothing: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """InfoNCE of each query [N], and the log-sum-exps of rows [N] and columns ([N'], or [0] one way), float64."""
    embeddings = Embeddings(query, key, temperature, score, offset, normalize=normalize)
    return losses(embeddings.pairs, Objective(positive_in_denominator, symmetric, label_smoothing))


def info_nce_backward(
    upstream: Tensor,
    query: Tensor,
    key: Tensor,
    temperature: Tensor,
    row_lse: Tensor,
    column_lse: Tensor,
    needed: list[bool],
    score: str,
    normalize: bool,
    offset: int,
    positive_in_denominator: bool,
    symmetric: bool,
    label_smoothing: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `info_nce` with respect to query, key and temperature, those that are needed."""
    embeddings = Embeddings(query, key, temperature, score, offset, needed, normalize)
    objective = Objective(positive_in_denominator, symmetric, label_smoothing)
    losses_gradient(embeddings.pairs, objective, upstream, row_lse, column_lse, embeddings.gradients)
    return embeddings.results(query.dtype)


def info_nce_with_gradient(
    query: Tensor,
    key: Tensor,
    temperature: Tensor,
    needed: list[bool],
    score: str,
    normalize: bool,
    offset: int,
    positive_in_denominator: bool,
    symmetric: bool,
    label_smoothing: float,
) -> tuple[Tensor | None, ...]:
    """The mean of InfoNCE and its gradients, as `info_nce_backward` gives them but in the engine's dtype."""
    objective = Objective(positive_in_denominator, symmetric, label_smoothing)
    if one_tile_cpu.serves_embeddings(query, key):
        results = _few_with_gradient(query, key, temperature, needed, scores.named(score), normalize, offset, objective)
        if results is not None:
            return results
    embeddings = Embeddings(query, key, temperature, score, offset, needed, normalize)
    loss = sum_with_gradient(embeddings.pairs, objective, 1.0 / query.shape[0], embeddings.gradients)
    dtype = embeddings.pairs.rows.dtype
    return loss.to(dtype), *embeddings.results(dtype)


@_QUIET
def _few_with_gradient(
    query: Tensor,
    key: Tensor,
    temperature: Tensor,
    needed: Sequence[bool],
    score: Score,
    normalize: bool,
    offset: int,
    objective: Objective,
) -> tuple[Tensor | None, ...] | None:
    """`info_nce_with_gradient` of few pairs, in one call; None where these need more than one tile's sweep."""
    (n, count), symmetric, smoothing = (len(query), len(key)), objective.symmetric, objective.label_smoothing
    # Smoothed, a pair's weight depends on whether its column is a positive's.
    if symmetric and smoothing and n != count:
        return None
    scale = inverse_temperature(temperature)
    few = one_tile_cpu.sweep_embeddings(
        score,
        reductions.code(LOG_SUM_EXP, objective.flags),
        objective.flags,
        query,
        key,
        np.zeros((lse.ROW_STATES, n)),
        needed,
        normalize=normalize,
        offset=offset,
        upstream=1.0 / n,
        scale=scale,
        label_smoothing=smoothing,
        deepest=-_LARGEST_EXCESS[query.dtype] if symmetric else None,
        log_of_weight_scale=engine.log_of_weight_scale(query.dtype),
    )
    if few is None:
        return None
    results = engine.Results(few.row_state, few.column_state.astype(np.float64), few.reference)
    column_lse = np.empty(0)
    if symmetric:
        column_lse = _log_of_weights(results.columns[lse.COLUMN_SUM], query.dtype) + few.reference
    loss = float(_losses(results, column_lse, objective, count, offset).sum()) / n
    grad_temperature = None
    if needed[2]:
        grad_temperature = torch.scalar_tensor(-few.grad_scale * scale**2, dtype=temperature.dtype)
    return torch.scalar_tensor(loss, dtype=query.dtype), few.grad_query, few.grad_key, grad_temperature


def partial_lse(
    rows: Tensor, columns: Tensor, temperature: Tensor, score: str, offset: int, positive_in_denominator: bool
) -> list[Tensor]:
    """Positives [N], log-sum-exps of rows [N] and of columns [N'], and both once more in float64."""
    embeddings = Embeddings(rows, columns, temperature, score, offset)
    return positives_and_log_sum_exps(embeddings.pairs, Objective(positive_in_denominator, symmetric=True))


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
    score: str,
    offset: int,
    positive_in_denominator: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of rows, columns and temperature, for those of the positives and of both log-sum-exps."""
    embeddings = Embeddings(rows, columns, temperature, score, offset, needed)
    log_sum_exps_gradient(
        embeddings.pairs,
        Objective(positive_in_denominator, symmetric=True),
        row_lse=row_lse.numpy(),
        column_lse=column_lse.numpy(),
        grad_rows=grad_row_lse.double().numpy(),
        grad_columns=grad_column_lse.double().numpy(),
        grad_positives=grad_positives.double().numpy(),
        gradients=embeddings.gradients,
    )
    return embeddings.results(rows.dtype)


def _cosines(candidates: Tensor, context: Tensor, ridge: float) -> engine.Pairs:
    score, columns = projection_columns(context.detach().unbind(1), ridge)
    return engine.Pairs(score, Rows(candidates.detach(), unit=True), columns)


def projection_columns(contexts: Sequence[Tensor], ridge: float) -> tuple[Score, Columns]:
    """The score of cosines with projections on K contexts [N', d] each, and its columns: their whitened bases.

    Where the ridge shrinks no float32 projection by anything that float32 shows, the score that leaves it out serves.
    """
    bases, grams, largest = projection.whitened_bases(contexts, ridge)
    if bases.dtype == torch.float32 and largest <= _UNSEEN_SHRINKAGE:
        return scores.named("projection"), Columns(bases, grams[:0])
    return scores.named("ridge_projection"), Columns(bases, grams)


def column_gradients(columns: Columns) -> tuple[Tensor, Tensor | None]:
    """Room for the gradients of operands and statistics."""
    statistics = torch.empty_like(columns.statistics) if columns.statistics.shape[0] else None
    operands = columns.operands
    return torch.from_numpy(_buffers.empty(tuple(operands.shape), operands.numpy().dtype)), statistics


def projection_score(candidates: Tensor, context: Tensor, ridge: float) -> Tensor:
    """cos(c, P_i c) of candidates [C, d] and contexts [Q, K, d]: [C, Q] in the engine's dtype."""
    return engine.dense(_cosines(candidates, context, ridge))


def projection_score_backward(
    upstream: Tensor, candidates: Tensor, context: Tensor, needed: Sequence[bool], ridge: float
) -> tuple[Tensor, Tensor]:
    """Gradients of `projection_score` for an upstream gradient [C, Q]."""
    pairs = _cosines(candidates, context, ridge)
    operands, statistics = column_gradients(pairs.product_columns)
    grad_candidates = torch.zeros(candidates.shape, dtype=pairs.rows.dtype)
    engine.dense_gradient(pairs, upstream, Gradients(grad_candidates, operands, statistics))
    count, k, d = context.shape
    into = torch.zeros(k, count, d, dtype=pairs.rows.dtype)
    projection.whitened_bases_backward(operands, statistics, context.detach().unbind(1), ridge, into.unbind(0))
    return grad_candidates.to(candidates.dtype), into.transpose(0, 1).to(context.dtype)
