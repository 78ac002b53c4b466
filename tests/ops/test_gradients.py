"""Derivatives: checked against differences, for every subset of inputs; second ones right or refused."""

from itertools import product

import pytest
import torch
from operations import NAMES, OPERATIONS, inputs, refusing

from mibfast import BackendError
from mibfast import functional as F


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name, backend) -> None:
    leaves = inputs(5, 4)
    assert torch.autograd.gradcheck(lambda *x: OPERATIONS[name](*x, backend=backend), leaves, fast_mode=False)


@pytest.mark.parametrize("name", NAMES)
def test_every_subset_of_inputs_that_need_gradients(name) -> None:
    operation = OPERATIONS[name]
    full = inputs(4, 3)
    expected = operation(*full, backend="cpu")
    gradients = torch.autograd.grad(expected.sum(), full, allow_unused=True)
    for needed in product([False, True], repeat=5):
        leaves = [x.detach().clone().requires_grad_(need) for x, need in zip(full, needed, strict=True)]
        result = operation(*leaves, backend="cpu")
        torch.testing.assert_close(result.detach(), expected.detach(), rtol=1e-13, atol=1e-13)
        used = [x for x, g in zip(leaves, gradients, strict=True) if x.requires_grad and g is not None]
        assert result.requires_grad == bool(used)
        if used:
            result.sum().backward()
        for x, g in zip(leaves, gradients, strict=True):
            if x.requires_grad and g is not None:
                torch.testing.assert_close(x.grad, g, rtol=1e-12, atol=1e-13)
            else:
                assert x.grad is None


@pytest.mark.parametrize("name", NAMES)
def test_backward_twice_gives_the_same(name) -> None:
    leaves = inputs(6, 4, torch.float32)
    result = OPERATIONS[name](*leaves, backend="cpu").sum()
    first = torch.autograd.grad(result, leaves, allow_unused=True, retain_graph=True)
    second = torch.autograd.grad(result, leaves, allow_unused=True)
    assert all(a is b or torch.equal(a, b) for a, b in zip(first, second, strict=True))


def _refused_second(name: str):
    """In a gradient penalty it would otherwise be a silent zero, or a part of the truth."""
    return pytest.raises(BackendError, match=f"^{refusing(name)}: the second derivative is not implemented")


@pytest.mark.parametrize("name", NAMES)
def test_a_second_derivative_by_any_input_is_refused_by_kernels(name) -> None:
    leaves = inputs(5, 4)
    result = OPERATIONS[name](*leaves, backend="cpu").sum()
    gradients = torch.autograd.grad(result, leaves, create_graph=True, allow_unused=True)
    used = [x for x, g in zip(leaves, gradients, strict=True) if g is not None]
    for gradient in filter(lambda g: g is not None, gradients):
        for x in used:
            with _refused_second(name):
                torch.autograd.grad(gradient.square().sum(), x, allow_unused=True, retain_graph=True)
        with _refused_second(name):
            (result + gradient.square().sum()).backward(retain_graph=True)


@pytest.mark.parametrize("name", NAMES)
def test_hessians_and_gradient_penalties_are_refused_by_kernels(name) -> None:
    first, *others = (x.detach() for x in inputs(5, 4))

    def value(x):
        return OPERATIONS[name](x, *others, backend="cpu").sum()

    functional = torch.autograd.functional
    for second in (functional.hessian, lambda f, x: functional.hvp(f, x, x), lambda f, x: functional.vhp(f, x, x)):
        with _refused_second(name):
            second(value, first)
    weight = torch.eye(4, dtype=first.dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(value(first @ weight), weight, create_graph=True)
    with _refused_second(name):
        torch.autograd.grad(gradient.square().sum(), weight)


@pytest.mark.parametrize(
    "name", ["info_nce, symmetric", "one_vs_all_info_nce", "gaussian_kl, prior", "symile_info_nce", "barlow_twins"]
)
def test_reference_has_second_derivatives(name) -> None:
    leaves = inputs(3, 4)
    assert torch.autograd.gradgradcheck(lambda *x: OPERATIONS[name](*x, backend="reference"), leaves)


def test_a_learned_temperature_gets_its_gradient_under_every_reduction() -> None:
    a, b, _, _, tau = inputs(6, 4)
    for options in ({}, {"symmetric": True}, {"reduction": "none"}):
        loss = F.info_nce(a.detach(), b.detach(), tau, **options).sum()
        (found,) = torch.autograd.grad(loss, tau)
        step = 1e-6
        high, low = (F.info_nce(a, b, tau.item() + s, **options).sum() for s in (step, -step))
        assert abs(found.item() - (high - low).item() / (2 * step)) < 1e-6


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(
    "name", [name for name in NAMES if name.split(",")[0].endswith(("info_nce", "siglip", "kl", "exp"))]
)
def test_results_may_be_changed_in_place(name, backend) -> None:
    """As in `loss /= accumulation_steps`."""
    leaves = inputs(5, 4)
    expected = torch.autograd.grad(
        (OPERATIONS[name](*leaves, backend=backend) / 2 + 1).sum(), leaves, allow_unused=True
    )
    result = OPERATIONS[name](*leaves, backend=backend)
    result /= 2
    result += 1
    for a, b in zip(torch.autograd.grad(result.sum(), leaves, allow_unused=True), expected, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)


def test_barlow_twins_leaves_terms_and_views_to_the_caller() -> None:
    """Both may be changed in place before the backward, which needs neither."""
    a, b = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4)
    (expected,) = torch.autograd.grad(sum(F.barlow_twins_terms(a, b)), a)
    views = a * 1, b.clone()
    invariance, redundancy = F.barlow_twins_terms(*views)
    invariance += 1
    redundancy /= 1
    for view in views:
        view.detach().add_(1)
    views[1].add_(1)
    assert torch.equal(torch.autograd.grad(invariance + redundancy, a)[0], expected)
