"""What kernels call of scores and reductions: their functions of a row, by code.

A kernel is compiled for the code of a score and of a reduction, which are numbers, since the cache on disk would not
find a kernel again by the functions that it is made of. Here the number becomes the function while Numba compiles.
"""

from __future__ import annotations

from typing import Any

from numba.core import types
from numba.extending import overload

from mibfast.kernels.compilation import INLINED
from mibfast.kernels.halves import compiled
from mibfast.kernels.pairwise import reductions, scores


def score_row(score: int, tiles: Any, squared_norm: Any, statistics: Any, scratch: Any) -> Any:
    """Scores of a row."""
    raise NotImplementedError("called from kernels only")


@overload(score_row, jit_options=INLINED, prefer_literal=True, strict=False)  # type: ignore[untyped-decorator]
def _score_row(score: Any, tiles: Any, squared_norm: Any, statistics: Any, scratch: Any) -> Any:
    if not isinstance(score, types.IntegerLiteral):
        return None  # the engine gives a constant; Numba also tries without
    function = compiled(scores.NUMBERED[score.literal_value].row)

    def implementation(score: Any, tiles: Any, squared_norm: Any, statistics: Any, scratch: Any) -> Any:
        return function(tiles, squared_norm, statistics, scratch)

    return implementation


def grad_score_row(
    score: int,
    tiles: Any,
    squared_norm: Any,
    statistics: Any,
    weights: Any,
    factor: Any,
    grad_statistics: Any,
    scratch: Any,
) -> Any:
    """Gradients of a row's tiles and of statistics; returns that of its squared norm."""
    raise NotImplementedError("called from kernels only")


@overload(grad_score_row, jit_options=INLINED, prefer_literal=True, strict=False)  # type: ignore[untyped-decorator]
def _grad_score_row(
    score: Any,
    tiles: Any,
    squared_norm: Any,
    statistics: Any,
    weights: Any,
    factor: Any,
    grad_statistics: Any,
    scratch: Any,
) -> Any:
    if not isinstance(score, types.IntegerLiteral):
        return None
    function = compiled(scores.NUMBERED[score.literal_value].grad_row)

    def implementation(
        score: Any,
        tiles: Any,
        squared_norm: Any,
        statistics: Any,
        weights: Any,
        factor: Any,
        grad_statistics: Any,
        scratch: Any,
    ) -> Any:
        return function(tiles, squared_norm, statistics, weights, factor, grad_statistics, scratch)

    return implementation


def add_row(
    reduction: int, scores: Any, row: Any, positive: Any, flags: Any, row_state: Any, column_state: Any, reference: Any
) -> Any:
    """Add a row of scores, and return its total."""
    raise NotImplementedError("called from kernels only")


@overload(add_row, jit_options=INLINED, prefer_literal=True, strict=False)  # type: ignore[untyped-decorator]
def _add_row(
    reduction: Any, scores: Any, row: Any, positive: Any, flags: Any, row_state: Any, column_state: Any, reference: Any
) -> Any:
    if not isinstance(reduction, types.IntegerLiteral):
        return None
    function = compiled(reductions.cpu_half(reduction.literal_value).add_row)

    def implementation(
        reduction: Any,
        scores: Any,
        row: Any,
        positive: Any,
        flags: Any,
        row_state: Any,
        column_state: Any,
        reference: Any,
    ) -> Any:
        return function(scores, row, positive, flags, row_state, column_state, reference)

    return implementation


def grad_added_row(
    reduction: int, scores: Any, positive: Any, flags: Any, total: Any, upstream: Any, label_smoothing: Any
) -> Any:
    """Turn an added row into dL/ds up to a factor, which is returned."""
    raise NotImplementedError("called from kernels only")


@overload(grad_added_row, jit_options=INLINED, prefer_literal=True, strict=False)  # type: ignore[untyped-decorator]
def _grad_added_row(
    reduction: Any, scores: Any, positive: Any, flags: Any, total: Any, upstream: Any, label_smoothing: Any
) -> Any:
    if not isinstance(reduction, types.IntegerLiteral):
        return None
    half = reductions.cpu_half(reduction.literal_value).grad_added_row
    if half is None:
        return None
    function = compiled(half)

    def implementation(
        reduction: Any, scores: Any, positive: Any, flags: Any, total: Any, upstream: Any, label_smoothing: Any
    ) -> Any:
        return function(scores, positive, flags, total, upstream, label_smoothing)

    return implementation


def grad_merged_row(
    reduction: int,
    scores: Any,
    row: Any,
    positive: Any,
    flags: Any,
    row_state: Any,
    column_weights: Any,
    upstream: Any,
    label_smoothing: Any,
) -> Any:
    """Turn an added row into dL/ds after the merge of columns, up to a factor, which is returned."""
    raise NotImplementedError("called from kernels only")


@overload(grad_merged_row, jit_options=INLINED, prefer_literal=True, strict=False)  # type: ignore[untyped-decorator]
def _grad_merged_row(
    reduction: Any,
    scores: Any,
    row: Any,
    positive: Any,
    flags: Any,
    row_state: Any,
    column_weights: Any,
    upstream: Any,
    label_smoothing: Any,
) -> Any:
    if not isinstance(reduction, types.IntegerLiteral):
        return None
    half = reductions.cpu_half(reduction.literal_value).grad_merged_row
    if half is None:
        return None
    function = compiled(half)

    def implementation(
        reduction: Any,
        scores: Any,
        row: Any,
        positive: Any,
        flags: Any,
        row_state: Any,
        column_weights: Any,
        upstream: Any,
        label_smoothing: Any,
    ) -> Any:
        return function(scores, row, positive, flags, row_state, column_weights, upstream, label_smoothing)

    return implementation


def grad_row(
    reduction: int, scores: Any, row: Any, positive: Any, flags: Any, row_weights: Any, column_weights: Any
) -> Any:
    """Turn a row of scores into dL/ds up to a factor, which is returned."""
    raise NotImplementedError("called from kernels only")


@overload(grad_row, jit_options=INLINED, prefer_literal=True, strict=False)  # type: ignore[untyped-decorator]
def _grad_row(
    reduction: Any, scores: Any, row: Any, positive: Any, flags: Any, row_weights: Any, column_weights: Any
) -> Any:
    if not isinstance(reduction, types.IntegerLiteral):
        return None
    half = reductions.cpu_half(reduction.literal_value).grad_row
    if half is None:
        return None
    function = compiled(half)

    def implementation(
        reduction: Any, scores: Any, row: Any, positive: Any, flags: Any, row_weights: Any, column_weights: Any
    ) -> Any:
        return function(scores, row, positive, flags, row_weights, column_weights)

    return implementation
