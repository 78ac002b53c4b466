"""Attention among the few tokens of a sample, as fusions of modalities have them."""

from __future__ import annotations

import torch
from torch import Tensor

from mibfast import _backend, _check
from mibfast.kernels.fusion import reference
from mibfast.kernels.launch_configuration import LARGEST_TOKENS, tokens_tile
from mibfast.ops._boundary import DifferentiableOperation, accumulation_dtype

__all__ = ["token_attention"]

_NAME = "token_attention"


def token_attention(query: Tensor, key: Tensor, value: Tensor, *, backend: str | None = None) -> Tensor:
    r"""Single-head scaled dot-product attention among the M tokens of each sample, without a mask.

    .. math:: z_a = \sum_b \mathrm{softmax}_b\left( \frac{q_a \cdot k_b}{\sqrt{k}} \right) v_b

    For the M = 2 to 8 modalities of a fusion (OMIB, Eq. 7), where a sample's tokens lie in the first cache and all
    its M x M weights in registers: they are formed again for the gradients.

    Parameters
    ----------
    query, key, value : Tensor [N, M, k]
        Of one shape; float64, float32, bfloat16 or float16.
    backend : str, optional
        See :class:`mibfast.use_backend`.

    Returns
    -------
    Tensor [N, M, k]
        Of the input's dtype.

    Raises
    ------
    TypeError, ValueError
        For unequal shapes, dtypes or devices.

    Examples
    --------
    >>> import torch
    >>> from mibfast import functional as F
    >>> query, value = torch.zeros(1, 2, 1), torch.tensor([[[1.0], [2.0]]])
    >>> F.token_attention(query, query, value)
    tensor([[[1.5000],
             [1.5000]]])
    """
    given = {"query": query, "key": key, "value": value}
    for argument, x in given.items():
        _check.tensor(_NAME, argument, x, "N M k")
    _check.same_shape(_NAME, **given)
    _check.alike(_NAME, **given)
    tensors = _check.promoted([query, key, value])
    chosen = _backend.choose(_NAME, query.device, backend, _offers(query))
    if chosen == "reference":
        wide = [x.to(accumulation_dtype(x.dtype)) for x in tensors]
        with torch.autocast(query.device.type, enabled=False):
            return reference.token_attention(*wide).to(tensors[0].dtype)
    return _attention(chosen, tensors)[0]


def _offers(query: Tensor) -> dict[str, str | None]:
    if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return {"cpu": None, "triton": None}  # Sizes are tensors there; the operation refuses to be traced.
    m, k = query.shape[1:]
    dtype = accumulation_dtype(query.dtype)
    tile, most = tokens_tile(m, k, dtype), LARGEST_TOKENS // dtype.itemsize
    fits = tile.rows * tile.columns <= most
    limit = f"M = {m} and k = {k}, and its kernels take M k <= {most} of {dtype}, both rounded up to powers of two"
    return {"cpu": None, "triton": None if fits else limit}


def _results(query: Tensor, key: Tensor, value: Tensor, backend: str) -> list[Tensor]:
    return [query.new_empty(query.shape)]


_attention = DifferentiableOperation(_NAME, "fusion", "query key value", _results, launcher="attend")
