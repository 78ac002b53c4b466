"""InfoNCE of queries and keys."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mibfast import _backend, _check
from mibfast._precision import at_least_float32, unit
from mibfast.kernels.pairwise import reference
from mibfast.kernels.pairwise.scores import OF_EMBEDDINGS
from mibfast.ops._boundary import (
    StreamedLoss,
    accumulation_dtype,
    inverse_temperature,
    pairwise_offers,
    reduced,
    temperature_tensor,
)

__all__ = ["info_nce"]

_NAME = "info_nce"
# Names of scores, which the loss takes too.
SCORES = OF_EMBEDDINGS


def info_nce(
    query: Tensor,
    key: Tensor,
    temperature: float | Tensor = 0.07,
    *,
    score: str = "inner_product",
    normalize: bool = False,
    positive_in_denominator: bool = True,
    symmetric: bool = False,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    offset: int = 0,
    backend: str | None = None,
) -> Tensor:
    r"""InfoNCE: the cross-entropy of picking each query's own key out of all keys.

    .. math:: \ell_i = \log \sum_{j} e^{s_{ij} / \tau} - s_{i, i + \mathrm{offset}} / \tau, \qquad
        s_{ij} = q_i \cdot k_j

    where j runs over all keys, or over all but the positive (`positive_in_denominator=False`). van den Oord et al.
    (2018), Eq. 4; symmetric: CLIP (Radford et al. 2021), half the sum of both directions; with the positive left out:
    OVA-IB (arXiv 2605.29900), Eq. 1-3. The score s may be another, see `score`. No N x N' matrix is stored. Queries and
    keys are taken as they are; `normalize=True` divides them by their norms first, for cosine similarities.

    Parameters
    ----------
    query : Tensor [N, d]
        float64, float32, bfloat16 or float16, any strides.
    key : Tensor [N', d]
        Of the same dtype, N' >= N + offset.
    temperature : float or 0-d Tensor
        :math:`\tau > 0`; a tensor may need a gradient, and is not read back: :math:`\tau \le 0` there gives NaN.
    score : {"inner_product", "squared_distance", "lorentz"}
        :math:`q \cdot k`; :math:`-|q - k|^2 / 2`; or minus the hyperbolic distance of MERU (arXiv 2304.09172), of
        curvature -1: :math:`-\operatorname{arcosh}(t_q t_k - q \cdot k)` with :math:`t_x = \sqrt{1 + |x|^2}`, q and
        k being the space parts of points of the hyperboloid. At curvature -c give :math:`\sqrt c\, q`,
        :math:`\sqrt c\, k` and the temperature :math:`\sqrt c\, \tau`.
    normalize : bool
        L2-normalise queries and keys first, in float32 at least; zeros stay zero.
    positive_in_denominator : bool
    symmetric : bool
        The other direction picks the query of key i + offset out of all N queries.
    label_smoothing : float
        In [0, 1]: as in `torch.nn.functional.cross_entropy`; 0 where the positive is left out.
    reduction : {"mean", "sum", "none"}
        "none" gives [N].
    offset : int
        The positive of query i is key i + offset: a slice of a larger batch.
    backend : str, optional
        See :class:`mibfast.use_backend`.

    Returns
    -------
    Tensor
        In nats; float64 for float64 inputs, else float32.

    Raises
    ------
    TypeError, ValueError
        For shapes that do not match, unequal dtypes or devices, an unknown score, a number for the temperature that is
        not positive, an offset outside [0, N' - N], or a single key (symmetric: or query) with the positive left out.

    Examples
    --------
    >>> import torch
    >>> from mibfast import functional as F
    >>> F.info_nce(torch.eye(3), torch.eye(3), temperature=1.0)
    tensor(0.5514)
    """
    _check.tensor(_NAME, "query", query, "N d")
    _check.tensor(_NAME, "key", key, "N' d")
    _check.alike(_NAME, query=query, key=key)
    _check.same_dimension(_NAME, query=query, key=key)
    temperature = _check.temperature(_NAME, temperature, query.device)
    _check.choice(_NAME, "score", score, SCORES)
    _check.boolean(_NAME, "normalize", normalize)
    _check.boolean(_NAME, "positive_in_denominator", positive_in_denominator)
    _check.boolean(_NAME, "symmetric", symmetric)
    offset = _check.positives(_NAME, query, key, offset, not positive_in_denominator, symmetric)
    smoothing = _check.smoothing(_NAME, label_smoothing, positive_in_denominator)
    _check.reduction(_NAME, reduction)
    query, key = _check.promoted([query, key])
    chosen = _backend.choose(_NAME, query.device, backend, pairwise_offers(query))
    if chosen == "reference":
        if normalize:
            query, key = unit(at_least_float32(query)), unit(at_least_float32(key))
        scores = reference.scores(score, query, key) * inverse_temperature(temperature)
        losses = reference.info_nce(
            scores,
            offset,
            positive_in_denominator=positive_in_denominator,
            symmetric=symmetric,
            label_smoothing=smoothing,
        )
        return reduced(losses, reduction)
    options = _Options(score, normalize, offset, positive_in_denominator, symmetric, smoothing)
    return _loss(chosen, (query, key, temperature_tensor(temperature)), options, reduction)


class _Options(NamedTuple):
    score: str
    normalize: bool
    offset: int
    positive_in_denominator: bool
    symmetric: bool
    label_smoothing: float


def _results(
    query: Tensor,
    key: Tensor,
    temperature: Tensor,
    score: str,
    normalize: bool,
    offset: int,
    positive_in_denominator: bool,
    symmetric: bool,
    label_smoothing: float,
    backend: str,
) -> list[Tensor]:
    """Losses [N], the log-sum-exps of rows [N], and with `symmetric` those of columns [N']."""
    n, n_keys = query.shape[0], key.shape[0]
    return [
        query.new_empty(n, dtype=accumulation_dtype(query.dtype)),
        query.new_empty(n, dtype=torch.float64),
        query.new_empty(n_keys if symmetric else 0, dtype=torch.float64),
    ]


_loss = StreamedLoss(_NAME, "pairwise", "query key temperature", _results, options=_Options)
