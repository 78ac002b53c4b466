"""Scores and reductions as files: what they import, what is listed, and what their formulas mean."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from mibfast import functional as F
from mibfast import losses
from mibfast.kernels.pairwise import scores


def test_files_of_scores_import_neither_compiler() -> None:
    """Numba is paid for at the first CPU kernel, and Triton need not be installed."""
    code = """
import sys
from mibfast.kernels.pairwise import reductions, scores
assert scores.SCORES and reductions.REDUCTIONS
assert not {"numba", "triton"} & set(sys.modules), "imported"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_scores_of_embeddings_are_those_with_a_formula() -> None:
    assert scores.OF_EMBEDDINGS == ("inner_product", "squared_distance", "lorentz")
    assert all(scores.SCORES[name].large_is_alike for name in scores.OF_EMBEDDINGS)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_squared_distance_of_unit_vectors_is_their_cosine(backend) -> None:
    """-|q - k|^2 / 2 = q . k - 1: the same loss, whatever the temperature."""
    q, k = (torch.nn.functional.normalize(torch.randn(20, 5, dtype=torch.float64), dim=1) for _ in range(2))
    expected = F.info_nce(q, k, 0.1, symmetric=True, backend=backend)
    found = F.info_nce(q, k, 0.1, score="squared_distance", symmetric=True, backend=backend)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_lorentz_score_is_the_distance_along_a_geodesic(backend) -> None:
    """Through the origin the point at distance r has the space part sinh(r): distances there add up."""
    r = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    direction = torch.tensor([0.6, 0.8], dtype=torch.float64)
    points = torch.sinh(r)[:, None] * direction
    values, _ = F.top_k(points, -points, 3, score="lorentz", backend=backend)
    expected = -(r[:, None] + r).sort(1).values
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("score", ["squared_distance", "lorentz"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_distance_of_zero_has_a_finite_gradient(backend, score) -> None:
    q = torch.randn(6, 4, dtype=torch.float32, requires_grad=True)
    k = q.detach().clone().requires_grad_()
    loss = F.info_nce(q, k, 0.1, score=score, symmetric=True, backend=backend)
    assert loss.isfinite()
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, (q, k)))


@pytest.mark.parametrize("score", scores.OF_EMBEDDINGS)
def test_losses_take_scores_by_name(score) -> None:
    q, k = torch.randn(9, 4), torch.randn(9, 4)
    loss = losses.InfoNCELoss(0.3, score=score, symmetric=True, normalize=False)
    assert torch.equal(loss(q, k), F.info_nce(q, k, 0.3, score=score, symmetric=True))
    assert f"score={score!r}" in repr(loss)


def test_an_unknown_score_is_named_with_those_there_are() -> None:
    for call in (
        lambda: losses.InfoNCELoss(score="cosine"),
        lambda: F.info_nce(torch.eye(3), torch.eye(3), score="cosine"),
        lambda: F.partial_lse(torch.eye(3), torch.eye(3), score="cosine"),
    ):
        with pytest.raises(ValueError, match="score must be one of 'inner_product', 'squared_distance', 'lorentz'"):
            call()
