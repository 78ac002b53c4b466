"""Attention among the few tokens of a sample, as fusions of modalities have them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mibfast import _backend, _check
from mibfast.kernels.fusion import reference
from mibfast.kernels.launch_configuration import LARGEST_TOKENS, tokens_tile
from mibfast.ops._boundary import accumulation_dtype, first_order, kernels, operation

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
    return _TokenAttention.apply(chosen, *tensors)  # type: ignore[no-any-return,no-untyped-call]


def _offers(query: Tensor) -> dict[str, str | None]:
    m, k = query.shape[1:]
    dtype = accumulation_dtype(query.dtype)
    tile, most = tokens_tile(m, k, dtype), LARGEST_TOKENS // dtype.itemsize
    fits = tile.rows * tile.columns <= most
    limit = f"M = {m} and k = {k}, and its kernels take M k <= {most} of {dtype}, both rounded up to powers of two"
    return {"cpu": None, "triton": None if fits else limit}


@operation(fake=lambda query, key, value, backend: query.new_empty(query.shape))
def attention(query: Tensor, key: Tensor, value: Tensor, backend: str) -> Tensor:
    return kernels("fusion", backend).attend(query, key, value)  # type: ignore[no-any-return]


@operation(fake=lambda upstream, *tensors: [x.new_empty(x.shape) for x in tensors[:3]])
def attention_backward(upstream: Tensor, query: Tensor, key: Tensor, value: Tensor, backend: str) -> list[Tensor]:
    return kernels("fusion", backend).attend_backward(upstream, query, key, value)  # type: ignore[no-any-return]


class _TokenAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backend: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.backend = backend
        return attention(query, key, value, backend)  # type: ignore[no-any-return]

    @staticmethod
    @first_order(_NAME)
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return None, *attention_backward(upstream, *ctx.saved_tensors, ctx.backend)
