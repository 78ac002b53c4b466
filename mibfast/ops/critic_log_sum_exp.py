"""Log-sum-exps of a critic's scores of all pairs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mibfast import _backend, _check
from mibfast.kernels.critic import reference
from mibfast.ops import _critic
from mibfast.ops._boundary import DifferentiableOperation, accumulation_dtype

__all__ = ["critic_log_sum_exp"]

_NAME = "critic_log_sum_exp"


def critic_log_sum_exp(
    x: Tensor,
    y: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    hidden: tuple[Tensor, Tensor] | None = None,
    *,
    score: str = "inner_product",
    positive: bool = False,
    clip: float | None = None,
    columns: bool = False,
    offset: int = 0,
    backend: str | None = None,
) -> tuple[Tensor, ...]:
    r"""Scores of positive pairs, and log-sum-exps of those of all pairs: what InfoNCE, NWJ, DV and SMILE are made of.

    .. math:: p_i = s_{i, i + \mathrm{offset}}, \qquad
       R_i = \log \sum_{j} e^{\operatorname{clamp}(s_{ij}, -t, t)}, \qquad
       C_j = \log \sum_{i} e^{\operatorname{clamp}(s_{ij}, -t, t)}

    over all pairs, or over all but the positives (`positive=False`). The score is one of two embeddings, as in
    :func:`info_nce`, such as the inner product :math:`s_{ij} = x_i \cdot y_j` of separable and bilinear critics; or
    additive, :math:`s_{ij} = w \cdot \operatorname{relu}(x_i + y_j) + b`, that of a concatenated critic whose first
    layer has been split by linearity, or :math:`w \cdot \operatorname{relu}(W \operatorname{relu}(x_i + y_j) + c) + b`
    of one with two hidden layers. Poole et al. (2019, arXiv 1905.06922), Eq. 7-10; the clamp: Song and Ermon (2020,
    arXiv 1910.06222), Eq. 7. Nothing of size N x N' is stored, nor N x N' x h.

    Parameters
    ----------
    x : Tensor [N, d], or [N, h] where additive
        float64, float32, bfloat16 or float16, any strides.
    y : Tensor [N', d] or [N', h]
        Of the same dtype as all tensors here, N' >= N + offset.
    weight : Tensor [h], or [g] with `hidden`
        w, of additive scores alone.
    bias : 0-d Tensor, optional
        b.
    hidden : tuple of Tensor [g, h] and Tensor [g], optional
        W and c.
    score : {"inner_product", "squared_distance", "lorentz", "additive"}
    positive : bool
        Whether positive pairs take part in the log-sum-exps.
    clip : float, optional
        t > 0: a score beyond it has no gradient. Positives are not clamped.
    columns : bool
        Give C too.
    offset : int
        The positive of row i is column i + offset: a slice of a larger batch.
    backend : str, optional
        See :class:`mibfast.use_backend`.

    Returns
    -------
    tuple of Tensor
        p [N] and R [N], and C [N'] with `columns`, in nats; float64 for float64 inputs, else float32. A sum of nothing
        has the logarithm -inf.

    Raises
    ------
    TypeError, ValueError
        For shapes that do not match, unequal dtypes or devices, parameters that are missing or that the score does not
        have, a clip that is not positive, or an offset outside [0, N' - N].

    Examples
    --------
    >>> import torch
    >>> from mibfast import functional as F
    >>> positives, rows = F.critic_log_sum_exp(torch.eye(3), 2 * torch.eye(3), positive=True)
    >>> positives - rows
    tensor([-0.2395, -0.2395, -0.2395])
    """
    x, y, parameters = _critic.operands(_NAME, x, y, weight, bias, hidden, score)
    bound = _critic.bound(_NAME, clip)
    for argument, flag in (("positive", positive), ("columns", columns)):
        _check.boolean(_NAME, argument, flag)
    offset = _check.positives(_NAME, x, y, offset)
    chosen = _backend.choose(_NAME, x.device, backend, _critic.offers(x, parameters))
    if chosen == "reference":
        return reference.log_sum_exp(reference.scores(x, y, parameters, score), positive, bound, columns, offset)
    results = _log_sum_exps(chosen, (x, y, *parameters), _Options(score, positive, bound, columns, offset))
    return results if columns else results[:2]


class _Options(NamedTuple):
    score: str
    positive: bool
    clip: float
    columns: bool
    offset: int


def _results(
    x: Tensor, y: Tensor, parameters: list[Tensor], score: str, positive: bool, clip: float, columns: bool, *_: Any
) -> list[Tensor]:
    """Positives, the log-sum-exps of rows and of columns, and these two in float64."""
    n, n_columns, dtype = x.shape[0], y.shape[0] if columns else 0, accumulation_dtype(x.dtype)
    sizes = ((n, dtype), (n, dtype), (n_columns, dtype), (n, torch.float64), (n_columns, torch.float64))
    return [x.new_empty(size, dtype=kind) for size, kind in sizes]


_log_sum_exps = DifferentiableOperation(
    _NAME, "critic", _critic.OPERANDS, _results, options=_Options, launcher="log_sum_exp", outputs=3
)
