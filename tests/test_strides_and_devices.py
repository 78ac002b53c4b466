"""Inputs as they come: strides, containers, autocast; nothing is written to."""

import pytest
import torch
from operations import NAMES, OPERATIONS, inputs

from mibfast import functional as F
from mibfast import losses

LAYOUTS = {
    "transposed": lambda x: x.detach().T.contiguous().T,
    "every other column": lambda x: torch.stack([x.detach(), x.detach() + 9], 2).flatten(1)[:, ::2],
    "rows of a wider matrix": lambda x: torch.cat([x.detach(), x.detach() - 5], 1)[:, : x.shape[1]],
    "every other row": lambda x: torch.stack([x.detach(), x.detach() + 9], 1).flatten(0, 1)[::2],
    "offset": lambda x: torch.cat([torch.zeros(3), x.detach().flatten().float()])[3:].view(x.shape).to(x.dtype),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_strides(name, layout) -> None:
    plain = inputs(9, 6, torch.float32)
    expected = OPERATIONS[name](*plain, backend="cpu")
    gradients = torch.autograd.grad(expected.sum(), plain, allow_unused=True)
    strided = [LAYOUTS[layout](x).requires_grad_() for x in plain[:4]] + [plain[4]]
    found = OPERATIONS[name](*strided, backend="cpu")
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    for a, b in zip(torch.autograd.grad(found.sum(), strided, allow_unused=True), gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_not_written_to(name) -> None:
    leaves = inputs(9, 6, torch.float32)
    kept = [x.detach().clone() for x in leaves]
    OPERATIONS[name](*leaves, backend="cpu").sum().backward()
    assert all(torch.equal(x, y) for x, y in zip(leaves, kept, strict=True))


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


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", NAMES)
def test_autocast_changes_nothing(name, backend) -> None:
    leaves = inputs(9, 6, torch.float32)
    expected = OPERATIONS[name](*leaves, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(OPERATIONS[name](*leaves, backend=backend), expected)
