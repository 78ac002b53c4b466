"""`torch.func`, forward-mode derivatives and tracing: the same numbers, or an error that says what to use instead."""

import contextlib
import warnings

import pytest
import torch
from operations import NAMES, OPERATIONS, inputs, refusing
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from mibfast import functional as F
from mibfast import losses


def _case(name: str, seed: int = 0):
    """The operation on kernels, values for it, and the places of those that it uses."""
    leaves = inputs(5, 4, seed=seed)

    def operation(*x):
        return OPERATIONS[name](*x, backend="cpu")

    gradients = torch.autograd.grad(operation(*leaves).sum(), leaves, allow_unused=True)
    return operation, [x.detach() for x in leaves], {k: g for k, g in enumerate(gradients) if g is not None}


@pytest.mark.parametrize("name", NAMES)
def test_grad_and_vjp(name) -> None:
    operation, values, expected = _case(name)
    found = torch.func.grad(lambda *x: operation(*x).sum(), argnums=tuple(expected))(*values)
    torch.testing.assert_close(found, tuple(expected.values()))
    result, pull_back = torch.func.vjp(operation, *values)
    for k, gradient in expected.items():
        torch.testing.assert_close(pull_back(torch.ones_like(result))[k], gradient)


def _forms_its_gradient(result: torch.Tensor) -> bool:
    """Whether it is a mean, whose gradient is formed with it, so that the backward only scales."""
    return "WithGradient" in type(result.grad_fn).__name__


@pytest.mark.parametrize("name", NAMES)
def test_jacobians(name) -> None:
    operation, (first, *others), _ = _case(name)

    def of_first(x):
        return operation(x, *others)

    expected = torch.autograd.functional.jacobian(of_first, first)
    torch.testing.assert_close(torch.func.jacrev(of_first)(first), expected)
    formed = _forms_its_gradient(of_first(first.clone().requires_grad_()))
    refused = pytest.raises(RuntimeError, match=f"^{refusing(name)}: gradients in batches.* need torch.func")
    with contextlib.nullcontext() if formed else refused:
        found = torch.autograd.functional.jacobian(of_first, first, vectorize=True)
    if formed:
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_vmap(name) -> None:
    operation, values, _ = _case(name)
    more = [x.detach() for x in inputs(5, 4, seed=1)]
    both = [
        torch.stack(pair, 1) if x.ndim else torch.stack(pair) for x, *pair in zip(values, values, more, strict=True)
    ]
    dims = tuple(min(x.ndim, 1) for x in values)
    found = torch.func.vmap(operation, in_dims=dims)(*both)
    torch.testing.assert_close(found, torch.stack([operation(*values), operation(*more)]))

    def gradient(*x):
        return torch.func.grad(lambda first: operation(first, *x[1:]).sum())(x[0])

    expected = torch.stack([gradient(*values), gradient(*more)])
    torch.testing.assert_close(torch.func.vmap(gradient, in_dims=dims)(*both), expected)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_of_first_order_backward_is_refused(name) -> None:
    operation, (first, *others), _ = _case(name)

    def of_first(x):
        return operation(x, *others).sum()

    def dual(x):
        with forward_ad.dual_level():
            return of_first(forward_ad.make_dual(x, torch.ones_like(x)))

    refused = {
        dual: "forward-mode",
        lambda x: torch.func.jvp(of_first, (x,), (torch.ones_like(x),)): "forward-mode",
        torch.func.hessian(of_first): "forward-mode",
        torch.func.jacrev(torch.func.grad(of_first)): "second",
    }
    for derivative, kind in refused.items():
        expected = rf'^[a-z_]+: the {kind} derivative is not implemented .*backend="reference"'
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of what torch itself calls
            with pytest.raises(RuntimeError, match=expected):
                derivative(first)


@pytest.mark.parametrize("name", NAMES)
def test_traced_graphs_hold_no_number_of_their_example(name) -> None:
    operation, values, expected = _case(name)
    other = [x.detach() for x in inputs(5, 4, seed=1)]

    def with_gradients(*x):
        x = [each.detach().requires_grad_() for each in x]
        result = operation(*x)
        return result, *torch.autograd.grad(result.sum(), [x[k] for k in expected])

    for found, right in zip(make_fx(with_gradients)(*values)(*other), with_gradients(*other), strict=True):
        torch.testing.assert_close(found, right)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_jit_trace_is_refused(name) -> None:
    """It would record the numbers of its example as constants."""
    operation, values, _ = _case(name)
    with pytest.raises(RuntimeError, match=r"^[a-z_]+: torch.jit.trace cannot .* use torch.export"):
        torch.jit.trace(lambda *x: operation(*x), tuple(values), check_trace=False)


@pytest.mark.parametrize(
    "loss",
    [losses.OVAIBLoss(), losses.PairwiseCLIPLoss(), losses.GRAMLoss(), losses.SigLIPLoss(), losses.SymileLoss()],
    ids=lambda loss: type(loss).__name__,
)
def test_exported_programs_are_exact(loss) -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loss = loss

        def forward(self, a, b, c):
            return self.loss([a, b, c])

    example, other = ([torch.randn(6, 4) for _ in range(3)] for _ in range(2))
    exported = torch.export.export(Model(), tuple(example))
    torch.testing.assert_close(exported.module()(*other), loss(other))


def test_vmap_of_nothing_is_refused() -> None:
    with pytest.raises(RuntimeError, match="vmap needs a batch of at least one element"):
        torch.func.vmap(lambda x: F.info_nce(x, torch.ones(6, 5)))(torch.zeros(0, 6, 5))
