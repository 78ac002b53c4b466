"""Samples that lack modalities: what is left of them for a loss.

`presence` is a bool tensor [N, M], True where sample n has modality m, the columns in the order of the embeddings. What
an absent embedding holds is never used, be it NaN, and its gradient is exactly zero. Which samples are left depends on
the values of `presence`, which are read back from its device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import torch
from torch import Tensor

from mibfast import _check


def partnered(z: Sequence[Tensor], presence: Tensor) -> list[Tensor]:
    """Return embeddings with zeros, which no gradient passes, in place of those absent or alone in their sample."""
    taken = presence & (presence.sum(1, keepdim=True) > 1)
    # Before norms are taken: the gradient of the norm of a row that holds NaN is NaN, even for an upstream gradient of
    # 0. Stacked, so that a modality that appears in no term still gets a gradient, of zero: other processes would wait
    # for its encoder's.
    return list(torch.stack(list(z)).masked_fill(~taken.T[..., None], 0.0).unbind(0))


def complete(operation: str, z: Sequence[Tensor], presence: Tensor, fewest: int = 1) -> tuple[list[Tensor], Tensor]:
    """Return the embeddings of the samples that have all modalities, and which these are.

    ValueError for fewer than `fewest`.
    """
    samples = presence.all(1).nonzero().squeeze(1)
    expected = f"N >= {fewest} samples with all modalities, got N = {len(samples)}"
    _check.left_by_presence(operation, len(samples) >= fewest, expected)
    return _rows(z, samples), samples


def over_pairs(
    operation: str,
    loss: Callable[[Tensor, Tensor], Tensor],
    z: Sequence[Tensor],
    names: Sequence[str],
    presence: Tensor | None,
    fewest: int = 1,
) -> dict[str, Tensor]:
    """Return a loss of each pair of modalities over the samples that have both, by their names joined by a hyphen.

    Pairs with fewer than `fewest` samples are left out; ValueError where none remains.
    """
    losses = {}
    for i, j in combinations(range(len(z)), 2):
        pair = f"{names[i]}-{names[j]}"
        if pair in losses:
            raise ValueError(
                f"{operation}: two pairs of modalities would be called {pair}; rename one of {', '.join(names)}"
            )
        if presence is None:
            losses[pair] = loss(z[i], z[j])
            continue
        samples = (presence[:, i] & presence[:, j]).nonzero().squeeze(1)
        if len(samples) >= fewest:
            losses[pair] = spread(loss(*_rows([z[i], z[j]], samples)), samples, len(presence))
    expected = f"a pair of modalities with N >= {fewest} samples that have both"
    _check.left_by_presence(operation, bool(losses), expected)
    return losses


def spread(loss: Tensor, samples: Tensor, n: int) -> Tensor:
    """Put one value a sample [..., len(samples)] in its place among n samples, zeros elsewhere; keep a scalar."""
    return loss.new_zeros(*loss.shape[:-1], n).index_copy(-1, samples, loss) if loss.ndim else loss


def _rows(z: Sequence[Tensor], samples: Tensor) -> list[Tensor]:
    """Gather rows; where all are taken nothing is copied."""
    return [x if len(samples) == len(x) else x.index_select(0, samples) for x in z]
