"""InfoNCE on the Triton engine; `cpu.py` has the formulas.

The forward is two launches, whatever is asked for: the sweep, and `_finish`, which merges the states of the sweep's
programs in a fixed order, in float32 relative to the largest, and forms log-sum-exps and losses in
float64. The backward is three at least where pairs fit one chunk (N = N' <= 4096 in bf16): weights, and a GEMM each for
queries and keys; a temperature's gradient is the sum that the first of them leaves, and a few launches of one number.
Scores are float32: at a temperature of 0.01 a cosine's is known to 6e-6, and so are weights, relatively. Log-sum-exps,
float64, add nothing to that, and losses and weights near zero keep their digits. `reduce_triton.py` and
`gradient_triton.py` say what it costs.
Cosines with projections are of whitened bases, K tiles, in the dtype of the embeddings, or float32 for float16; a query
stays where it lies, and its inverse norm is the row's statistic.
`info_nce_mean` takes both sweeps: forming gradients in the first would store a chunk's float32 scores, 18 bytes a pair,
which is more time than forming them again at d < 1000.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from mibfast._precision import at_least_float32, unit
from mibfast.kernels.halves import compiled
from mibfast.kernels.pairwise import dense_triton as dense
from mibfast.kernels.pairwise import reductions, scores
from mibfast.kernels.pairwise.flags import APART, POSITIVE_EXCLUDED, TOTALS, TWO_WAY
from mibfast.kernels.pairwise.gradient_triton import Gradients, Wanted, Weights, gradient
from mibfast.kernels.pairwise.pairs_triton import (
    ONE,
    ZERO,
    Pairs,
    Scalar,
    load_scalar,
    operand_dtype,
    rows_in_place,
)
from mibfast.kernels.pairwise.reduce_triton import States, reduce
from mibfast.kernels.pairwise.reductions import log_sum_exp
from mibfast.kernels.pairwise.scores import Score
from mibfast.kernels.projection.whitening_triton import whitened_bases, whitened_bases_backward

INNER_PRODUCT, LOG_SUM_EXP = scores.named("inner_product"), reductions.named("log_sum_exp")
_GIVEN, _RIDGE_PROJECTION = reductions.named("given"), scores.named("ridge_projection")
_finite, _LOG2_E = compiled(log_sum_exp.finite), tl.constexpr(log_sum_exp.LOG2_E)
# Indices that a program of `_finish` takes, and partial results that it reads at once.
_INDICES, _PARTS = 128, 16


@triton.jit
def _merged(states, parts, count, index, factor, PARTS: tl.constexpr, INDICES: tl.constexpr, TOTALLED: tl.constexpr):
    """The log-sum-exp in nats and the total, float64, of partial results [2 or 3, parts, count]."""
    maximum = tl.full((INDICES,), -float("inf"), tl.float32)
    total = tl.zeros((INDICES,), tl.float32)
    total_of_scores = tl.zeros((INDICES,), tl.float64)
    c = factor * _LOG2_E
    plane_size = parts.to(tl.int64) * count
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)
        place = part[:, None].to(tl.int64) * count + index[None, :]
        mask = (part < parts)[:, None] & (index < count)[None, :]
        maxima = tl.load(states + place, mask=mask, other=-float("inf"))
        sums = tl.load(states + plane_size + place, mask=mask, other=0.0)
        raised = tl.maximum(maximum, tl.max(maxima, 0))
        level = _finite(raised)
        total = total * tl.exp2((maximum - level) * c) + tl.sum(sums * tl.exp2((maxima - level[None, :]) * c), 0)
        maximum = raised
        if TOTALLED:
            total_of_scores += tl.sum(tl.load(states + 2 * plane_size + place, mask=mask, other=0.0).to(tl.float64), 0)
    lse = _finite(maximum).to(tl.float64) * factor + tl.log(total.to(tl.float64))
    return lse, total_of_scores


@triton.jit(do_not_specialize=["n", "n_columns", "offset"])
def _finish(
    row_states,  # [2 or 3, splits, n]
    column_states,  # [2 or 3, groups, n_columns]
    positive_scores,  # [n]
    scale,  # 1 / temperature, as SCALE says
    losses,  # [n], or None
    row_lse,  # [n], float64
    column_lse,  # [n_columns], float64
    n,
    n_columns,
    splits,
    groups,
    offset,
    smoothing,
    SCALE: tl.constexpr,
    TWO_WAYS: tl.constexpr,
    SHIFTED: tl.constexpr,
    TOTALLED: tl.constexpr,
    PARTS: tl.constexpr,
    INDICES: tl.constexpr,
):
    """Log-sum-exps of rows and, both ways, of columns; losses too, unless they are None, or positives in nats.

    SHIFTED says that the positive of a row is not the column of its number.
    """
    index = tl.program_id(0) * INDICES + tl.arange(0, INDICES)
    mask = index < n
    factor = load_scalar(scale, SCALE)
    positive = factor.to(tl.float64) * tl.load(positive_scores + index, mask=mask, other=0.0)
    lse, total = _merged(row_states, tl.cast(splits, tl.int32), n, index, factor, PARTS, INDICES, TOTALLED)
    tl.store(row_lse + index, lse, mask=mask)
    loss = lse - (1.0 - smoothing) * positive
    if TOTALLED:
        loss -= smoothing * factor / n_columns * total
    if TWO_WAYS:
        programs = tl.cast(groups, tl.int32)
        lse, total = _merged(column_states, programs, n_columns, index, factor, PARTS, INDICES, TOTALLED)
        tl.store(column_lse + index, lse, mask=index < n_columns)
        if SHIFTED and losses is not None:
            lse, total = _merged(column_states, programs, n_columns, index + offset, factor, PARTS, INDICES, TOTALLED)
        other = lse - (1.0 - smoothing) * positive
        if TOTALLED:
            other -= smoothing * factor / n * total
        loss = 0.5 * (loss + other)
    if losses is not None:
        tl.store(losses + index, loss.to(tl.float32), mask=mask)
    else:
        tl.store(positive_scores + index, positive.to(tl.float32), mask=mask)


def info_nce_flags(positive_in_denominator: bool, symmetric: bool, label_smoothing: float) -> int:
    """The flags of an objective, for `losses` and `losses_gradient`."""
    flags = 0 if positive_in_denominator else POSITIVE_EXCLUDED
    flags |= TWO_WAY if symmetric else 0
    return flags | (TOTALS if label_smoothing else 0)


def losses(score: Score, pairs: Pairs, flags: int, smoothing: float) -> tuple[Tensor, Tensor, Tensor]:
    """InfoNCE of each row [N], and log-sum-exps of rows [N] and columns ([N'], or [0] one way), float64."""
    states = reduce(score, LOG_SUM_EXP, pairs, flags)
    result = torch.empty(pairs.n, dtype=torch.float32, device=pairs.rows.device)
    return result, *_finished(states, pairs, flags, smoothing, result)


def log_sum_exps(score: Score, pairs: Pairs, flags: int) -> tuple[Tensor, Tensor, Tensor]:
    """Positives [N], float32 and zero where there are none, and log-sum-exps as `losses` gives them."""
    states = reduce(score, LOG_SUM_EXP, pairs, flags)
    return states.positives, *_finished(states, pairs, flags, 0.0, None)


def _finished(
    states: States, pairs: Pairs, flags: int, smoothing: float, losses: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Log-sum-exps of rows and columns; writes the losses, or without them positives times the scale."""
    rows, two_ways = pairs.rows, bool(flags & TWO_WAY)
    row_lse = torch.empty(pairs.n, dtype=torch.float64, device=rows.device)
    column_lse = torch.empty(pairs.count if two_ways else 0, dtype=torch.float64, device=rows.device)
    with torch.cuda.device_of(rows):
        _finish[(triton.cdiv(max(pairs.n, column_lse.numel()), _INDICES),)](
            row_states=states.rows,
            column_states=states.columns,
            positive_scores=states.positives,
            scale=pairs.scale.value,
            losses=losses,
            row_lse=row_lse,
            column_lse=column_lse,
            n=pairs.n,
            n_columns=pairs.count,
            splits=states.rows.shape[1],
            groups=states.columns.shape[1],
            offset=pairs.offset,
            smoothing=smoothing,
            SCALE=pairs.scale.kind,
            TWO_WAYS=two_ways,
            SHIFTED=pairs.offset != 0,
            TOTALLED=bool(flags & TOTALS),
            PARTS=_PARTS,
            INDICES=_INDICES,
            num_warps=4,
        )
    return row_lse, column_lse


def losses_gradient(score: Score, pairs: Pairs, flags: int, weights: Weights, wanted: Wanted) -> Gradients:
    """Gradients of `losses`; their `sums` hold that of the scale, divided by the weights' factor."""
    if flags & TWO_WAY and pairs.n != pairs.count:
        flags, weights = flags | APART, _apart(pairs, weights)
    return gradient(score, LOG_SUM_EXP, pairs, flags, weights, wanted)


def _apart(pairs: Pairs, weights: Weights) -> Weights:
    """Weights of two-way losses where some columns are no row's positive, by upstream gradients APART."""
    device = pairs.rows.device
    g = torch.ones(pairs.n, device=device) if weights.upstream is None else weights.upstream
    grad_columns = torch.zeros(pairs.count, dtype=torch.float32, device=device)
    grad_columns[pairs.offset : pairs.offset + pairs.n] = 0.5 * g
    return replace(weights, upstream=apart(0.5 * g, -(1.0 - weights.smoothing) * g, grad_columns))


def apart(grad_rows: Tensor, grad_positives: Tensor, grad_columns: Tensor | None) -> Tensor:
    """Stack upstream gradients of rows, positives and columns, as reductions take them where they are APART."""
    count = max(grad_rows.numel(), 0 if grad_columns is None else grad_columns.numel())
    planes = torch.zeros(3, count, dtype=torch.float32, device=grad_rows.device)
    for plane, given in zip(planes, (grad_rows, grad_positives, grad_columns), strict=True):
        if given is not None:
            plane[: given.numel()] = given
    return planes


def log_sum_exps_gradient(
    score: Score,
    pairs: Pairs,
    flags: int,
    wanted: Wanted,
    *,
    grad_positives: Tensor,
    grad_rows: Tensor,
    grad_columns: Tensor | None,
    row_lse: Tensor,
    column_lse: Tensor | None,
) -> Gradients:
    """Gradients of `log_sum_exps`."""
    weights = Weights(apart(grad_rows, grad_positives, grad_columns), 1.0, row_lse, column_lse)
    return gradient(score, LOG_SUM_EXP, pairs, flags | APART, weights, wanted)


class Embeddings:
    """Pairs of two embeddings under a named score, and the embeddings' gradients from those of the pairs."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        temperature: Tensor | None,
        score: str,
        offset: int,
        bias: Scalar = ZERO,
        normalize: bool = False,
    ) -> None:
        self._temperature, self.score = temperature, scores.named(score)
        self._leaves: tuple[Tensor, ...] = ()
        if normalize:
            # A pass over N d numbers, beside the sweep's N N' d.
            with torch.enable_grad():
                self._leaves = tuple(at_least_float32(x.detach()).requires_grad_() for x in (query, key))
                query, key = (unit(x) for x in self._leaves)
        self._query, self._key = query, key
        rows, columns = rows_in_place(query), rows_in_place(key)
        row_norms = column_norms = None
        if self.score.squared_norms:
            # float16 holds neither a large score nor the gradient of a norm.
            dtype = operand_dtype(query.dtype)
            rows, columns = rows.to(dtype), columns.to(dtype)
            row_norms, column_norms = _squared_norms(rows), _squared_norms(columns)[None]
        scale = ONE if temperature is None else Scalar.of(temperature.detach(), inverted=True)
        self.pairs = Pairs(
            rows, columns[None], scale, bias, offset=offset, row_statistic=row_norms, column_statistics=column_norms
        )

    def wanted(self, needed: Sequence[bool], dtype: torch.dtype | None = None) -> Wanted:
        """What the engine must form for the gradients of query, key and temperature."""
        statistics = self.score.squared_norms
        return Wanted(needed[0], needed[1], statistics=statistics, sums=int(any(needed[2:])), dtype=dtype)

    def results(self, gradients: Gradients, factor: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of query, key and temperature; those that were not needed are empty."""
        assert self._temperature is not None
        return *self.embedding_results(gradients, dtype), temperature_gradient(gradients, self._temperature, factor)

    def embedding_results(self, gradients: Gradients, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The gradients of query and key; one that was not needed is empty."""
        query, key = self._query, self._key
        grad_query = query.new_empty(query.shape, dtype=dtype)
        if gradients.rows is not None:
            grad_query = _with_norms(gradients.rows, self.pairs.rows, gradients.row_statistic)
            grad_query = self._through_norms(0, query, grad_query).to(dtype)
        grad_key = key.new_empty(key.shape, dtype=dtype)
        if gradients.operands is not None:
            grad_norms = None if gradients.column_statistics is None else gradients.column_statistics[0]
            grad_key = _with_norms(gradients.operands[0], self.pairs.operands[0], grad_norms)
            grad_key = self._through_norms(1, key, grad_key).to(dtype)
        return grad_query, grad_key

    def _through_norms(self, which: int, embeddings: Tensor, gradient: Tensor) -> Tensor:
        """The gradient of embeddings before they were made unit, where they were."""
        if not self._leaves:
            return gradient
        return torch.autograd.grad(embeddings, self._leaves[which], gradient.to(embeddings.dtype))[0]


def _squared_norms(x: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(x, dim=1, dtype=torch.float64)
    return norms.square().float()


def _with_norms(gradient: Tensor, x: Tensor, grad_squared_norms: Tensor | None) -> Tensor:
    """Add to a gradient the part that comes through the squared norms of the rows."""
    return gradient if grad_squared_norms is None else gradient + x * (2.0 * grad_squared_norms)[:, None]


def temperature_gradient(gradients: Gradients, temperature: Tensor, factor: float) -> Tensor:
    """dL/dtau = -dL/d(1 / tau) / tau^2, of sums without the weights' factor; empty where it was not needed."""
    if gradients.sums is None:
        return temperature.new_empty(())
    return (gradients.sums[0] * -factor / temperature.detach().double().square()).to(temperature.dtype)


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
    flags = info_nce_flags(positive_in_denominator, symmetric, label_smoothing)
    embeddings = Embeddings(query, key, temperature, score, offset, normalize=normalize)
    return losses(embeddings.score, embeddings.pairs, flags, label_smoothing)


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
    flags = info_nce_flags(positive_in_denominator, symmetric, label_smoothing)
    embeddings = Embeddings(query, key, temperature, score, offset, normalize=normalize)
    weights = Weights(upstream.contiguous(), 1.0, row_lse, column_lse, label_smoothing)
    gradients = losses_gradient(embeddings.score, embeddings.pairs, flags, weights, embeddings.wanted(needed))
    return embeddings.results(gradients, 1.0, query.dtype)


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The mean of InfoNCE and its gradients, those of query and key in float32, still to be scaled."""
    flags = info_nce_flags(positive_in_denominator, symmetric, label_smoothing)
    embeddings = Embeddings(query, key, temperature, score, offset, normalize=normalize)
    each, row_lse, column_lse = losses(embeddings.score, embeddings.pairs, flags, label_smoothing)
    factor = 1.0 / embeddings.pairs.n
    weights = Weights(None, factor, row_lse, column_lse, label_smoothing)
    wanted = embeddings.wanted(needed, torch.float32)
    gradients = losses_gradient(embeddings.score, embeddings.pairs, flags, weights, wanted)
    return each.mean(), *embeddings.results(gradients, factor, torch.float32)


def partial_lse(
    rows: Tensor, columns: Tensor, temperature: Tensor, score: str, offset: int, positive_in_denominator: bool
) -> list[Tensor]:
    """Positives [N], log-sum-exps of rows [N] and of columns [N'], and both once more in float64."""
    flags = info_nce_flags(positive_in_denominator, True, 0.0)
    embeddings = Embeddings(rows, columns, temperature, score, offset)
    positives, *wide = log_sum_exps(embeddings.score, embeddings.pairs, flags)
    return [positives, *(lse.float() for lse in wide), *wide]


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
    """Gradients of rows, columns and temperature, from those of the positives and of both log-sum-exps."""
    embeddings = Embeddings(rows, columns, temperature, score, offset)
    gradients = log_sum_exps_gradient(
        embeddings.score,
        embeddings.pairs,
        info_nce_flags(positive_in_denominator, True, 0.0),
        embeddings.wanted(needed),
        grad_positives=grad_positives,
        grad_rows=grad_row_lse,
        grad_columns=grad_column_lse,
        row_lse=row_lse,
        column_lse=column_lse,
    )
    return embeddings.results(gradients, 1.0, rows.dtype)


def cosines(query: Tensor, contexts: Sequence[Tensor], ridge: float, scale: Scalar) -> Pairs:
    """Pairs of queries [N, d] and K contexts [N', d] each, scored by the query's cosine with its ridge projection."""
    dtype = operand_dtype(query.dtype)
    bases, grams = whitened_bases(contexts, ridge, dtype)
    norms = torch.linalg.vector_norm(query.detach(), dim=1, dtype=torch.float64)
    inverse_norms = torch.where(norms == 0.0, 0.0, norms.reciprocal()).float()
    rows = rows_in_place(query.to(dtype))
    return Pairs(rows, bases, scale, row_statistic=inverse_norms, column_statistics=grams)


def cosines_backward(
    gradients: Gradients,
    pairs: Pairs,
    contexts: Sequence[Tensor],
    ridge: float,
    into_query: Tensor,
    into_contexts: Sequence[Tensor],
) -> None:
    """Add the gradients of `cosines` to those of the query and the contexts, float32."""
    assert gradients.rows is not None
    assert gradients.operands is not None
    assert gradients.row_statistic is not None
    assert pairs.row_statistic is not None
    # With r = 1 / |q|, dr/dq = -r^3 q.
    along = -gradients.row_statistic.double() * pairs.row_statistic.double() ** 3
    into_query.add_(gradients.rows).add_(pairs.rows * along.float()[:, None])
    statistics = gradients.column_statistics
    whitened_bases_backward(gradients.operands, statistics, contexts, ridge, into_contexts)


def projection_score(candidates: Tensor, context: Tensor, ridge: float) -> Tensor:
    """cos(c, P_i c) of candidates [C, d] and contexts [Q, K, d]: [C, Q], float32."""
    return dense.scores(_RIDGE_PROJECTION, cosines(candidates, context.unbind(1), ridge, Scalar.of(1.0)))


def projection_score_backward(
    upstream: Tensor, candidates: Tensor, context: Tensor, needed: Sequence[bool], ridge: float
) -> tuple[Tensor, Tensor]:
    """Gradients of `projection_score` for an upstream gradient [C, Q]."""
    contexts = context.unbind(1)
    pairs = cosines(candidates, contexts, ridge, Scalar.of(1.0))
    weights, wanted = Weights(upstream.contiguous()), Wanted(statistics=True, dtype=torch.float32)
    gradients = gradient(_RIDGE_PROJECTION, _GIVEN, pairs, 0, weights, wanted)
    count, k, d = context.shape
    grad_candidates = torch.zeros(candidates.shape, dtype=torch.float32, device=candidates.device)
    grad_contexts = torch.zeros(k, count, d, dtype=torch.float32, device=context.device)
    cosines_backward(gradients, pairs, contexts, ridge, grad_candidates, grad_contexts.unbind())
    return grad_candidates.to(candidates.dtype), grad_contexts.transpose(0, 1).to(context.dtype)
