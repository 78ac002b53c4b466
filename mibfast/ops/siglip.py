"""SigLIP: the sigmoid loss of queries and keys."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mibfast import _backend, _check
from mibfast.kernels.pairwise import reference as pairwise
from mibfast.kernels.siglip import reference
from mibfast.ops._boundary import (
    accumulation_dtype,
    first_order,
    kernels,
    operation,
    pairwise_offers,
    reduced,
    scaled,
    temperature_tensor,
)

__all__ = ["siglip"]

_NAME = "siglip"


def siglip(
    query: Tensor,
    key: Tensor,
    scale: float | Tensor = 10.0,
    bias: float | Tensor = -10.0,
    *,
    reduction: str = "mean",
    offset: int = 0,
    backend: str | None = None,
) -> Tensor:
    r"""SigLIP's loss: for every pair, the binary cross-entropy of telling whether the key is the query's own.

    .. math:: \ell_i = -\sum_j \log \sigma\big(y_{ij} (t\, q_i \cdot k_j + b)\big)

    with :math:`y_{ij} = 1` where j = i + offset and -1 elsewhere, t the scale and b the bias. Zhai et al. (2023, arXiv
    2303.15343), Algorithm 1; the mean over queries is open_clip's `SigLipLoss`. Loss and gradient take one sweep over
    all pairs, and no N x N' matrix is stored. Queries and keys are taken as they are: normalise them for cosine
    similarities.

    Parameters
    ----------
    query : Tensor [N, d]
        float64, float32, bfloat16 or float16, any strides.
    key : Tensor [N', d]
        Of the same dtype, N' >= N + offset.
    scale, bias : float or 0-d Tensor
        Any finite numbers; a tensor may need a gradient. The paper starts at 10 and -10.
    reduction : {"mean", "none"}
        "mean" is over queries, of sums over keys; "none" gives [N].
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
    _check.choice(_NAME, "reduction", reduction, ("mean", "none"))
    query, key = _check.promoted([query, key])
    chosen = _backend.choose(_NAME, query.device, backend, pairwise_offers(query))
    if chosen == "reference":
        return reduced(reference.siglip(pairwise.inner_product(query, key), scale, bias, offset), reduction)
    inputs = (query, key, temperature_tensor(scale), temperature_tensor(bias))
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    if reduction == "mean" and wanted:
        return _MeanSigLIP.apply(chosen, *inputs, offset)  # type: ignore[no-any-return,no-untyped-call]
    losses = _SigLIP.apply(chosen, *inputs, offset)  # type: ignore[no-untyped-call]
    return reduced(losses, reduction)


def _fake_losses(
    query: Tensor, key: Tensor, scale: Tensor, bias: Tensor, offset: int, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    n = query.shape[0]
    return (
        query.new_empty(n, dtype=accumulation_dtype(query.dtype)),
        query.new_empty(n, dtype=torch.float64),
        query.new_empty(n, dtype=torch.float64),
    )


@operation(fake=_fake_losses)
def siglip_losses(
    query: Tensor, key: Tensor, scale: Tensor, bias: Tensor, offset: int, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return kernels("siglip", backend).siglip(query, key, scale, bias, offset)  # type: ignore[no-any-return]


@operation(fake=lambda upstream, query, key, *_: (query.new_empty(query.shape), key.new_empty(key.shape)))
def siglip_losses_backward(
    upstream: Tensor,
    query: Tensor,
    key: Tensor,
    scale: Tensor,
    bias: Tensor,
    needed: list[bool],
    offset: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    launcher = kernels("siglip", backend).siglip_backward
    return launcher(upstream, query, key, scale, bias, needed, offset)  # type: ignore[no-any-return]


def _fake_mean(
    query: Tensor, key: Tensor, scale: Tensor, bias: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(query.dtype)
    gradients = (query.new_empty(query.shape, dtype=dtype), key.new_empty(key.shape, dtype=dtype))
    return query.new_empty((), dtype=dtype), *gradients, scale.new_empty(()), bias.new_empty(())


@operation(fake=_fake_mean)
def siglip_mean(
    query: Tensor, key: Tensor, scale: Tensor, bias: Tensor, needed: list[bool], offset: int, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    launcher = kernels("siglip", backend).siglip_mean
    return launcher(query, key, scale, bias, needed, offset)  # type: ignore[no-any-return]


class _SigLIP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backend: str, query: Tensor, key: Tensor, scale: Tensor, bias: Tensor, offset: int) -> Tensor:
        losses, by_scale, by_bias = siglip_losses(query, key, scale, bias, offset, backend)
        ctx.save_for_backward(query, key, scale, bias, by_scale, by_bias)
        ctx.backend, ctx.offset = backend, offset
        return losses  # type: ignore[no-any-return]

    @staticmethod
    @first_order(_NAME)
    def backward(ctx: Any, upstream: Tensor) -> Any:
        query, key, scale, bias, by_scale, by_bias = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[1:5])
        of_embeddings: tuple[Any, ...] = (None, None)
        if any(wanted[:2]):
            gradients = siglip_losses_backward(upstream, query, key, scale, bias, wanted[:2], ctx.offset, ctx.backend)
            of_embeddings = tuple(g if need else None for g, need in zip(gradients, wanted[:2], strict=True))
        of_numbers = (
            torch.dot(upstream.double(), each).to(x.dtype) if need else None
            for x, each, need in zip((scale, bias), (by_scale, by_bias), wanted[2:], strict=True)
        )
        return None, *of_embeddings, *of_numbers, None


class _MeanSigLIP(torch.autograd.Function):
    """The mean: the gradient is formed with the loss, so that the backward has only to scale."""

    @staticmethod
    def forward(ctx: Any, backend: str, query: Tensor, key: Tensor, scale: Tensor, bias: Tensor, offset: int) -> Tensor:
        needed = list(ctx.needs_input_grad[1:3])
        loss, *gradients = siglip_mean(query, key, scale, bias, needed, offset, backend)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = query.dtype, key.dtype, scale.dtype, bias.dtype
        return loss  # type: ignore[no-any-return]

    @staticmethod
    @first_order(_NAME)
    def backward(ctx: Any, upstream: Tensor) -> Any:
        gradients = zip(ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad[1:5], strict=True)
        return None, *(scaled(g, upstream, dtype) if need else None for g, dtype, need in gradients), None
