"""Samples that lack modalities: what a loss takes of them.

`presence` is a bool tensor [N, M], True where sample n has modality m, the columns in the order of the embeddings. What
an absent embedding holds is never used, be it NaN, and its gradient is exactly zero: it neither attracts nor repels.
Which samples are left depends on the values of `presence`, so they are read back from a device, and `torch.compile`
breaks its graph there: `fullgraph=True` takes `presence=None` only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import torch
from torch import Tensor

from mibfast import _check
from mibfast._check import Embeddings
from mibfast.losses.normalisation import unit


def partnered_embeddings(
    operation: str, embeddings: Embeddings, presence: Tensor | None, normalize: bool
) -> tuple[list[Tensor], list[str]]:
    """Check embeddings and presence, and return the embeddings, their rows made unit where asked, and their names.

    An embedding that is absent or the only one of its sample is zeros, which no gradient passes.
    """
    z, names = _check.embeddings(operation, embeddings, presence)
    if presence is not None:
        _check.presence(operation, presence, z)
        partnered = presence & (presence.sum(1, keepdim=True) > 1)
        # Before the norm is taken: past it, the gradient of a row that holds NaN is NaN for an upstream gradient of 0.
        # Stacked, so that a modality that no term is left of has a gradient of zero and not none, which the encoders of
        # other processes would wait for.
        z = list(torch.stack(z).masked_fill(~partnered.T[..., None], 0.0).unbind(0))
    return (unit(z) if normalize else z), names


def complete_embeddings(
    operation: str, embeddings: Embeddings, presence: Tensor | None, normalize: bool, fewest: int = 1
) -> tuple[list[Tensor], list[str]]:
    """Check embeddings and presence, and return the embeddings of samples that have all modalities, and their names.

    Rows are made unit where asked. ValueError for fewer samples than `fewest`.
    """
    z, names = _check.embeddings(operation, embeddings, presence)
    if presence is not None:
        samples = _positions(_check.presence(operation, presence, z).all(1))
        expected = f"N >= {fewest} samples with all modalities, got N = {len(samples)}"
        _check.left_by_presence(operation, len(samples) >= fewest, expected)
        z = _rows(z, samples)
    return (unit(z) if normalize else z), names


def pairs(
    operation: str, z: Sequence[Tensor], names: Sequence[str], presence: Tensor | None, fewest: int = 1
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield each pair of modalities: their names joined by a hyphen, and the embeddings of samples that have both.

    Pairs of fewer samples than `fewest` are left out; ValueError after the last where all are.
    """
    left = False
    for i, j in combinations(range(len(z)), 2):
        pair = [z[i], z[j]]
        if presence is not None:
            samples = _positions(presence[:, i] & presence[:, j])
            if len(samples) < fewest:
                continue
            pair = _rows(pair, samples)
        left = True
        yield f"{names[i]}-{names[j]}", pair[0], pair[1]
    _check.left_by_presence(operation, left, f"a pair of modalities with N >= {fewest} samples that have both")


def _positions(mask: Tensor) -> Tensor:
    return mask.nonzero().squeeze(1)


def _rows(z: Sequence[Tensor], samples: Tensor) -> list[Tensor]:
    """Gather rows; what has all of them is not copied."""
    return [x if len(samples) == len(x) else x.index_select(0, samples) for x in z]
