"""Training with the fused losses is training with the plain ones: the same curve of the loss over 200 steps.

A small error of a gradient that no single call shows adds up over steps, and so does rounding. In float64 rounding
stays far below 1e-8; in float32 the curves of the plain losses on the same samples in other orders, which change
nothing but the order of sums, say how far rounding alone takes a run from the float64 one.
"""

import pytest
import torch
from torch import nn

from mibfast import losses

pytestmark = pytest.mark.slow

STEPS, BATCHES, N, D = 200, 4, 16, 16

OBJECTIVES = {
    "OVA-IB, per-sample keys": lambda backend: losses.OVAIBLoss(0.2, backend=backend),
    "OVA-IB, pairwise keys": lambda backend: losses.OVAIBLoss(0.2, keys="pairwise", backend=backend),
    "InfoNCE": lambda backend: losses.InfoNCELoss(symmetric=True, learnable_temperature=True, backend=backend),
    "pairwise CLIP": lambda backend: losses.PairwiseCLIPLoss(learnable_temperature=True, backend=backend),
    "Symile": lambda backend: losses.SymileLoss(learnable_scale=True, backend=backend),
    "GRAM": lambda backend: losses.GRAMLoss(learnable_temperature=True, backend=backend),
    "TRIANGLE": lambda backend: losses.TRIANGLELoss(learnable_temperature=True, backend=backend),
    "SigLIP": lambda backend: losses.SigLIPLoss(backend=backend),
    "Barlow Twins": lambda backend: losses.BarlowTwinsLoss(backend=backend),
}


def _curve(name: str, backend: str, dtype: torch.dtype, order: torch.Tensor | slice = slice(None)) -> torch.Tensor:
    """The losses [200] of a run that differs from others in backend, dtype and the order of samples alone."""
    torch.manual_seed(0)
    # InfoNCE and Barlow Twins are losses of two views.
    m = 2 if name in ("InfoNCE", "Barlow Twins") else 3
    # Views of a common signal, each through a mixing of its own and with noise of its own: [batches, M, N, 10].
    signal, noise = torch.randn(BATCHES, 1, N, 5), torch.randn(BATCHES, m, N, 10)
    batches = (torch.tanh(signal @ torch.randn(m, 5, 10)) + 0.3 * noise)[:, :, order].to(dtype)
    # Encoders of two layers, one a view. The biases keep embeddings from being orthogonal, where the projections of
    # OVA-IB vanish and rounding decides on their directions.
    shapes = ((10, 16), (16, D), (1, D))
    encoders = [nn.Parameter(0.3 * torch.randn(m, *shape).to(dtype)) for shape in shapes]
    objective = OBJECTIVES[name](backend).to(dtype)
    # The epsilon keeps Adam from making steps of the rounding of gradients that are zero.
    optimiser = torch.optim.Adam([*encoders, *objective.parameters()], lr=3e-3, eps=1e-5)
    curve = torch.empty(STEPS, dtype=torch.float64)
    for step in range(STEPS):
        z = (torch.tanh(batches[step % BATCHES] @ encoders[0]) @ encoders[1] + encoders[2]).unbind()
        loss = objective(*z) if name == "InfoNCE" else objective(z)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        curve[step] = loss.item()
    return curve


@pytest.mark.parametrize("name", OBJECTIVES)
def test_training_takes_the_same_course(name) -> None:
    truth = _curve(name, "reference", torch.float64)
    scale = truth.abs().max()
    # What is compared is a run that learns.
    assert truth[-BATCHES:].mean() < truth[:BATCHES].mean() - 0.2 * scale
    assert (_curve(name, "cpu", torch.float64) - truth).abs().max() <= 1e-8 * scale
    orders = (torch.arange(N), torch.arange(N).flip(0))
    plain = [(_curve(name, "reference", torch.float32, order) - truth).abs().max() for order in orders]
    found = (_curve(name, "cpu", torch.float32) - truth).abs().max()
    # Two runs sample the spread of all orders: another may stray three times as far.
    assert found <= 3 * max(plain) + 4 * torch.finfo(torch.float32).eps * scale
