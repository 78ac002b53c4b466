"""What reductions do to a row of scores on the CPU: its positive, its maximum, clamps, and maxima of columns."""

from __future__ import annotations

from typing import Any

import numpy as np

from mibfast.kernels.halves import cpu, cpu_maximum, vm


@cpu
def is_in_row(scores: Any, positive: Any) -> Any:
    return 0 <= positive < scores.size


@cpu
def score_of_positive(scores: Any, positive: Any) -> Any:
    """The positive's score, 0 where the positive is in no column of the row."""
    return scores[positive] if is_in_row(scores, positive) else scores.dtype.type(0.0)


@cpu
def set_positive(scores: Any, positive: Any, value: Any) -> None:
    """Put a value in place of the positive's, where the positive is in a column of the row."""
    if is_in_row(scores, positive):
        scores[positive] = value


@cpu_maximum
def maximum_of(scores: Any) -> Any:
    largest = scores.dtype.type(-np.inf)
    for j in range(scores.size):
        largest = vm.maximum(largest, scores[j])
    return largest


@cpu
def clamp(scores: Any, bound: Any) -> None:
    """Bring scores into [-bound, bound]; NaN fails both comparisons and stays."""
    for j in range(scores.size):
        s = scores[j]
        s = -bound if s < -bound else s
        scores[j] = bound if s > bound else s


@cpu_maximum
def raise_maxima(scores: Any, maxima: Any) -> None:
    """maxima = max(maxima, scores)."""
    for j in range(scores.size):
        maxima[j] = vm.maximum(maxima[j], scores[j])


@cpu
def add_to_sums(scores: Any, maxima: Any, sums: Any) -> None:
    """sums += vm.exp_weight(scores - maxima), and nothing for a score of -inf."""
    zero, lowest = scores.dtype.type(0.0), scores.dtype.type(-np.inf)
    for j in range(scores.size):
        s = scores[j]
        sums[j] += zero if s == lowest else vm.exp_weight(s - maxima[j])
