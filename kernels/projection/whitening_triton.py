"""Whitened bases of the contexts of each sample in Triton, the operands of scores of ridge projections.

With L L^T = A A^T + ridge I for the K vectors A of a sample and W = L^-1, the basis is W A. The ridge is raised as in
`reference.py`.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mibfast.kernels.launch_configuration import on_device_of
from mibfast.kernels.projection.samples_triton import (
    constants,
    effective_ridge,
    gram_matrix,
    inner_products,
    inverse_cholesky,
    load_tile,
    product,
    sample_pointers,
    store_tile,
)
from mibfast.kernels.rows_triton import accumulation_dtype, matrices_of, row_strides


@triton.jit
def _triangle(pointer, sample, N, K: tl.constexpr, ROWS: tl.constexpr):
    """Addresses in [K (K + 1) / 2, N], upper triangles row by row, of a sample's symmetric matrix; and which there are.

    Below the diagonal stands the number above it.
    """
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, ROWS)[None, :]
    low, high = tl.minimum(row, column), tl.maximum(row, column)
    entry = low * K - low * (low - 1) // 2 + high - low
    return pointer + entry.to(tl.int64) * N + sample, (row < K) & (column < K)


@triton.jit(do_not_specialize=["N"])
def _whiten(
    contexts,  # K of [N, D]
    strides,
    bases,  # [K, N, D]
    grams,  # [K (K + 1) / 2, N]
    N,
    K: tl.constexpr,
    D: tl.constexpr,
    RIDGE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """With W = L^-1, L L^T = A A^T + ridge I for the K rows of A: bases [K, N, d] = W A, grams = their own."""
    sample = tl.program_id(0).to(tl.int64)
    begin = sample_pointers(contexts, strides, sample, K, ROWS)
    gram = gram_matrix(begin, K, D, ROWS, COLUMNS)
    w, _ = inverse_cholesky(gram, K, RIDGE, ROWS)
    to, inside = _triangle(grams, sample, N, K, ROWS)
    v = product(product(w, gram, K, ROWS), tl.trans(w), K, ROWS)
    upper = tl.arange(0, ROWS)[:, None] <= tl.arange(0, ROWS)[None, :]
    tl.store(to, v.to(grams.dtype.element_ty), mask=inside & upper)
    results = bases + tl.arange(0, ROWS).to(tl.int64) * N * D + sample * D
    for start in range(0, D, COLUMNS):
        x = load_tile(begin, start, K, D, ROWS, COLUMNS)
        store_tile(results, start, product(w, x, K, ROWS), K, D, ROWS, COLUMNS)


@triton.jit(do_not_specialize=["N"])
def _whiten_backward(
    grad_bases,  # [K, N, D]
    grad_grams,  # [K (K + 1) / 2, N], or None
    contexts,  # K of [N, D]
    strides,
    gradients,  # K of [N, D], which are added to
    N,
    K: tl.constexpr,
    D: tl.constexpr,
    RIDGE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Add to dA the gradients of the outputs of `_whiten`, the ridge in effect held constant.

    With V = I - W ridge W^T: dW = dB A^T - 2 dV W ridge; X = W^T phi(-tril(dW) W^T) W with phi the lower triangle, its
    diagonal halved (the Cholesky factor's backward); dA = W^T dB + (X + X^T) A.
    """
    sample = tl.program_id(0).to(tl.int64)
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, ROWS)[None, :]
    begin = sample_pointers(contexts, strides, sample, K, ROWS)
    above = grad_bases + tl.arange(0, ROWS).to(tl.int64) * N * D + sample * D
    gram, dw = tl.zeros([ROWS, ROWS], tl.float64), tl.zeros([ROWS, ROWS], tl.float64)
    for start in range(0, D, COLUMNS):
        x = load_tile(begin, start, K, D, ROWS, COLUMNS)
        gram += inner_products(x, x, K, ROWS)
        dw += inner_products(load_tile(above, start, K, D, ROWS, COLUMNS), x, K, ROWS)
    w, in_effect = inverse_cholesky(gram, K, RIDGE, ROWS)
    if grad_grams is not None:
        at, inside = _triangle(grad_grams, sample, N, K, ROWS)
        dv = tl.load(at, mask=inside, other=0.0).to(tl.float64)
        dv = tl.where(row == column, dv, 0.5 * dv)
        dw -= 2.0 * product(dv, w * in_effect, K, ROWS)
    dw = tl.where(column <= row, dw, 0.0)
    phi = -product(dw, tl.trans(w), K, ROWS)
    phi = tl.where(column < row, phi, tl.where(column == row, 0.5 * phi, 0.0))
    x = product(tl.trans(w), product(phi, w, K, ROWS), K, ROWS)
    p, q = x + tl.trans(x), tl.trans(w)
    results = sample_pointers(gradients, (D,) * K, sample, K, ROWS)
    for start in range(0, D, COLUMNS):
        result = product(p, load_tile(begin, start, K, D, ROWS, COLUMNS), K, ROWS)
        result += product(q, load_tile(above, start, K, D, ROWS, COLUMNS), K, ROWS)
        result += load_tile(results, start, K, D, ROWS, COLUMNS)
        store_tile(results, start, result, K, D, ROWS, COLUMNS)


def whitened_bases(contexts: Sequence[Tensor], ridge: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Whiten K context embeddings [N, d] of each sample: B [K, N, d] and V [K (K + 1) / 2, N].

    With the K vectors of a sample as the rows of A, L L^T = A A^T + ridge I: B = L^-1 A, and V = B B^T, its upper
    triangle row by row. B is of the dtype given, V float64 for float64 contexts, else float32. The largest of I - V,
    which the CPU's launcher adds, is left out: it would have to be read back.
    """
    matrices, k, (n, d) = matrices_of(contexts), len(contexts), contexts[0].shape
    bases = contexts[0].new_empty((k, n, d), dtype=dtype)
    grams = contexts[0].new_empty((k * (k + 1) // 2, n), dtype=accumulation_dtype(contexts[0]))
    with on_device_of(bases):
        _whiten[(n,)](
            contexts=tuple(matrices),
            strides=row_strides(matrices),
            bases=bases,
            grams=grams,
            N=n,
            K=k,
            RIDGE=effective_ridge(ridge),
            **constants(d, k),
        )
    return bases, grams


def whitened_bases_backward(
    grad_bases: Tensor,
    grad_grams: Tensor | None,
    contexts: Sequence[Tensor],
    ridge: float,
    gradients: Sequence[Tensor],
) -> None:
    """Add the gradients of `whitened_bases` to `gradients`, K contiguous tensors [N, d] of its dtype."""
    matrices, k, (n, d) = matrices_of(contexts), len(contexts), contexts[0].shape
    with on_device_of(grad_bases):
        _whiten_backward[(n,)](
            grad_bases=grad_bases.contiguous(),
            grad_grams=None if grad_grams is None else grad_grams.contiguous(),
            contexts=tuple(matrices),
            strides=row_strides(matrices),
            gradients=tuple(gradients),
            N=n,
            K=k,
            RIDGE=effective_ridge(ridge),
            **constants(d, k),
        )
