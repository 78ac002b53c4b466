"""`torch.compile(fullgraph=True)`: the same numbers, whole graphs."""

import pytest
import torch
from operations import NAMES, OPERATIONS, inputs
from torch.utils._python_dispatch import TorchDispatchMode

from mibfast import functional as F
from mibfast import losses

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "name",
    [
        "info_nce, smoothed",
        "info_nce, symmetric",
        "one_vs_all_info_nce",
        "one_vs_all_info_nce, pairwise, each",
        "projection_score",
        "ridge_projection",
        "leave_one_out_projection",
        "gaussian_kl, prior",
        "product_of_experts",
        "one_vs_all_minimality",
        "reparameterised_gaussian",
        "token_attention",
        "symile_info_nce",
        "symile_info_nce, shuffled",
        "barlow_twins",
        "gram_volume",
        "gram_info_nce",
        "triangle_area",
        "triangle_info_nce",
        "siglip",
        "siglip, each",
        "critic_log_sum_exp, columns, clipped",
        "critic_log_sum_exp, additive",
        "critic_softplus, two layers",
        "critic_log_mean_exp, positive out",
        "critic_mean_softplus, log_mean_exp, positive out",
    ],
)
def test_operations(name) -> None:
    # What one operation compiled counts against the recompilations of another that shares its code.
    torch._dynamo.reset()
    leaves = inputs(7, 5, torch.float32)
    operation = OPERATIONS[name]
    expected = operation(*leaves)
    gradients = torch.autograd.grad(expected.sum(), leaves, allow_unused=True)
    found = torch.compile(operation, fullgraph=True, backend="aot_eager")(*leaves)
    torch.testing.assert_close(found, expected)
    for a, b in zip(torch.autograd.grad(found.sum(), leaves, allow_unused=True), gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "loss",
    [
        losses.OVAIBLoss(),
        losses.LearnedProjectorOVAIBLoss(3, 8),
        losses.PairwiseCLIPLoss(learnable_temperature=True),
        losses.GRAMLoss(learnable_temperature=True, anchor=None),
        losses.TRIANGLELoss(anchor=1),
        losses.SigLIPLoss(),
    ],
    ids=repr,
)
def test_losses_under_inductor(loss) -> None:
    views = [torch.randn(16, 8, requires_grad=True) for _ in range(3)]
    leaves = [*views, *loss.parameters()]
    expected = torch.autograd.grad(loss(views), leaves)
    for a, b in zip(torch.autograd.grad(torch.compile(loss, fullgraph=True)(views), leaves), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_registered_operations_are_what_torch_expects(name, dtype) -> None:
    """Their schema, and that fake kernels give the shapes and dtypes that kernels give: forward, backward, both."""
    calls = []

    class Recorded(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            if function.namespace == "mibfast":
                calls.append((function, arguments))
            return function(*arguments, **(keywords or {}))

    leaves = inputs(5, 4, dtype)
    with Recorded():
        result = OPERATIONS[name](*leaves, backend="cpu").sum()
        result.backward()
    with torch.no_grad(), Recorded():
        OPERATIONS[name](*leaves, backend="cpu")
    assert calls
    for function, arguments in calls:
        torch.library.opcheck(function, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("m", [2, 3, 4])
def test_any_number_of_arguments_compiles_where_no_gradient_is_needed(m) -> None:
    """`torch.compile` leaves the context out of a Function's forward that has as many parameters as arguments."""
    z = [torch.randn(6, 4) for _ in range(m)]
    operations = {
        "one_vs_all_info_nce": lambda *z: F.one_vs_all_info_nce(z, reduction="none"),
        "one_vs_all_minimality": lambda *z: F.one_vs_all_minimality(z),
        "leave_one_out_projection": lambda *z: F.leave_one_out_projection(z),
        "symile_info_nce": lambda *z: F.symile_info_nce(z, 2.0),
        "product_of_experts": lambda *z: F.product_of_experts(z, z)[0],
        "reparameterised_gaussian": lambda *z: F.reparameterised_gaussian(z, z, z)[0],
        "gram_volume": lambda a, *others: F.gram_volume(a, others),
        "gram_info_nce": lambda a, *others: F.gram_info_nce(a, others),
        "gaussian_kl": lambda *z: F.gaussian_kl(*z[:2], *(z[2:] if m == 4 else ())),
        "critic_log_sum_exp": lambda *z: F.critic_log_sum_exp(*z[:2])[1],
        "critic_softplus": lambda *z: F.critic_softplus(*z[:2])[1],
        "critic_log_mean_exp": lambda *z: F.critic_log_mean_exp(*z[:2]),
        "critic_mean_softplus": lambda *z: F.critic_mean_softplus(*z[:2]),
    }
    if m == 3:
        operations["triangle_area"] = F.triangle_area
        operations["triangle_info_nce"] = F.triangle_info_nce
    if m > 2:
        # A weight, and a bias.
        operations["critic_log_sum_exp"] = lambda u, v, w, *b: F.critic_log_sum_exp(
            u, v, w[0], *(x[0, 0] for x in b[:1]), score="additive"
        )[1]
    failed = []
    for name, operation in operations.items():
        torch.compiler.reset()
        try:
            with torch.no_grad():
                found = torch.compile(operation, fullgraph=True, backend="eager")(*z)
            torch.testing.assert_close(found, operation(*z))
        except Exception as error:
            failed.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
    assert not failed
