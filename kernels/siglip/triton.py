"""SigLIP's loss on the Triton engine: a softplus reduction of inner products; `cpu.py` has the formula.

The weight of a pair depends on no other pair, so the mean and its gradients take one sweep, 3 GEMMs of 2 N N' d FLOPs:
the kernel that forms weights also adds up losses, weights and weights times scores, a number of each a tile, which are
finished in float64. Up to d = 128, where the engine forms every tile twice, 4. Losses of each query apart take a
sweep, 1 GEMM, and their gradients another 3. The reduction applies scale and bias, so a scale of zero, or a negative
one, has its gradient too.

Source: Zhai et al. (2023), arXiv 2303.15343, Algorithm 1.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mibfast.kernels.pairwise import reductions
from mibfast.kernels.pairwise import triton as pairwise
from mibfast.kernels.pairwise.gradient_triton import Wanted, Weights, gradient
from mibfast.kernels.pairwise.pairs_triton import Scalar
from mibfast.kernels.pairwise.reduce_triton import reduce

_SIGMOID_LOSS = reductions.named("sigmoid_loss")


class _Pairs(pairwise.Embeddings):
    """Pairs of embeddings, whose scale and bias the reduction applies."""

    def __init__(self, query: Tensor, key: Tensor, scale: Tensor, bias: Tensor, normalize: bool, offset: int) -> None:
        super().__init__(query, key, None, "inner_product", offset, Scalar.of(bias.detach()), normalize)
        self.pairs = replace(self.pairs, scale=Scalar.of(scale.detach()))


def siglip(
    query: Tensor, key: Tensor, scale: Tensor, bias: Tensor, normalize: bool, offset: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of each query [N], and its derivatives by scale and bias [N], float64."""
    states = reduce(pairwise.INNER_PRODUCT, _SIGMOID_LOSS, _Pairs(query, key, scale, bias, normalize, offset).pairs, 0)
    losses, by_scale, by_bias = states.rows.sum(1, dtype=torch.float64)
    return losses.float(), by_scale.clone(), by_bias.clone()


def siglip_backward(
    upstream: Tensor,
    query: Tensor,
    key: Tensor,
    scale: Tensor,
    bias: Tensor,
    by_scale: Tensor,
    by_bias: Tensor,
    needed: list[bool],
    normalize: bool,
    offset: int,
) -> list[Tensor | None]:
    """Gradients of `siglip`, those that are needed, for an upstream gradient [N]."""
    grad_numbers = [
        torch.dot(upstream.double(), each) if need else None
        for each, need in zip((by_scale, by_bias), needed[2:], strict=True)
    ]
    if not any(needed[:2]):
        return [None, None, *grad_numbers]
    weights, wanted = Weights(upstream.contiguous()), Wanted(needed[0], needed[1])
    embeddings = _Pairs(query, key, scale, bias, normalize, offset)
    gradients = gradient(embeddings.score, _SIGMOID_LOSS, embeddings.pairs, 0, weights, wanted)
    return [*embeddings.embedding_results(gradients, query.dtype), *grad_numbers]


def siglip_with_gradient(
    query: Tensor, key: Tensor, scale: Tensor, bias: Tensor, needed: list[bool], normalize: bool, offset: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The mean of the losses, and its gradients by query and key (float32, still to be scaled), scale and bias."""
    factor = 1.0 / query.shape[0]
    weights, wanted = Weights(factor=factor), Wanted(needed[0], needed[1], sums=2, dtype=torch.float32)
    embeddings = _Pairs(query, key, scale, bias, normalize, offset)
    gradients = gradient(embeddings.score, _SIGMOID_LOSS, embeddings.pairs, 0, weights, wanted)
    assert gradients.sums is not None
    by_scale, by_bias, loss = factor * gradients.sums
    # A scale or bias given as a Python number is a CPU tensor here, and needs no gradient.
    grad_numbers = (
        by.to(x.dtype) if x.device == query.device else x.new_empty(())
        for by, x in ((by_scale, scale), (by_bias, bias))
    )
    return (loss.float(), *embeddings.embedding_results(gradients, torch.float32), *grad_numbers)
