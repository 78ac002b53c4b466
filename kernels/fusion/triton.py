"""The operations of a fusion of Gaussian latents between its matrix products, in Triton: each input is read once.

For inputs of B bytes each (of all modalities together), what must move is the floor:

    reparameterised Gaussian   forward reads 3 B, writes B; backward reads 4 B, writes 2 B
    attention of M tokens      forward reads 3 B, writes B; backward reads 4 B, writes 3 B

A program of attention holds all tokens of one sample, keys and values as tiles [M, k], and goes through its queries;
the M x M weights are formed again backward. Arithmetic is float32, float64 for float64 inputs.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mibfast.kernels.launch_configuration import elementwise_tile, on_device_of, tokens_tile
from mibfast.kernels.rows_triton import (
    accumulation_dtype,
    constants,
    half_expm1,
    half_expm1_minus_x,
    load,
    matrices_of,
    row_strides,
    rows_of_program,
    tile_of_program,
)


@triton.jit
def _clamped(x, LOW: tl.constexpr, HIGH: tl.constexpr):
    """x in [LOW, HIGH] by comparisons, not min and max: a NaN fails them and stays."""
    x = tl.where(x < LOW, tl.full(x.shape, LOW, x.dtype), x)
    return tl.where(x > HIGH, tl.full(x.shape, HIGH, x.dtype), x)


@triton.jit(do_not_specialize=["N"])
def _samples(
    tensors,  # 3 M of [N, D]
    strides,
    samples,  # [N, M, D]
    divergences,  # [M, N]
    N,
    D: tl.constexpr,
    M: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Form samples and divergences from M means, M log-variances and M noises."""
    row, there = rows_of_program(N, ROWS)
    for m in tl.static_range(M):
        total = tl.zeros([ROWS, COLUMNS], DTYPE)
        for start in range(0, D, COLUMNS):
            column = start + tl.arange(0, COLUMNS)[None, :]
            inside = there & (column < D)
            mean = load(tensors[m], strides[m], row, column, inside, DTYPE)
            logvar = _clamped(load(tensors[M + m], strides[M + m], row, column, inside, DTYPE), LOW, HIGH)
            noise = load(tensors[2 * M + m], strides[2 * M + m], row, column, inside, DTYPE)
            tl.store(samples + (row * M + m) * D + column, mean + tl.exp(0.5 * logvar) * noise, mask=inside)
            # Outside, a bound may have lifted the log-variance from 0.
            total += tl.where(inside, 0.5 * mean * mean + half_expm1_minus_x(logvar), 0.0)
        tl.store(divergences + m * N + row, tl.sum(total, 1, keep_dims=True), mask=there)


@triton.jit(do_not_specialize=["N"])
def _samples_backward(
    sample_upstream,  # [N M, D]
    sample_stride,
    divergence_upstream,  # [M, N]
    tensors,  # 3 M of [N, D]
    strides,
    gradients,  # 2 M or 3 M of [N, D]
    N,
    D: tl.constexpr,
    M: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    OF_NOISE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """dmean = g + h mean, dlogvar = g noise std / 2 + h (e^logvar - 1) / 2, dnoise = g std.

    Beyond a bound dlogvar is kept only where descent along it leads back.
    """
    row, column, inside = tile_of_program(N, D, ROWS, COLUMNS)
    to = row * D + column
    for m in tl.static_range(M):
        g = load(sample_upstream, sample_stride, row * M + m, column, inside, DTYPE)
        h = tl.load(divergence_upstream + m * N + row, mask=row < N, other=0.0)
        mean = load(tensors[m], strides[m], row, column, inside, DTYPE)
        given = load(tensors[M + m], strides[M + m], row, column, inside, DTYPE)
        noise = load(tensors[2 * M + m], strides[2 * M + m], row, column, inside, DTYPE)
        logvar = _clamped(given, LOW, HIGH)
        grad_noise = g * tl.exp(0.5 * logvar)
        # A divergence without a gradient, h = 0, adds nothing even where it is infinite.
        gradient = 0.5 * grad_noise * noise + tl.where(h == 0.0, 0.0, h * half_expm1(logvar))
        lost = ((given < LOW) & (gradient > 0.0)) | ((given > HIGH) & (gradient < 0.0))
        tl.store(gradients[m] + to, g + h * mean, mask=inside)
        tl.store(gradients[M + m] + to, tl.where(lost, 0.0, gradient), mask=inside)
        if OF_NOISE:
            tl.store(gradients[2 * M + m] + to, grad_noise, mask=inside)


@triton.jit
def _weights(query, keys, there, SCALE: tl.constexpr):
    """Attention weights of a query [1, D] on the keys [ROWS, D]: [ROWS, 1]."""
    scores = tl.where(there, tl.sum(query * keys, 1, keep_dims=True) * SCALE, -float("inf"))
    weights = tl.exp(scores - tl.max(scores, 0, keep_dims=True))
    return weights / tl.sum(weights, 0, keep_dims=True)


@triton.jit
def _attend(
    query,  # [N M, D]
    query_stride,
    key,  # [N M, D]
    key_stride,
    value,  # [N M, D]
    value_stride,
    out,  # [N M, D]
    M: tl.constexpr,
    SCALE: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Rows n M + a are the tokens of sample n: out [N M, D]."""
    first = tl.program_id(0).to(tl.int64) * M
    token, column = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    there, inside = token < M, column < D
    keys = load(key, key_stride, first + token, column, there & inside, DTYPE)
    values = load(value, value_stride, first + token, column, there & inside, DTYPE)
    for a in range(M):
        q = load(query, query_stride, first + a, column, inside, DTYPE)
        attended = tl.sum(_weights(q, keys, there, SCALE) * values, 0, keep_dims=True)
        tl.store(out + (first + a) * D + column, attended, mask=inside)


@triton.jit
def _attend_backward(
    upstream,  # [N M, D]
    upstream_stride,
    query,  # [N M, D]
    query_stride,
    key,  # [N M, D]
    key_stride,
    value,  # [N M, D]
    value_stride,
    gradients,  # 3 of [N M, D]
    M: tl.constexpr,
    SCALE: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * M
    token, column = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    there, inside = token < M, column < D
    keys = load(key, key_stride, first + token, column, there & inside, DTYPE)
    values = load(value, value_stride, first + token, column, there & inside, DTYPE)
    grad_keys, grad_values = tl.zeros([ROWS, COLUMNS], DTYPE), tl.zeros([ROWS, COLUMNS], DTYPE)
    for a in range(M):
        q = load(query, query_stride, first + a, column, inside, DTYPE)
        g = load(upstream, upstream_stride, first + a, column, inside, DTYPE)
        weights = _weights(q, keys, there, SCALE)
        slopes = tl.sum(g * values, 1, keep_dims=True)
        slopes = weights * (slopes - tl.sum(weights * slopes, 0, keep_dims=True)) * SCALE
        tl.store(gradients[0] + (first + a) * D + column, tl.sum(slopes * keys, 0, keep_dims=True), mask=inside)
        grad_keys += slopes * q
        grad_values += weights * g
    to = (first + token) * D + column
    tl.store(gradients[1] + to, grad_keys, mask=there & inside)
    tl.store(gradients[2] + to, grad_values, mask=there & inside)


def samples(tensors: Sequence[Tensor], low: float, high: float) -> tuple[Tensor, Tensor]:
    """Samples and divergences of M means, M log-variances and M noises, log-variances clamped to [low, high].

    Of three tensors [..., d] a sample [..., d] and a divergence [...]; of 3 M tensors [N, d] samples [N, M, d] and
    divergences [M, N].
    """
    matrices, dtype, m = matrices_of(tensors), accumulation_dtype(tensors[0]), len(tensors) // 3
    n, d = matrices[0].shape
    out, divergences = matrices[0].new_empty(n, m, d), matrices[0].new_empty(m, n, dtype=dtype)
    tile = elementwise_tile(d, 4, dtype)
    with on_device_of(out):
        _samples[(triton.cdiv(n, tile.rows),)](
            tensors=tuple(matrices),
            strides=row_strides(matrices),
            samples=out,
            divergences=divergences,
            N=n,
            M=m,
            LOW=low,
            HIGH=high,
            **constants(d, tile, dtype),
        )
    return (out.view(tensors[0].shape), divergences.view(tensors[0].shape[:-1])) if m == 1 else (out, divergences)


def matrices_of_samples_backward(dtype: torch.dtype) -> int:
    """How many tiles are held at a time: five inputs, three gradients and an exponential, in float64 of many parts."""
    return 18 if dtype == torch.float64 else 9


def samples_backward(
    sample_upstream: Tensor,
    divergence_upstream: Tensor,
    tensors: Sequence[Tensor],
    needed: Sequence[bool],
    low: float,
    high: float,
) -> list[Tensor | None]:
    """Gradients of `samples` in the order of its tensors, those of the noises where any is needed."""
    grad_noise = any(needed[len(tensors) // 3 * 2 :])
    matrices, dtype, m = matrices_of(tensors), accumulation_dtype(tensors[0]), len(tensors) // 3
    (above,) = matrices_of([sample_upstream])
    n, d = matrices[0].shape
    gradients = [
        torch.empty_like(x, memory_format=torch.contiguous_format) for x in tensors[: (3 if grad_noise else 2) * m]
    ]
    tile = elementwise_tile(d, matrices_of_samples_backward(dtype), dtype)
    with on_device_of(above):
        _samples_backward[(triton.cdiv(n, tile.rows), triton.cdiv(d, tile.columns))](
            sample_upstream=above,
            sample_stride=above.stride(0),
            divergence_upstream=divergence_upstream.to(dtype).reshape(-1).contiguous(),
            tensors=tuple(matrices),
            strides=row_strides(matrices),
            gradients=tuple(gradients),
            N=n,
            M=m,
            LOW=low,
            HIGH=high,
            OF_NOISE=grad_noise,
            **constants(d, tile, dtype),
        )
    return [*gradients, *([] if grad_noise else [None] * m)]


def _token_arguments(**tokens: Tensor) -> dict[str, Any]:
    """Arguments of tokens [N, M, k]: matrices [N M, k] with the strides of their rows, and constants."""
    (m, k), dtype = tokens["query"].shape[1:], accumulation_dtype(tokens["query"])
    arguments: dict[str, Any] = {"M": m, "SCALE": k**-0.5, **constants(k, tokens_tile(m, k, dtype), dtype)}
    for name, x in zip(tokens, matrices_of([*tokens.values()]), strict=True):
        arguments |= {name: x, f"{name}_stride": x.stride(0)}
    return arguments


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention [N, M, k] among the M tokens of each sample."""
    out = query.new_empty(query.shape)
    with on_device_of(out):
        _attend[(len(query),)](out=out, **_token_arguments(query=query, key=key, value=value))
    return out


def attend_backward(
    upstream: Tensor, query: Tensor, key: Tensor, value: Tensor, needed: Sequence[bool]
) -> list[Tensor]:
    """Gradients of `attend`."""
    gradients = [x.new_empty(x.shape) for x in (query, key, value)]
    arguments = _token_arguments(query=query, key=key, value=value, upstream=upstream)
    with on_device_of(upstream):
        _attend_backward[(len(query),)](gradients=tuple(gradients), **arguments)
    return gradients
