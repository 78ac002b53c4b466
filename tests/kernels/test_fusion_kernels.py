"""What a fusion does between its matrix products: samples with their divergences, and attention among few tokens.

That both agree with their formulas, in every dtype and with any strides, is tested with all operations.
"""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch
from torch import Tensor

from mibfast import functional as F
from mibfast.nn.bounded import bounded

interpreted = pytest.mark.skipif(
    torch.cuda.is_available() or importlib.util.find_spec("triton") is None,
    reason="Triton is not there, or there is a GPU and its interpreter is off",
)
TRITON = pytest.param("triton", marks=interpreted)
BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference", TRITON])


def gaussians(*shape: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.randn(*shape, dtype=dtype, requires_grad=True) for _ in range(3)]


def gradients_of(results: list[Tensor], leaves: list[Tensor], seed: int = 3) -> list[Tensor]:
    """For upstream gradients that differ everywhere."""
    generator = torch.Generator().manual_seed(seed)
    upstream = [torch.randn(x.shape, dtype=torch.float64, generator=generator).to(x.dtype) for x in results]
    return list(torch.autograd.grad(results, leaves, upstream))


@BACKENDS
def test_a_sample_and_its_divergence_are_those_of_torch_distributions(backend) -> None:
    mean, logvar, noise = gaussians(6, 5)
    sample, divergence = F.reparameterised_gaussian(mean, logvar, noise, backend=backend)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, (logvar / 2).exp()), normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(divergence, expected)
    torch.testing.assert_close((sample - mean) / (logvar / 2).exp(), noise)


@BACKENDS
@pytest.mark.parametrize("m", [2, 3])
def test_modalities_apart_stacked_and_one_by_one_are_the_same(m, backend) -> None:
    stacked = gaussians(m, 4, 6)
    sample, divergence = F.reparameterised_gaussian(*stacked, backend=backend)
    gradients = gradients_of([sample, divergence], stacked)
    apart = [[x[k].detach().clone().requires_grad_() for k in range(m)] for x in stacked]
    results = F.reparameterised_gaussian(*apart, backend=backend)
    assert results[0].shape == (m, 4, 6)
    assert results[1].shape == (m, 4)
    assert results[0].transpose(0, 1).is_contiguous()
    torch.testing.assert_close(results[0], sample)
    torch.testing.assert_close(results[1], divergence)
    found = gradients_of(list(results), [x for group in apart for x in group])
    torch.testing.assert_close(torch.stack(found), torch.cat(gradients))
    for k in range(m):
        alone = F.reparameterised_gaussian(*(x[k] for x in stacked), backend=backend)
        torch.testing.assert_close(alone[0], sample[k])
        torch.testing.assert_close(alone[1], divergence[k])


@BACKENDS
@pytest.mark.parametrize("used", [0, 1])
def test_one_result_alone_has_its_gradient(used, backend) -> None:
    leaves = gaussians(3, 4)
    result = F.reparameterised_gaussian(*leaves, backend=backend)[used]
    expected = F.reparameterised_gaussian(*leaves, backend="reference")[used]
    found = torch.autograd.grad(result.square().sum(), leaves, materialize_grads=True)
    for a, b in zip(found, torch.autograd.grad(expected.square().sum(), leaves, materialize_grads=True), strict=True):
        torch.testing.assert_close(a, b)


@BACKENDS
def test_bounded_log_variances(backend) -> None:
    """Inside as without bounds; outside clamped, with the gradients that lead back."""
    mean, logvar, noise = gaussians(20, 8)
    low, high = -0.5, 0.4
    leaves = [mean, logvar, noise]
    truth = F.reparameterised_gaussian(mean, bounded(logvar, low, high), noise, backend="reference")
    found = F.reparameterised_gaussian(mean, logvar, noise, logvar_bounds=(low, high), backend=backend)
    for a, b in zip(found, truth, strict=True):
        torch.testing.assert_close(a, b)
    exact = gradients_of(list(truth), leaves)
    for a, b in zip(gradients_of(list(found), leaves), exact, strict=True):
        torch.testing.assert_close(a, b)
    outside = (logvar < low) | (logvar > high)
    # Some of each kind, or nothing was tested.
    assert (exact[1][outside] == 0).any()
    assert (exact[1][outside] != 0).any()
    plain = F.reparameterised_gaussian(mean, logvar, noise, backend=backend)[0]
    torch.testing.assert_close(found[0][~outside], plain[~outside])


@BACKENDS
def test_bounds_do_not_count_columns_that_are_not_there(backend) -> None:
    """A tile is wider than a row, and zero is outside the bounds."""
    mean, logvar, noise = torch.zeros(3, 5), torch.full((3, 5), 3.0), torch.zeros(3, 5)
    _, divergence = F.reparameterised_gaussian(mean, logvar, noise, logvar_bounds=(2.0, 4.0), backend=backend)
    torch.testing.assert_close(divergence, torch.full((3,), 2.5 * (math.expm1(3.0) - 3.0)))


@pytest.mark.parametrize("backend", ["cpu", TRITON])
def test_divergences_near_and_far_from_the_prior(backend) -> None:
    """Of mean 0, (e^l - 1 - l) / 2 with gradient (e^l - 1) / 2: nothing may cancel as l goes to zero."""
    near = torch.logspace(-12, 0, 49, dtype=torch.float64)
    logvar = torch.cat([near, -near, torch.linspace(-80, 80, 161, dtype=torch.float64)])
    logvar = logvar[logvar != 0].float()[:, None].requires_grad_()
    zero = torch.zeros_like(logvar)
    _, divergence = F.reparameterised_gaussian(zero, logvar, zero, backend=backend)
    (gradient,) = torch.autograd.grad(divergence.sum(), logvar)
    wide = logvar.detach().double().squeeze(1)
    series = wide**2 * (0.5 + wide / 6 + wide**2 / 24 + wide**3 / 120)
    truth = 0.5 * torch.where(wide.abs() < 1e-3, series, torch.expm1(wide) - wide)
    eps = torch.finfo(torch.float32).eps
    assert ((divergence.double() - truth) / truth).abs().max() <= 24 * eps + 1e-12
    exact = 0.5 * torch.expm1(wide)
    assert ((gradient.double().squeeze(1) - exact) / exact).abs().max() <= 16 * eps


@BACKENDS
def test_extreme_gaussians(backend) -> None:
    logvar = torch.tensor([[0.0, -math.inf], [0.0, 1.0], [math.nan, 0.0], [200.0, 0.0]])
    mean = torch.tensor([[1e4, 1.0], [1e-4, 0.0], [0.0, 0.0], [0.0, 0.0]])
    sample, divergence = F.reparameterised_gaussian(mean, logvar, torch.ones(4, 2), backend=backend)
    assert sample[0].tolist() == [1e4 + 1, 1.0]
    assert divergence.isinf().tolist() == [True, False, False, True]
    assert divergence.isnan().tolist() == [False, False, True, False]
    assert sample[2].isnan().tolist() == [True, False]


@BACKENDS
def test_mappings_are_paired_by_their_keys(backend) -> None:
    groups = [[x.detach() for x in gaussians(2, 3)[:2]] for _ in range(3)]
    mean, logvar, noise = (dict(zip("ab", group, strict=True)) for group in groups)
    turned = [dict(reversed(x.items())) for x in (logvar, noise)]
    found = F.reparameterised_gaussian(mean, *turned, backend=backend)
    for a, b in zip(found, F.reparameterised_gaussian(*groups, backend=backend), strict=True):
        torch.testing.assert_close(a, b)


@BACKENDS
@pytest.mark.parametrize("bounds", [(-math.inf, 0.4), (-0.5, math.inf)])
def test_a_bound_of_one_side(bounds, backend) -> None:
    mean, logvar, noise = gaussians(20, 8)
    found = F.reparameterised_gaussian(mean, logvar, noise, logvar_bounds=bounds, backend=backend)
    truth = F.reparameterised_gaussian(mean, logvar.clamp(*bounds), noise, backend="reference")
    for a, b in zip(found, truth, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", ["cpu", TRITON])
def test_deviations_beyond_float32_are_infinite_or_zero(backend) -> None:
    logvar = torch.tensor([[174.0, 176.0, 176.7, 177.0, 177.3, 177.5, 200.0, 1e30], [-174.0, -176.0, *[-250.0] * 6]])
    mean, noise = torch.zeros(2, 8), torch.tensor([[1.0], [-1.0]]).expand(2, 8).clone().requires_grad_()
    sample, _ = F.reparameterised_gaussian(mean, logvar, noise, backend=backend)
    truth, _ = F.reparameterised_gaussian(mean, logvar, noise, backend="reference")
    assert truth[0].isinf().tolist() == [False] * 5 + [True] * 3
    # What is subnormal may be zero.
    torch.testing.assert_close(sample, truth, rtol=2e-6, atol=1.2e-38)
    assert (sample[1, 2:] == 0).all()
    (found,), (exact,) = (torch.autograd.grad(x.sum(), noise) for x in (sample, truth))
    torch.testing.assert_close(found, exact, rtol=2e-6, atol=1.2e-38)


def test_rows_longer_than_a_partial_sum() -> None:
    mean, logvar, noise = gaussians(3, 5000, dtype=torch.float32)
    _, divergence = F.reparameterised_gaussian(mean, logvar, noise, backend="cpu")
    wide = [x.detach().double() for x in (mean, logvar, noise)]
    truth = F.reparameterised_gaussian(*wide, backend="reference")[1]
    assert ((divergence - truth) / truth).abs().max() <= 1e-6


@BACKENDS
@pytest.mark.parametrize("m", [1, 2, 3, 8])
def test_attention_is_that_of_torch(m, backend) -> None:
    tokens = gaussians(5, m, 6)
    truth = torch.nn.functional.scaled_dot_product_attention(*tokens)
    found = F.token_attention(*tokens, backend=backend)
    torch.testing.assert_close(found, truth)
    for a, b in zip(gradients_of([found], tokens), gradients_of([truth], tokens), strict=True):
        torch.testing.assert_close(a, b)


@BACKENDS
@pytest.mark.parametrize("scale", [1e-4, 1.0, 30.0, 1e4])
def test_attention_of_small_and_large_tokens(scale, backend) -> None:
    """With an error of no more than what a rounding of the scores makes of each weight."""
    tokens = [scale * x.detach() for x in gaussians(6, 3, 16, dtype=torch.float32)]
    wide = [x.double() for x in tokens]
    found, truth = F.token_attention(*tokens, backend=backend), F.token_attention(*wide, backend="reference")
    scores = (wide[0] @ wide[1].mT).abs().max() / 4
    rounding = torch.finfo(torch.float32).eps
    assert (found - truth).abs().max() <= 8 * rounding * (1 + scores) * wide[2].abs().max()


@BACKENDS
def test_equal_and_zero_tokens_get_equal_weights(backend) -> None:
    key, value = torch.randn(4, 1, 5).expand(4, 3, 5), torch.randn(4, 3, 5)
    for query, keys in ((torch.randn(4, 3, 5), key), (torch.zeros(4, 3, 5), torch.randn(4, 3, 5))):
        leaves = [x.clone().requires_grad_() for x in (query, keys, value)]
        found = F.token_attention(*leaves, backend=backend)
        torch.testing.assert_close(found, value.mean(1, keepdim=True).expand(4, 3, 5))
        assert all(g.isfinite().all() for g in gradients_of([found], leaves))


@BACKENDS
@pytest.mark.parametrize("position", [0, 1, 2])
def test_nan_stays_in_its_sample(position, backend) -> None:
    leaves = gaussians(3, 2, 5, dtype=torch.float32)
    with torch.no_grad():
        leaves[position][1, 0, 3] = math.nan
    found = F.token_attention(*leaves, backend=backend)
    assert found.isnan().any(2).any(1).tolist() == [False, True, False]
    for gradient in gradients_of([found], leaves):
        assert not gradient[[0, 2]].isnan().any()
    # Every query sees every key and value, and none the other queries.
    assert found[1].isnan().any(1).tolist() == ([True, False] if position == 0 else [True, True])


def test_tokens_as_a_projection_of_all_three_leaves_them() -> None:
    together = torch.randn(5, 3, 12, dtype=torch.float64, requires_grad=True)
    found = F.token_attention(*together.chunk(3, dim=-1), backend="cpu")
    truth = F.token_attention(*together.chunk(3, dim=-1), backend="reference")
    torch.testing.assert_close(found, truth)
    (a,), (b,) = gradients_of([found], [together]), gradients_of([truth], [together])
    torch.testing.assert_close(a, b)


def test_modalities_in_a_whole_graph() -> None:
    leaves = [x for _ in range(3) for x in gaussians(4, 5)[:2]]

    def both(*x: Tensor) -> tuple[Tensor, Tensor]:
        return F.reparameterised_gaussian(x[:2], x[2:4], x[4:], logvar_bounds=(-1.0, 1.0))

    found = torch.compile(both, fullgraph=True, backend="aot_eager")(*leaves)
    expected = both(*leaves)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(gradients_of(list(found), leaves), gradients_of(list(expected), leaves), strict=True):
        torch.testing.assert_close(a, b)


def test_results_repeat_bit_for_bit() -> None:
    """On several threads, each with samples of its own."""
    leaves = gaussians(2000, 2, 64, dtype=torch.float32)
    found = []
    for _ in range(2):
        results = [*F.reparameterised_gaussian(*leaves), F.token_attention(*leaves)]
        found.append([*results, *gradients_of(results, leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


A, TOKENS = torch.randn(6, 4), torch.randn(6, 2, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: F.reparameterised_gaussian(A, A[:5], A), ValueError, r"mean and logvar must have one shape"),
        (lambda: F.reparameterised_gaussian(A, A, A.double()), TypeError, r"mean and noise must have one dtype"),
        (lambda: F.reparameterised_gaussian(A, A, 0.5), TypeError, r"noise must be a tensor \[..., d\], got float 0.5"),
        (lambda: F.reparameterised_gaussian([A], [A], [A]), ValueError, r"must hold at least 2 modalities, got 1"),
        (
            lambda: F.reparameterised_gaussian([A, A], [A, A, A], [A, A]),
            ValueError,
            r"expected as many means as logvars and noises, got 2, 3, 2",
        ),
        (
            lambda: F.reparameterised_gaussian({"a": A, "b": A}, {"b": A, "a": A}, {"a": A, "c": A}),
            ValueError,
            r"mean and noise must have the same keys, got \['a', 'b'\] and \['a', 'c'\]",
        ),
        (
            lambda: F.reparameterised_gaussian({"a": A, "b": A}, [A, A], [A, A]),
            TypeError,
            r"must all be tensors, .* got a mapping, a sequence, a sequence",
        ),
        (
            lambda: F.reparameterised_gaussian(torch.stack([A, A]), [A, A], [A, A]),
            TypeError,
            r"must all be tensors, .* got a tensor, a sequence, a sequence",
        ),
        (
            lambda: F.reparameterised_gaussian(A, A, A, logvar_bounds=(math.inf, math.inf)),
            ValueError,
            r"logvar_bounds must be finite, got inf",
        ),
        (
            lambda: F.reparameterised_gaussian(A, A, A, logvar_bounds=(1.0, 1.0)),
            ValueError,
            r"logvar_bounds must be \(low, high\) with low < high, got \(1.0, 1.0\)",
        ),
        (lambda: F.reparameterised_gaussian(A, A, A, logvar_bounds=3.0), TypeError, r"\(low, high\), got float 3.0"),
        (lambda: F.token_attention(A, A, A), ValueError, r"query must be \[N, M, k\], got a tensor of shape \[6, 4\]"),
        (
            lambda: F.token_attention(TOKENS, TOKENS[:, :1], TOKENS),
            ValueError,
            r"query and key must have one shape.*\[6, 2, 4\].*\[6, 1, 4\]",
        ),
        (
            lambda: F.token_attention(TOKENS, TOKENS, TOKENS.to("meta")),
            ValueError,
            r"query and value must be on one device.*on cpu.*on meta",
        ),
    ],
)
def test_bad_input(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


@interpreted
def test_what_the_triton_kernels_cannot_take_is_said() -> None:
    tokens = torch.randn(1, 8, 1025)
    with pytest.raises(RuntimeError, match=r"token_attention: .* M = 8 and k = 1025, .* take M k <= 8192 of"):
        F.token_attention(tokens, tokens, tokens, backend="triton")
