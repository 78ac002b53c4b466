"""Scores and reductions as files: what they import, what is listed, and what their formulas mean."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mibfast import functional as F
from mibfast import losses
from mibfast.kernels.pairwise import scores

ROOT = Path(__file__).parents[2]


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


def _walk_through() -> str:
    """The code of the section on scores, block by block: marked `py`, since `python` marks examples."""
    section = (ROOT / "docs" / "architecture.md").read_text().split("## Adding a score\n")[1].split("\n## ")[0]
    return "\n\n\n".join(re.findall(r"```py\n(.*?)\n```", section, re.DOTALL)) + "\n"


@pytest.mark.slow
def test_the_walk_through_adds_a_score(tmp_path) -> None:
    """The document's blocks are the lines of a score, and in a checkout of one's own they make another one."""
    assert _walk_through() == (ROOT / "kernels" / "pairwise" / "scores" / "squared_distance.py").read_text()
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    for name in ("mibfast", "kernels"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=ignored)
    folder = tmp_path / "kernels" / "pairwise" / "scores"
    (folder / "walked_through.py").write_text(_walk_through())
    listed = re.sub(
        r"( +)squared_distance,\n", r"\1squared_distance,\n\1walked_through,\n", (folder / "__init__.py").read_text()
    )
    (folder / "__init__.py").write_text(listed)
    code = """
import importlib.util
import torch
from mibfast import functional as F, information, losses

q, k = (torch.randn(7, 4, requires_grad=True) for _ in range(2))
for backend in ("cpu", "reference", *["triton"] * (importlib.util.find_spec("triton") is not None)):
    results = []
    for score in ("squared_distance", "walked_through"):
        loss = F.info_nce(q, k, 0.5, score=score, symmetric=True, backend=backend)
        results.append((loss, *torch.autograd.grad(loss, (q, k))))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True)), backend
assert losses.InfoNCELoss(score="walked_through")(q, k).isfinite()
assert information.SeparableCritic(4, 4, score="walked_through")(q, k).shape == (7, 7)
print("in", F.__file__)
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == f"in {tmp_path / 'mibfast' / 'functional.py'}"
