"""Inputs as they come: strides, containers, mixed dtypes.

Each test of strides goes through five layouts in turn, another for each input, in place of one layout for all inputs a
test. That inputs are not written to, and that autocast changes nothing, stands in `test_agreement.py`.
"""

import pytest
import torch
from operations import LAYOUTS, NAMES, OPERATIONS, inputs, strided, value_and_gradients

from mibfast import functional as F
from mibfast import losses


@pytest.mark.parametrize("name", NAMES)
def test_strides(name) -> None:
    """Half of a dtype's digits tell a number that lies elsewhere: in order of other strides, sums may round otherwise.

    Addresses of float32 and of float64 are formed apart; other dtypes are converted to either first.
    """
    for dtype in (torch.float32, torch.float64):
        plain = inputs(9, 6, dtype)
        expected = value_and_gradients(OPERATIONS[name], plain, "cpu")
        tolerance = torch.finfo(dtype).eps ** 0.5
        for turn in range(len(LAYOUTS)):
            for a, b in zip(value_and_gradients(OPERATIONS[name], strided(plain, turn), "cpu"), expected, strict=True):
                assert (a - b).abs().max() <= tolerance * b.abs().max()


def test_expanded_rows_share_their_gradient() -> None:
    row = torch.randn(1, 8, requires_grad=True)
    F.gaussian_kl(row.expand(5, 8), torch.zeros(5, 8), reduction="sum").backward()
    torch.testing.assert_close(row.grad, 5 * row.detach())


def test_a_prior_is_broadcast() -> None:
    mean, logvar = torch.randn(5, 8), torch.randn(5, 8)
    prior = torch.randn(8, requires_grad=True), torch.randn(1, 8, requires_grad=True)
    found = F.gaussian_kl(mean, logvar, *prior, backend="cpu")
    expected = F.gaussian_kl(mean, logvar, *prior, backend="reference")
    torch.testing.assert_close(found, expected)
    for a, b in zip(torch.autograd.grad(found, prior), torch.autograd.grad(expected, prior), strict=True):
        torch.testing.assert_close(a, b)


def test_containers_of_embeddings() -> None:
    stacked = torch.randn(3, 7, 5)
    loss = losses.OVAIBLoss()
    expected = loss(stacked)
    for container in (list(stacked), tuple(stacked), dict(zip("abc", stacked, strict=True))):
        assert torch.equal(loss(container), expected)


def test_mixed_dtypes_work_under_autocast_only() -> None:
    views = [torch.randn(6, 4), torch.randn(6, 4).bfloat16(), torch.randn(6, 4)]
    loss = losses.OVAIBLoss()
    with pytest.raises(TypeError, match=r"OVAIBLoss: embeddings\[0\] and embeddings\[1\] must have one dtype"):
        loss(views)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(views)
    torch.testing.assert_close(found, loss([x.float() for x in views]))
