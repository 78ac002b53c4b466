"""SigLIP: the sigmoid loss of queries and keys."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mibfast import _backend, _check
from mibfast._precision import at_least_float32, unit
from mibfast.kernels.pairwise import reference as pairwise
from mibfast.kernels.siglip import reference
from mibfast.ops._boundary import StreamedLoss, accumulation_dtype, pairwise_offers, reduced, temperature_tensor

__all__ = ["siglip"]

_NAME = "siglip"


def siglip(
    query: Tensor,
    key: Tensor,
    scale: float | Tensor = 10.0,
    bias: float | Tensor = -10.0,
    *,
    normalize: bool = False,
    reduction: str = "mean",
    offset: int = 0,
    backend: str | None = None,
) -> Tensor:
    r"""SigLIP's loss: for every pair, the binary cross-entropy of telling whether the key is the query's own.

    .. math:: \ell_i = -\sum_j \log \sigma\big(y_{ij} (t\, q_i \cdot k_j + b)\big)

    with :math:`y_{ij} = 1` where j = i + offset and -1 elsewhere, t the scale and b the bias. Zhai et al. (2023, arXiv
    2303.15343), Algorithm 1; the mean over queries is open_clip's `SigLipLoss`. Loss and gradient take one sweep over
    all pairs, and no N x N' matrix is stored. Queries and keys are taken as they are; `normalize=True` divides them by
    their norms first, for cosine similarities.

    Parameters
    ----------
    query : Tensor [N, d]
        float64, float32, bfloat16 or float16, any strides.
    key : Tensor [N', d]
        Of the same dtype, N' >= N + offset.
    scale, bias : float or 0-d Tensor
        Any finite numbers; a tensor may need a gradient. The paper starts at 10 and -10.
    normalize : bool
        L2-normalise queries and keys first, in float32 at least; zeros stay zero.
    reduction : {"mean", "sum", "none"}
        "mean" and "sum" are over queries, of sums over keys; "none" gives [N].
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
        For shapes that do not match, unequal dtypes or devices, a number for scale or bias that is not finite, or an
        offset outside [0, N' - N].

    Examples
    --------
    >>> import torch
    >>> from mibfast import functional as F
    >>> F.siglip(torch.eye(3), torch.eye(3), scale=2.0, bias=-1.0)
    tensor(0.9398)
    """
    _check.tensor(_NAME, "query", query, "N d")
    _check.tensor(_NAME, "key", key, "N' d")
    _check.alike(_NAME, query=query, key=key)
    _check.same_dimension(_NAME, query=query, key=key)
    scale = _check.scalar(_NAME, "scale", scale, query.device)
    bias = _check.scalar(_NAME, "bias", bias, query.device)
    offset = _check.positives(_NAME, query, key, offset, excluded=False, symmetric=False)
    _check.boolean(_NAME, "normalize", normalize)
    _check.reduction(_NAME, reduction)
    query, key = _check.promoted([query, key])
    chosen = _backend.choose(_NAME, query.device, backend, pairwise_offers(query))
    if chosen == "reference":
        if normalize:
            query, key = unit(at_least_float32(query)), unit(at_least_float32(key))
        return reduced(reference.siglip(pairwise.inner_product(query, key), scale, bias, offset), reduction)
    operands = (query, key, temperature_tensor(scale), temperature_tensor(bias))
    return _loss(chosen, operands, _Options(normalize, offset), reduction)


class _Options(NamedTuple):
    normalize: bool
    offset: int


def _results(query: Tensor, *_: Any) -> list[Tensor]:
    """Losses, and their derivatives by scale and bias: [N] each."""
    dtypes = (accumulation_dtype(query.dtype), torch.float64, torch.float64)
    return [query.new_empty(query.shape[0], dtype=dtype) for dtype in dtypes]


_loss = StreamedLoss(_NAME, "siglip", "query key scale bias", _results, options=_Options)
