"""Blocks of log-sum-exps, merged, are the whole: memory banks and keys spread over processes stand on it."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from mibfast import functional as F

# Columns of 4 blocks: the positives of 7 rows begin at column 6, so they lie in the second and third.
CUTS = [0, 5, 9, 14, 23]
FIRST_POSITIVE = 6


def _leaves(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    rows, columns = (torch.randn(n, 5, generator=generator, dtype=torch.float64).to(dtype) for n in (7, CUTS[-1]))
    return [x.requires_grad_() for x in (rows, columns, torch.tensor(0.3, dtype=torch.float64))]


def _merged(rows: Tensor, columns: Tensor, temperature: Tensor, **options: object) -> Tensor:
    """Both ways' losses from blocks of columns, each of which is cut into two blocks of rows."""
    positives, of_rows, of_columns = [], [], []
    for first, last in pairwise(CUTS):
        parts = [
            F.partial_lse(part, columns[first:last], temperature, offset=start + FIRST_POSITIVE - first, **options)
            for start, part in ((0, rows[:3]), (3, rows[3:]))
        ]
        block_positives, block_rows, block_columns = zip(*parts, strict=True)
        positives.append(torch.cat(block_positives))
        of_rows.append(torch.cat(block_rows))
        of_columns.append(torch.logsumexp(torch.stack(block_columns), 0))
    own = slice(FIRST_POSITIVE, FIRST_POSITIVE + len(rows))
    both = torch.logsumexp(torch.stack(of_rows), 0) + torch.cat(of_columns)[own]
    return 0.5 * both - torch.stack(positives).sum(0)


@pytest.mark.parametrize("positive_in_denominator", [True, False])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_merged_blocks_are_the_whole(backend, positive_in_denominator) -> None:
    """Values and gradients, that of the temperature too, for an uneven upstream gradient."""
    options = {"positive_in_denominator": positive_in_denominator, "backend": backend}
    leaves = _leaves()
    whole = F.info_nce(*leaves, symmetric=True, offset=FIRST_POSITIVE, reduction="none", **options)
    found = _merged(*leaves, **options)
    torch.testing.assert_close(found, whole, rtol=1e-13, atol=1e-13)
    upstream = torch.linspace(-0.7, 1.3, len(whole), dtype=whole.dtype)
    pairs = zip(torch.autograd.grad(found, leaves, upstream), torch.autograd.grad(whole, leaves, upstream), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13 * b.abs().max().item())


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_block_without_positives_adds_negatives(backend) -> None:
    """A memory bank: the loss is that of all keys together, and keys of the bank need no gradient."""
    rows, columns, temperature = _leaves()
    keys, bank = columns[: len(rows)].detach().requires_grad_(), columns[len(rows) :].detach()
    leaves = (rows, keys, temperature)
    positives, here, _ = F.partial_lse(rows, keys, temperature, offset=0, backend=backend)
    nothing, there, _ = F.partial_lse(rows, bank, temperature, backend=backend)
    assert nothing is None
    found = (torch.logaddexp(here, there) - positives).mean()
    whole = F.info_nce(rows, torch.cat([keys, bank]), temperature, backend=backend)
    torch.testing.assert_close(found, whole, rtol=1e-13, atol=1e-13)
    for a, b in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(whole, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("offset", [-(10**30), -7, -3, 0, 2, 5, 10**30])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_offsets_before_inside_and_after_a_block(backend, offset) -> None:
    rows, columns, temperature = _leaves()
    columns = columns[:5]
    positives, row_lse, column_lse = F.partial_lse(
        rows, columns, temperature, offset=offset, positive_in_denominator=False, backend=backend
    )
    scores = (rows @ columns.T / temperature).detach()
    for i in range(len(rows)):
        here = 0 <= i + offset < len(columns)
        assert positives[i].item() == pytest.approx(scores[i, i + offset].item() if here else 0.0, rel=1e-14)
        if here:
            scores[i, i + offset] = -torch.inf
    torch.testing.assert_close(row_lse, torch.logsumexp(scores, 1), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(column_lse, torch.logsumexp(scores, 0), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_rows_and_columns_of_nothing(backend) -> None:
    """A single positive that is left out leaves a sum of nothing, whose weights are zero and not NaN."""
    rows, columns, temperature = _leaves()
    found = F.partial_lse(rows[:2], columns[:1], temperature, offset=0, positive_in_denominator=False, backend=backend)
    assert found[1][0] == -torch.inf
    merged = torch.logaddexp(found[1], torch.zeros(2, dtype=torch.float64)).sum() + found[2].sum()
    assert all(g.isfinite().all() for g in torch.autograd.grad(merged, (rows, columns, temperature)))
