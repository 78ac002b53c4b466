"""InfoNCE of queries and keys."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mibfast import _backend, _check
from mibfast.kernels.pairwise import reference
from mibfast.ops._boundary import (
    accumulation_dtype,
    first_order,
    inverse_temperature,
    kernels,
    operation,
    pairwise_offers,
    reduced,
    scaled,
    temperature_tensor,
)

__all__ = ["info_nce"]

_NAME = "info_nce"


def info_nce(
    query: Tensor,
    key: Tensor,
    temperature: float | Tensor = 0.07,
    *,
    positive_in_denominator: bool = True,
    symmetric: bool = False,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    offset: int = 0,
    backend: str | None = None,
) -> Tensor:
    r"""InfoNCE: the cross-entropy of picking each query's own key out of all keys.

    .. math:: \ell_i = \log \sum_{j} e^{q_i \cdot k_j / \tau} - q_i \cdot k_{i + \mathrm{offset}} / \tau

    where j runs over all keys, or over all but the positive (`positive_in_denominator=False`). van den Oord et al.
    (2018), Eq. 4; symmetric: CLIP (Radford et al. 2021), half the sum of both directions; with the positive left out:
    OVA-IB (arXiv 2605.29900), Eq. 1-3. No N x N' matrix is stored. Queries and keys are taken as they are: normalise
    them for cosine similarities.

    Parameters
    ----------
    query : Tensor [N, d]
        float64, float32, bfloat16 or float16, any strides.
    key : Tensor [N', d]
        Of the same dtype, N' >= N + offset.
    temperature : float or 0-d Tensor
        :math:`\tau > 0`; a tensor may need a gradient, and is not read back: :math:`\tau \le 0` there gives NaN.
    positive_in_denominator : bool
    symmetric : bool
        Needs N' = N.
    label_smoothing : float
        In [0, 1]: as in `torch.nn.functional.cross_entropy`; 0 where the positive is left out.
    reduction : {"mean", "none"}
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
        For shapes that do not match, unequal dtypes or devices, a number for the temperature that is not positive, an
        offset outside [0, N' - N], or N' = 1 with the positive left out.

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
    for argument, flag in (("positive_in_denominator", positive_in_denominator), ("symmetric", symmetric)):
        _check.boolean(_NAME, argument, flag)
    offset = _check.positives(_NAME, query, key, offset, not positive_in_denominator, symmetric)
    smoothing = _check.smoothing(_NAME, label_smoothing, positive_in_denominator)
    _check.choice(_NAME, "reduction", reduction, ("mean", "none"))
    query, key = _check.promoted([query, key])
    chosen = _backend.choose(_NAME, query.device, backend, pairwise_offers(query))
    if chosen == "reference":
        scores = reference.inner_product(query, key) * inverse_temperature(temperature)
        losses = reference.info_nce(
            scores,
            offset,
            positive_in_denominator=positive_in_denominator,
            symmetric=symmetric,
            label_smoothing=smoothing,
        )
        return reduced(losses, reduction)
    objective = (offset, positive_in_denominator, symmetric, smoothing)
    tau = temperature_tensor(temperature)
    wanted = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or tau.requires_grad)
    if reduction == "mean" and wanted:
        return _MeanInfoNCE.apply(chosen, query, key, tau, objective)  # type: ignore[no-any-return,no-untyped-call]
    losses = _InfoNCE.apply(chosen, query, key, tau, objective)  # type: ignore[no-untyped-call]
    return reduced(losses, reduction)


def _fake_losses(
    query: Tensor,
    key: Tensor,
    temperature: Tensor,
    offset: int,
    positive_in_denominator: bool,
    symmetric: bool,
    label_smoothing: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    n, n_keys = query.shape[0], key.shape[0]
    return (
        query.new_empty(n, dtype=accumulation_dtype(query.dtype)),
        query.new_empty(n, dtype=torch.float64),
        query.new_empty(n_keys if symmetric else 0, dtype=torch.float64),
    )


@operation(fake=_fake_losses)
def info_nce_losses(
    query: Tensor,
    key: Tensor,
    temperature: Tensor,
    offset: int,
    positive_in_denominator: bool,
    symmetric: bool,
    label_smoothing: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    launcher = kernels("pairwise", backend).info_nce
    return launcher(  # type: ignore[no-any-return]
        query, key, temperature, offset, positive_in_denominator, symmetric, label_smoothing
    )


def _fake_gradients(query: Tensor, key: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), temperature.new_empty(())


@operation(fake=lambda upstream, query, key, temperature, *_: _fake_gradients(query, key, temperature))
def info_nce_losses_backward(
    upstream: Tensor,
    query: Tensor,
    key: Tensor,
    temperature: Tensor,
    row_lse: Tensor,
    column_lse: Tensor,
    needed: list[bool],
    offset: int,
    positive_in_denominator: bool,
    symmetric: bool,
    label_smoothing: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    launcher = kernels("pairwise", backend).info_nce_backward
    return launcher(  # type: ignore[no-any-return]
        upstream,
        query,
        key,
        temperature,
        row_lse,
        column_lse,
        needed,
        offset,
        positive_in_denominator,
        symmetric,
        label_smoothing,
    )


def _fake_mean(query: Tensor, key: Tensor, temperature: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(query.dtype)
    gradients = (query.new_empty(query.shape, dtype=dtype), key.new_empty(key.shape, dtype=dtype))
    return query.new_empty((), dtype=dtype), *gradients, temperature.new_empty(())


@operation(fake=_fake_mean)
def info_nce_mean(
    query: Tensor,
    key: Tensor,
    temperature: Tensor,
    needed: list[bool],
    offset: int,
    positive_in_denominator: bool,
    symmetric: bool,
    label_smoothing: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    launcher = kernels("pairwise", backend).info_nce_mean
    return launcher(  # type: ignore[no-any-return]
        query, key, temperature, needed, offset, positive_in_denominator, symmetric, label_smoothing
    )


class _InfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        backend: str,
        query: Tensor,
        key: Tensor,
        temperature: Tensor,
        objective: tuple[int, bool, bool, float],
    ) -> Tensor:
        losses, row_lse, column_lse = info_nce_losses(query, key, temperature, *objective, backend)
        ctx.save_for_backward(query, key, temperature, row_lse, column_lse)
        ctx.backend, ctx.objective = backend, objective
        return losses  # type: ignore[no-any-return]

    @staticmethod
    @first_order(_NAME)
    def backward(ctx: Any, upstream: Tensor) -> Any:
        needed = list(ctx.needs_input_grad[1:4])
        gradients = info_nce_losses_backward(upstream, *ctx.saved_tensors, needed, *ctx.objective, ctx.backend)
        return None, *(g if need else None for g, need in zip(gradients, needed, strict=True)), None


class _MeanInfoNCE(torch.autograd.Function):
    """The mean: the gradient is formed with the loss, so that the backward has only to scale."""

    @staticmethod
    def forward(
        ctx: Any,
        backend: str,
        query: Tensor,
        key: Tensor,
        temperature: Tensor,
        objective: tuple[int, bool, bool, float],
    ) -> Tensor:
        needed = list(ctx.needs_input_grad[1:4])
        loss, *gradients = info_nce_mean(query, key, temperature, needed, *objective, backend)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = query.dtype, key.dtype, temperature.dtype
        return loss  # type: ignore[no-any-return]

    @staticmethod
    @first_order(_NAME)
    def backward(ctx: Any, upstream: Tensor) -> Any:
        gradients = zip(ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad[1:4], strict=True)
        return None, *(scaled(g, upstream, dtype) if need else None for g, dtype, need in gradients), None
