"""Samples of Gaussian latents by the reparameterisation trick, with their divergence from the standard normal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mibfast import _backend, _check
from mibfast._check import Embeddings
from mibfast.kernels.fusion import reference
from mibfast.ops._boundary import DifferentiableOperation, accumulation_dtype, offers_up_to_largest_m
from mibfast.ops._bounded import bounded

__all__ = ["reparameterised_gaussian"]

_NAME = "reparameterised_gaussian"


def reparameterised_gaussian(
    mean: Embeddings,
    logvar: Embeddings,
    noise: Embeddings,
    *,
    logvar_bounds: tuple[float, float] | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Draw from N(mean, exp(logvar)) by given noise, and say how far that is from N(0, I).

    .. math:: z = \mu + \sigma \epsilon, \qquad
              KL = \tfrac12 \sum_d \left[ \sigma^2 + \mu^2 - 1 - \ln \sigma^2 \right]

    Both in one pass over the inputs, and their gradients in another (Kingma and Welling 2014, section 2.4 and appendix
    B; OMIB, Eq. 5 and 10).

    Parameters
    ----------
    mean, logvar, noise : Tensor [..., d], or sequence of M tensors [N, d] or mapping to them
        Of one shape; float64, float32, bfloat16 or float16. All leading dimensions of a tensor together are the batch;
        M modalities may be one tensor [M, N, d], or M tensors, which are not copied together. All three are given in
        one of these forms; mappings have the same keys, in any order: that of `mean` counts. `noise` is standard
        normal, and may need a gradient.
    logvar_bounds : (float, float), optional
        Log-variances are clamped to them; -inf or inf leaves a side open. Unlike that of a plain clamp, the gradient
        outside is kept where descent along it leads back inside.
    backend : str, optional
        See :class:`mibfast.use_backend`.

    Returns
    -------
    sample : Tensor [..., d]
        Of the input's dtype. Of M tensors [M, N, d], in memory sample by sample: `sample.transpose(0, 1)`, the tokens
        that :func:`token_attention` takes, is contiguous.
    divergence : Tensor [...]
        In nats, a sum over d; float64 for float64 inputs, else float32. Of M tensors [M, N].

    Raises
    ------
    TypeError, ValueError
        For unequal shapes, dtypes, devices, forms, keys or numbers of modalities, or bounds that are not (low, high),
        low < high.

    Examples
    --------
    >>> import torch
    >>> from mibfast import functional as F
    >>> mean, logvar, noise = torch.ones(3, 2), torch.zeros(3, 2), torch.full((3, 2), 0.5)
    >>> sample, divergence = F.reparameterised_gaussian(mean, logvar, noise)
    >>> sample[0], divergence
    (tensor([1.5000, 1.5000]), tensor([1., 1., 1.]))
    >>> sample, divergence = F.reparameterised_gaussian([mean, -mean], [logvar, logvar], [noise, noise])
    >>> sample.shape, divergence.shape
    (torch.Size([2, 3, 2]), torch.Size([2, 3]))
    """
    low, high = -math.inf, math.inf
    if logvar_bounds is not None:
        low, high = _check.bounds(_NAME, "logvar_bounds", logvar_bounds, open_ended=True)
    groups = _groups({"mean": mean, "logvar": logvar, "noise": noise})
    if not len(groups[0]) == len(groups[1]) == len(groups[2]):
        counts = ", ".join(str(len(group)) for group in groups)
        raise ValueError(f"{_NAME}: expected as many means as logvars and noises, got {counts}")
    first = {name: group[0] for name, group in zip(("mean", "logvar", "noise"), groups, strict=True)}
    _check.same_shape(_NAME, **first)
    _check.alike(_NAME, **first)
    m = len(groups[0])
    tensors = _check.promoted([x for group in groups for x in group])
    chosen = _backend.choose(_NAME, tensors[0].device, backend, offers_up_to_largest_m("M", m))
    if chosen == "reference":
        dtype = accumulation_dtype(tensors[0].dtype)
        stacked = [(torch.stack(tensors[k * m : (k + 1) * m], 1) if m > 1 else tensors[k]).to(dtype) for k in range(3)]
        sample, divergence = reference.reparameterised_gaussian(stacked[0], bounded(stacked[1], low, high), stacked[2])
        sample, divergence = sample.to(tensors[0].dtype), divergence.mT if m > 1 else divergence
    else:
        sample, divergence = _samples(chosen, tensors, _Options(low, high))
    return (sample.transpose(0, 1), divergence) if m > 1 else (sample, divergence)


def _groups(arguments: dict[str, Embeddings]) -> list[list[Tensor]]:
    """Return the tensors of each argument, those of mappings in the order of the first one's keys."""
    groups = [_tensors(name, x) for name, x in arguments.items()]
    forms = [_form(x) for x in arguments.values()]
    if len(set(forms)) > 1:
        names, got = ", ".join(arguments), ", ".join(forms)
        raise TypeError(f"{_NAME}: {names} must all be tensors, all sequences or all mappings, got {got}")
    first_name, first = next(iter(arguments.items()))
    if not isinstance(first, Mapping):
        return groups
    ordered = []
    for name, x in arguments.items():
        assert isinstance(x, Mapping)
        if x.keys() != first.keys():
            raise ValueError(
                f"{_NAME}: {first_name} and {name} must have the same keys, got {list(first)} and {list(x)}"
            )
        ordered.append(_tensors(name, {key: x[key] for key in first}))
    return ordered


def _form(x: Embeddings) -> str:
    return "a mapping" if isinstance(x, Mapping) else "a sequence" if isinstance(x, Sequence) else "a tensor"


def _tensors(argument: str, x: Embeddings) -> list[Tensor]:
    """Return one tensor [..., d], or M >= 2 [N, d]."""
    if isinstance(x, Sequence | Mapping):
        return _check.embeddings(_NAME, x)[0]
    return [_check.tensor(_NAME, argument, x, "... d")]


class _Options(NamedTuple):
    low: float
    high: float


def _results(tensors: list[Tensor], low: float, high: float, backend: str) -> list[Tensor]:
    """Samples [..., d] and divergences [...], or [N, M, d] and [M, N]."""
    first, m = tensors[0], len(tensors) // 3
    dtype = accumulation_dtype(first.dtype)
    if m == 1:
        return [first.new_empty(first.shape), first.new_empty(first.shape[:-1], dtype=dtype)]
    n, d = first.shape
    return [first.new_empty(n, m, d), first.new_empty(m, n, dtype=dtype)]


_samples = DifferentiableOperation(
    _NAME, "fusion", "*tensors", _results, options=_Options, launcher="samples", outputs=2
)
