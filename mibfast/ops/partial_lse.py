"""Log-sum-exps of a block of scores: what a loss over more than one block is made of."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mibfast import _backend, _check
from mibfast.kernels.pairwise import reference
from mibfast.kernels.pairwise.scores import OF_EMBEDDINGS
from mibfast.ops._boundary import (
    DifferentiableOperation,
    accumulation_dtype,
    inverse_temperature,
    pairwise_offers,
    temperature_tensor,
)

__all__ = ["partial_lse"]

_NAME = "partial_lse"


def partial_lse(
    rows: Tensor,
    columns: Tensor,
    temperature: float | Tensor = 1.0,
    *,
    score: str = "inner_product",
    offset: int | None = None,
    positive_in_denominator: bool = True,
    backend: str | None = None,
) -> tuple[Tensor | None, Tensor, Tensor]:
    r"""Positives and log-sum-exps of one block of scores, from which those of all blocks follow.

    .. math:: p_i = s_{i, i + \mathrm{offset}} / \tau, \qquad R_i = \log \sum_{j} e^{s_{ij} / \tau}, \qquad
       C_j = \log \sum_{i} e^{s_{ij} / \tau}

    Keys that are spread over processes, or kept in a memory bank, are blocks of columns of one matrix of scores:
    `torch.logsumexp` of the blocks' :math:`R` is the log-sum-exp of whole rows, and that of :math:`C` of whole columns
    where rows are cut too; the sum of the blocks' positives is the positive. Autograd then gives a pair the weight
    :math:`e^{s_{ij} / \tau - R_i}` with the merged :math:`R_i`, so gradients are those of the whole, the temperature's
    too. No N x N' matrix is stored.

    Parameters
    ----------
    rows : Tensor [N, d]
        float64, float32, bfloat16 or float16, any strides.
    columns : Tensor [N', d]
        Of the same dtype, any N'.
    temperature : float or 0-d Tensor
        :math:`\tau > 0`; a tensor may need a gradient, and is not read back: :math:`\tau \le 0` there gives NaN.
    score : {"inner_product", "squared_distance", "lorentz"}
        s, see :func:`info_nce`.
    offset : int, optional
        The positive of row i is column i + offset of this block, where there is one: an offset below zero or beyond
        N' - N is that of a block that holds the positives of some rows or of none. None: no positive is in this block.
    positive_in_denominator : bool
        Whether positives take part in the log-sum-exps.
    backend : str, optional
        See :class:`mibfast.use_backend`.

    Returns
    -------
    positives : Tensor [N] or None
        Zero for rows whose positive is not in this block; None where `offset` is.
    row_lse : Tensor [N]
    column_lse : Tensor [N']
        In nats; float64 for float64 inputs, else float32. A sum of nothing has the logarithm -inf.

    Raises
    ------
    TypeError, ValueError
        For shapes that do not match, unequal dtypes or devices, an unknown score, an offset that is no int, or a number
        for the temperature that is not positive.

    Examples
    --------
    >>> import torch
    >>> from mibfast import functional as F
    >>> query, key = torch.eye(3), torch.cat([torch.eye(3), torch.ones(2, 3)])
    >>> positives, here, _ = F.partial_lse(query, key[:3], offset=0)
    >>> _, bank, _ = F.partial_lse(query, key[3:])
    >>> (torch.logaddexp(here, bank) - positives).mean(), F.info_nce(query, key, temperature=1.0)
    (tensor(1.3180), tensor(1.3180))
    """
    _check.tensor(_NAME, "rows", rows, "N d")
    _check.tensor(_NAME, "columns", columns, "N' d")
    _check.alike(_NAME, rows=rows, columns=columns)
    _check.same_dimension(_NAME, rows=rows, columns=columns)
    temperature = _check.temperature(_NAME, temperature, rows.device)
    _check.choice(_NAME, "score", score, OF_EMBEDDINGS)
    _check.boolean(_NAME, "positive_in_denominator", positive_in_denominator)
    place = _check.offset_of_block(_NAME, offset, rows, columns)
    rows, columns = _check.promoted([rows, columns])
    chosen = _backend.choose(_NAME, rows.device, backend, pairwise_offers(rows))
    if chosen == "reference":
        scores = reference.scores(score, rows, columns) * inverse_temperature(temperature)
        positives, row_lse, column_lse = reference.partial_lse(scores, place, positive_in_denominator)
    else:
        operands = (rows, columns, temperature_tensor(temperature))
        positives, row_lse, column_lse = _partial(chosen, operands, _Options(score, place, positive_in_denominator))
    return None if offset is None else positives, row_lse, column_lse


class _Options(NamedTuple):
    score: str
    offset: int
    positive_in_denominator: bool


def _results(rows: Tensor, columns: Tensor, *_: Any) -> list[Tensor]:
    """Positives, the log-sum-exps of rows and of columns, and these two in float64."""
    (n, n_columns), dtype = (rows.shape[0], columns.shape[0]), accumulation_dtype(rows.dtype)
    sizes = ((n, dtype), (n, dtype), (n_columns, dtype), (n, torch.float64), (n_columns, torch.float64))
    return [rows.new_empty(size, dtype=kind) for size, kind in sizes]


_partial = DifferentiableOperation(_NAME, "pairwise", "rows columns temperature", _results, options=_Options, outputs=3)
