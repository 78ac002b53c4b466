"""Symile: InfoNCE on the multilinear inner product of M modalities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mibfast import _backend, _check
from mibfast._check import Embeddings
from mibfast.kernels.multilinear import reference
from mibfast.ops._boundary import (
    DifferentiableOperation,
    OperationWithGradient,
    accumulation_dtype,
    pairwise_offers,
    temperature_tensor,
)
from mibfast.ops.info_nce import info_nce

__all__ = ["symile_info_nce"]

_NAME = "symile_info_nce"
# N^M combinations: with five modalities and N = 64 already 10^9.
_MOST_MODALITIES = 4


def symile_info_nce(
    embeddings: Embeddings,
    scale: float | Tensor,
    *,
    negatives: str = "all",
    generator: torch.Generator | None = None,
    permutations: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Symile: the cross-entropy of picking each sample's own combination of the other modalities.

    .. math:: L = \frac{1}{M N} \sum_m \sum_n \Big[ \log \sum_{c} e^{s\, t(z_n^{(m)}, c)} - s\, t_n \Big],
              \qquad t = \sum_d \prod_m z_d^{(m)}

    Symile (Saporta et al., arXiv 2411.01053) with the multilinear inner product t, the positive :math:`t_n` of sample n
    always in the denominator, and candidates c for anchor m

    - `negatives="all"`: all :math:`N^{M-1}` combinations of the other modalities' samples ("n_squared" in the released
      code). All anchors are served by one sweep over the :math:`N^M` products: :math:`2 N^M d` FLOPs, 3 or 4 times
      that with gradients, at O(N) memory. M <= 4;
    - `negatives="shuffled"`: N combinations, the others' samples shuffled, each by a permutation of its own ("n" in the
      released code): :math:`O(N^2 d)`, any M. A shuffled combination may hold parts of the positive.

    With M = 2 both are symmetric InfoNCE, up to the shuffling of keys and negatives that meet twice. Embeddings are
    taken as they are. The released examples differ: XOR and the README normalise them to unit length, the M3 and MIMIC
    models use LayerNorm alone; :class:`mibfast.losses.SymileLoss` normalises by default.

    Parameters
    ----------
    embeddings : sequence of M tensors [N, d], tensor [M, N, d] or mapping to [N, d]
        float64, float32, bfloat16 or float16; M >= 2.
    scale : float or 0-d Tensor
        :math:`s > 0`, the inverse of a temperature, already exponentiated where its logarithm is learned. A tensor may
        need a gradient and is taken as it is.
    negatives : {"all", "shuffled"}
    generator : torch.Generator, optional
        Draws the permutations of shuffled negatives.
    permutations : Tensor [M, M - 1, N], optional
        Integers, in place of drawn ones: row (m, k) shuffles the k-th of the others of anchor m, in their order.
        [M (M - 1), N] is taken as well.
    backend : str, optional
        See :class:`mibfast.use_backend`.

    Returns
    -------
    Tensor
        A scalar in nats; float64 for float64 embeddings, else float32.

    Raises
    ------
    TypeError, ValueError
        For fewer than two modalities, or more than four with all negatives; unequal shapes, dtypes or devices; a number
        for the scale that is not positive; unknown negatives; permutations or a generator without shuffled negatives,
        or permutations that are none.

    Examples
    --------
    >>> import torch
    >>> from mibfast import functional as F
    >>> aligned = torch.eye(3)
    >>> F.symile_info_nce([aligned, aligned, aligned], scale=1.0)
    tensor(1.3720)
    >>> F.symile_info_nce([aligned, aligned], scale=1.0) == F.info_nce(aligned, aligned, 1.0, symmetric=True)
    tensor(True)
    """
    z, _ = _check.embeddings(_NAME, embeddings)
    scale = _check.scale(_NAME, scale, z[0].device)
    _check.choice(_NAME, "negatives", negatives, ("all", "shuffled"))
    if negatives == "shuffled":
        shuffles = _permutations(z, generator, permutations)
        chosen = _backend.choose(_NAME, z[0].device, backend, pairwise_offers(z[0]))
        wide = [x.to(accumulation_dtype(x.dtype)) for x in z]
        if chosen == "reference":
            return reference.shuffled_negatives(wide, scale, shuffles)
        return _shuffled(chosen, wide, scale, shuffles)
    if permutations is not None or generator is not None:
        raise ValueError(f'{_NAME}: permutations and generator are for negatives="shuffled", got negatives="all"')
    if len(z) > _MOST_MODALITIES:
        raise ValueError(
            f'{_NAME}: negatives="all" forms all N^M combinations of samples and takes at most {_MOST_MODALITIES} '
            f'modalities, got {len(z)}; use negatives="shuffled"'
        )
    chosen = _backend.choose(_NAME, z[0].device, backend, pairwise_offers(z[0]))
    if chosen == "reference":
        return reference.all_negatives(scale * reference.scores([x.to(accumulation_dtype(x.dtype)) for x in z]))
    if len(z) == 2:
        query = z[0].to(accumulation_dtype(z[0].dtype)) * scale
        return info_nce(query, z[1].to(query.dtype), 1.0, symmetric=True, backend=chosen)
    return _all_negatives(chosen, (*z, temperature_tensor(scale)))[0]


def _permutations(z: Sequence[Tensor], generator: torch.Generator | None, permutations: Tensor | None) -> Tensor:
    """The permutations [M, M - 1, N]: those given, checked, or drawn in their order."""
    m, n, device = len(z), z[0].shape[0], z[0].device
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"{_NAME}: generator must be a torch.Generator, got {_check.described(generator)}")
    if permutations is None:
        where = device if generator is None else generator.device
        drawn = [torch.randperm(n, generator=generator, device=where) for _ in range(m * (m - 1))]
        return torch.stack(drawn).view(m, m - 1, n).to(device)
    if generator is not None:
        raise ValueError(f"{_NAME}: permutations and generator exclude each other, got both")
    return _check.permutations(_NAME, permutations, m, n, device)


def _product(factors: Sequence[Tensor]) -> Tensor:
    product, *rest = factors
    for factor in rest:
        product = product * factor
    return product


def _shuffled(backend: str, z: Sequence[Tensor], scale: float | Tensor, permutations: Tensor) -> Tensor:
    """With R the log-sum-exp of an anchor's negatives and p its positive, log(e^R + e^p) - p = softplus(R - p)."""
    positive = scale * _product(z).sum(1)
    losses = []
    for m, anchor in enumerate(z):
        others = [x for k, x in enumerate(z) if k != m]
        key = _product([x.index_select(0, permutations[m, k]) for k, x in enumerate(others)])
        (lse,) = _negatives_log_sum_exp(backend, (scale * anchor, key))
        # An infinite positive is no loss of 0, and 0 times it is NaN.
        losses.append(torch.nn.functional.softplus(lse - positive, threshold=50.0) + 0.0 * positive.detach())
    return torch.stack(losses).mean().to(z[0].dtype)


def _loss(z: list[Tensor], *_: Any) -> list[Tensor]:
    return [z[0].new_empty((), dtype=accumulation_dtype(z[0].dtype))]


_all_negatives = OperationWithGradient(_NAME, "multilinear", "*embeddings scale", _loss, launcher="symile")


def _log_sum_exps(query: Tensor, key: Tensor, backend: str) -> list[Tensor]:
    return [query.new_empty(query.shape[0], dtype=torch.float64)]


_negatives_log_sum_exp = DifferentiableOperation(
    _NAME,
    "multilinear",
    "query key",
    _log_sum_exps,
    launcher="negatives_log_sum_exp",
    part="negatives",
    saves_outputs=True,
)
