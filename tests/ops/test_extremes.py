"""Where losses usually break: aligned modalities, tiny temperatures, large and small scales, zeros, NaN."""

import importlib.util
import math
from functools import partial

import pytest
import torch

from mibfast import functional as F
from mibfast import information, losses
from mibfast.nn import fusion

KEYS = pytest.mark.parametrize("keys", ["per_sample", "pairwise"])
BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])
interpreted = pytest.mark.skipif(
    torch.cuda.is_available() or importlib.util.find_spec("triton") is None,
    reason="Triton is not there, or there is a GPU and its interpreter is off",
)


def _loss_and_gradients(loss, views):
    leaves = [z.clone().requires_grad_() for z in views]
    value = loss(leaves)
    value.backward()
    return value.detach(), [z.grad for z in leaves]


def _finite(value, gradients) -> bool:
    return bool(value.isfinite()) and all(bool(g.isfinite().all()) for g in gradients)


@BACKENDS
@KEYS
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("normalize", [True, False])
def test_exact_duplicates(normalize, scale, keys, backend) -> None:
    view = scale * torch.randn(40, 16)
    loss = losses.OVAIBLoss(keys=keys, normalize=normalize, backend=backend)
    value, gradients = _loss_and_gradients(loss, [view] * 4)
    assert _finite(value, gradients)
    # Positives of cosine 1, and negatives of any: far below zero at temperature 0.01.
    assert value < -20


@BACKENDS
@KEYS
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_scale_does_not_matter(scale, keys, backend) -> None:
    views = [torch.randn(30, 12, dtype=torch.float64) for _ in range(3)]
    plain = F.one_vs_all_info_nce(views, ridge=0.0, keys=keys, backend=backend)
    scaled = F.one_vs_all_info_nce([scale * z for z in views], ridge=0.0, keys=keys, backend=backend)
    torch.testing.assert_close(scaled, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", ["cpu", "reference", pytest.param("triton", marks=interpreted)])
@pytest.mark.parametrize("ridge", [1e2, 1e4, 1e6, 1e8])
def test_a_ridge_far_above_the_embeddings_cancels_no_cosine(ridge, backend) -> None:
    """Projections shrink, and their direction stays; with ridge 1e-8 that is so of embeddings of norm 1e-7."""
    exact = [torch.randn(3, 6, dtype=torch.float64), torch.randn(2, 2, 6, dtype=torch.float64)]
    wide, narrow = ([x.to(dtype).requires_grad_() for x in exact] for dtype in (torch.float64, torch.float32))
    candidates = wide[0].expand(2, 3, 6)
    contexts = wide[1][:, None].expand(2, 3, 2, 6)
    projections = F.ridge_projection(candidates, contexts, ridge, backend="reference")
    truth = torch.cosine_similarity(candidates, projections, dim=-1, eps=1e-30)
    found = F.projection_score(*narrow, ridge, backend=backend)
    torch.testing.assert_close(found.double(), truth, rtol=2e-6, atol=1e-6)
    weights = torch.randn(2, 3, dtype=torch.float64)
    gradients = torch.autograd.grad((found * weights).sum(), narrow)
    for a, b in zip(gradients, torch.autograd.grad((truth * weights).sum(), wide), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


def _complete(count):
    return torch.ones(12, count, dtype=torch.bool)


# Everything that divides rows by their norms, as functions of two or three views and a backend.
OF_DIRECTIONS = {
    "info_nce": lambda z, b: losses.InfoNCELoss(0.3, backend=b)(*z[:2]),
    "ova-ib": lambda z, b: losses.OVAIBLoss(0.3, backend=b)(z),
    "ova-ib, presence": lambda z, b: losses.OVAIBLoss(0.3, backend=b)(z, _complete(3)),
    "clip-ib": lambda z, b: losses.PairwiseCLIPIBLoss(0.3, backend=b)(z),
    "clip-ib, presence": lambda z, b: losses.PairwiseCLIPIBLoss(0.3, backend=b)(z, _complete(3)),
    "siglip": lambda z, b: losses.SigLIPLoss(3.0, -1.0, backend=b)(z),
    "symile": lambda z, b: losses.SymileLoss(3.0, backend=b)(z),
    "gram": lambda z, b: losses.GRAMLoss(0.3, backend=b)(z),
    "triangle": lambda z, b: losses.TRIANGLELoss(0.3, backend=b)(z),
    "one_vs_all_info_nce": lambda z, b: F.one_vs_all_info_nce(z, 0.3, 0.0, backend=b),
    "one_vs_all_info_nce, pairwise": lambda z, b: F.one_vs_all_info_nce(z, 0.3, 0.0, keys="pairwise", backend=b),
    "one_vs_all_info_nce, presence": lambda z, b: F.one_vs_all_info_nce(z, 0.3, 0.0, presence=_complete(3), backend=b),
    "projection_score": lambda z, b: F.projection_score(z[0], torch.stack(z[1:], 1), 0.0, backend=b),
    "top_k, cosine": lambda z, b: F.top_k(z[0].detach(), z[1].detach(), 3, score="cosine", backend=b)[0],
    "top_k, gram": lambda z, b: F.top_k(
        torch.stack(z[1:], 1).detach(), z[0].detach(), 3, score="gram_volume", backend=b
    )[0],
    "cosine critic": lambda z, b: information.CosineCritic(0.3)(*z[:2]),
    "difference": lambda z, b: fusion.losses.difference(*z[:2]),
}


@BACKENDS
@pytest.mark.parametrize(
    ("dtype", "exponents"), [(torch.float32, (-100, 66, 120)), (torch.float64, (-900, 600, 1000))], ids=str
)
@pytest.mark.parametrize("name", OF_DIRECTIONS)
def test_rows_whose_squares_a_dtype_does_not_hold_keep_their_directions(name, dtype, exponents, backend) -> None:
    """In float32 squares overflow from 1.8e19 and vanish below 1e-23; powers of two change nothing else."""
    if dtype == torch.float64 and name.startswith(("one_vs_all", "projection", "top_k")):
        pytest.skip("Gram matrices and kernels hold the squares of float64 in float64")
    views = [torch.randn(12, 6, dtype=dtype).requires_grad_() for _ in range(3)]
    truth = OF_DIRECTIONS[name](views, backend)
    for exponent in exponents:
        if name == "difference" and exponent < 0:
            continue  # 1e-6 is added to its norms
        # Of rows of all magnitudes at once.
        powers = 2.0 ** torch.tensor([0.0] * 4 + [exponent] * 8, dtype=dtype)[:, None]
        if name == "difference":
            powers = powers[-1:]  # rows are centred first
        scaled = [(z * powers).detach().requires_grad_() for z in views]
        found = OF_DIRECTIONS[name](scaled, backend)
        torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-6)
        if found.requires_grad:
            leaves = views[:2] if name in ("info_nce", "cosine critic", "difference") else views
            upstream = torch.randn_like(truth)
            expected = torch.autograd.grad(truth, leaves, upstream, retain_graph=True)
            for a, b in zip(torch.autograd.grad(found, scaled[: len(leaves)], upstream), expected, strict=True):
                torch.testing.assert_close(a * powers, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", ["cpu", "reference", pytest.param("triton", marks=interpreted)])
@pytest.mark.parametrize("function", [F.partial_lse, partial(F.critic_log_sum_exp, positive=True, columns=True)])
def test_an_infinite_score_leaves_other_columns_what_they_are(function, backend) -> None:
    """Scores [[inf, -inf], [0.5, -1]]: the second column's log-sum-exp is -1."""
    rows, columns = torch.tensor([[torch.inf], [0.5]]), torch.tensor([[1.0], [-2.0]])
    *_, column_lse = function(rows, columns, backend=backend)
    assert abs(column_lse[1].item() + 1.0) < 1e-6


def test_rows_of_infinity_and_nan_are_not_made_finite() -> None:
    row = torch.tensor([math.inf, 1.0])
    for bad in (row, -row, row.flip(0), torch.tensor([math.nan, 1e30])):
        views = [torch.stack([bad, torch.ones(2)]), torch.eye(2)]
        assert losses.PairwiseCLIPLoss()(views).isnan()
        assert information.CosineCritic()(*views)[0].isnan().any()


@BACKENDS
@KEYS
def test_zero_vectors_have_zero_gradients(keys, backend) -> None:
    views = [torch.randn(20, 8) for _ in range(3)]
    views[1][3] = 0
    value, gradients = _loss_and_gradients(losses.OVAIBLoss(keys=keys, backend=backend), views)
    assert _finite(value, gradients)
    assert (gradients[1][3] == 0).all()
    value, gradients = _loss_and_gradients(losses.OVAIBLoss(keys=keys, backend=backend), [torch.zeros(5, 4)] * 3)
    assert abs(value.item() - math.log(4)) < 1e-6
    assert all((g == 0).all() for g in gradients)


@BACKENDS
@KEYS
def test_nan_is_not_lost(keys, backend) -> None:
    views = [torch.randn(20, 8) for _ in range(3)]
    views[2][5, 1] = math.nan
    loss = losses.OVAIBLoss(keys=keys, backend=backend)
    assert all(term.isnan() for term in loss.terms(views).values())
    value, gradients = _loss_and_gradients(loss, views)
    assert value.isnan()
    assert gradients[0].isnan().any()


@BACKENDS
@pytest.mark.parametrize("symmetric", [False, True])
def test_nan_in_a_query_or_a_key(symmetric, backend) -> None:
    for position in range(2):
        pair = [torch.randn(20, 8), torch.randn(20, 8)]
        pair[position][5, 1] = math.nan
        each = F.info_nce(*pair, symmetric=symmetric, reduction="none", backend=backend)
        assert each[5].isnan()
        # A NaN key is in every query's denominator; a NaN query only in its own, one way.
        assert each.isnan().all() == (position == 1 or symmetric)


@BACKENDS
@pytest.mark.parametrize("temperature", [1e-3, 1e-2])
@pytest.mark.parametrize("positive_in_denominator", [True, False])
def test_small_temperatures(positive_in_denominator, temperature, backend) -> None:
    first = torch.nn.functional.normalize(torch.randn(600, 32), dim=1)
    second = torch.nn.functional.normalize(first + 0.1 * torch.randn(600, 32), dim=1)
    options = {"symmetric": True, "positive_in_denominator": positive_in_denominator}
    truth, exact = _loss_and_gradients(
        lambda x: F.info_nce(*x, temperature, **options, backend="reference"), [first.double(), second.double()]
    )
    value, gradients = _loss_and_gradients(
        lambda x: F.info_nce(*x, temperature, **options, backend=backend), [first, second]
    )
    assert abs(value.item() - truth.item()) <= 1e-5 / temperature * max(1.0, abs(truth.item())) * 1e-2
    for a, b in zip(gradients, exact, strict=True):
        # Beside what each row's gradient is before softmax and target cancel, as they do for aligned pairs.
        assert (a.double() - b).norm() <= 1e-7 / temperature**2 / 600**0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", [64, 700])
def test_both_ways_with_rows_and_columns_far_from_the_others(n, dtype) -> None:
    """e^(R_i - C_j) leaves the range that one exponential for both ways can serve."""
    query, key = torch.randn(n, 16), torch.randn(n, 16)
    query[3] *= 100
    key[5] *= 80
    query[7] = 0
    truth, exact = _loss_and_gradients(
        lambda x: F.info_nce(*x, 0.01, symmetric=True, backend="reference"), [query.double(), key.double()]
    )
    value, gradients = _loss_and_gradients(
        lambda x: F.info_nce(*x, 0.01, symmetric=True, backend="cpu"), [query.to(dtype), key.to(dtype)]
    )
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(value.double(), truth, rtol=tolerance, atol=0)
    for a, b in zip(gradients, exact, strict=True):
        assert (a.double() - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize("backend", ["cpu", "reference", pytest.param("triton", marks=interpreted)])
@pytest.mark.parametrize("n", [5, 40])
@pytest.mark.parametrize(
    ("size", "loss"),
    [
        (1e10, lambda z, b: F.info_nce(*z[:2], 1.0, reduction="none", backend=b)),
        (1e10, lambda z, b: F.info_nce(*z[:2], 1.0, symmetric=True, reduction="none", backend=b)),
        (1e10, lambda z, b: F.info_nce(*z[:2], 1.0, symmetric=True, backend=b)),
        (1e10, lambda z, b: F.partial_lse(*z[:2], 1.0, offset=0, backend=b)[2]),
        (1e10, lambda z, b: F.siglip(*z[:2], 1.0, 0.0, reduction="none", backend=b)),
        (1e6, lambda z, b: F.symile_info_nce(z, 1.0, backend=b)),
        (1e6, lambda z, b: F.gram_info_nce(z[0], z[1:], 1.0, backend=b)),
        (1e4, lambda z, b: F.triangle_info_nce(*z, 1e-3, squared=True, label_smoothing=0.1, backend=b)),
    ],
)
def test_logits_whose_last_digit_is_far_above_one(size, loss, n, backend) -> None:
    """Some 1e18 to 1e20: a log-sum-exp is the maximum, and what lies below it is not seen in differences."""
    narrow = [(size * torch.randn(n, 8, dtype=torch.float64)).float().requires_grad_() for _ in range(3)]
    wide = [x.detach().double() for x in narrow]
    value, truth = loss(narrow, backend), loss(wide, "reference")
    scale = loss([x + size for x in wide], "reference").abs().max()
    torch.testing.assert_close(value.double(), truth, rtol=1e-4, atol=1e-5 * float(scale))
    assert all(g.isfinite().all() for g in torch.autograd.grad(value.sum(), narrow, allow_unused=True) if g is not None)


def test_nearly_aligned_modalities_project_exactly_in_float32() -> None:
    """1e-4 apart the Gram matrix has a condition number of 4e8: in float32 `torch.linalg.solve` raises."""
    common = torch.randn(128, 256, dtype=torch.float64)
    views = [(common + 1e-4 * torch.randn(128, 256, dtype=torch.float64)).float() for _ in range(4)]
    found = F.leave_one_out_projection(views, backend="cpu").double()
    for m, target in enumerate(views):
        basis = torch.stack([z.double() for k, z in enumerate(views) if k != m], dim=2)
        orthonormal, _ = torch.linalg.qr(basis)
        truth = (orthonormal @ (orthonormal.mT @ target.double()[..., None])).squeeze(-1)
        cosine = torch.nn.functional.cosine_similarity
        error = cosine(found[m], target.double()) - cosine(truth, target.double())
        assert error.abs().max() / 0.01 < 1e-6


@KEYS
def test_nearly_aligned_modalities_align_in_float32(keys) -> None:
    common = torch.randn(64, 256, dtype=torch.float64)
    views = [(common + 1e-4 * torch.randn(64, 256, dtype=torch.float64)).float() for _ in range(4)]
    truth = F.one_vs_all_info_nce([z.double() for z in views], keys=keys, backend="reference")
    assert abs(F.one_vs_all_info_nce(views, keys=keys).item() - truth.item()) < 2e-3


EVERY_BACKEND = pytest.mark.parametrize("backend", ["cpu", pytest.param("triton", marks=interpreted)])
DIVERGENCES = {
    "gaussian_kl": lambda mean, logvar, **options: F.gaussian_kl(mean, logvar, reduction="none", **options),
    "gaussian_kl, prior": lambda mean, logvar, **options: F.gaussian_kl(
        mean + 0.5, logvar - 20, torch.full_like(mean, 0.5), torch.full_like(mean, -20.0), reduction="none", **options
    ),
    "reparameterised_gaussian": lambda mean, logvar, **options: F.reparameterised_gaussian(
        mean, logvar, torch.zeros_like(mean), **options
    )[1],
    "reparameterised_gaussian, modalities": lambda mean, logvar, **options: F.reparameterised_gaussian(
        [mean, mean], [logvar, logvar / 2], [torch.zeros_like(mean)] * 2, **options
    )[1][0],
}


@EVERY_BACKEND
@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergences_overflow_where_they_are_beyond_float32_and_not_before(name, backend) -> None:
    """Float64 rounded to float32, in value and gradient, up to the limit and beyond it; in sums over d, too."""
    divergence = DIVERGENCES[name]
    logvar = torch.linspace(87.0, 91.0, 41, dtype=torch.float64)[:, None].repeat(1, 3)
    logvar[:, 1] -= 1.0
    logvar[:, 2] = torch.arange(41) % 5
    wide = logvar.float().double().requires_grad_()
    narrow = wide.detach().float().requires_grad_()
    truth = divergence(torch.ones_like(wide), wide, backend="reference")
    found = divergence(torch.ones_like(narrow), narrow, backend=backend)
    assert 0 < found.isinf().sum() < len(found)
    torch.testing.assert_close(found, truth.float(), rtol=2e-5, atol=0)
    (exact,), (gradient,) = (torch.autograd.grad(x.sum(), leaf) for x, leaf in ((truth, wide), (found, narrow)))
    torch.testing.assert_close(gradient, exact.float(), rtol=2e-5, atol=2e-7)
    # The same of means.
    wide = torch.linspace(1.7e19, 2.8e19, 34)[:, None].double()
    found, truth = (
        divergence(x, torch.zeros_like(x), **options)
        for x, options in (
            (wide.float(), {"backend": backend}),
            (wide, {"backend": "reference"}),
        )
    )
    assert name == "gaussian_kl, prior" or 0 < found.isinf().sum() < len(found)
    torch.testing.assert_close(found, truth.float(), rtol=2e-5, atol=0)


@pytest.mark.parametrize("backend", ["cpu", "reference", pytest.param("triton", marks=interpreted)])
def test_a_prior_so_narrow_that_its_precision_is_beyond_float32(backend) -> None:
    """Times the square of a small distance, or of none, it is not."""
    mean = torch.tensor([[1e-10, 0.0, 1.0]], requires_grad=True)
    narrow = [mean, torch.full((1, 3), -100.0), torch.tensor([[0.0, 0.0, 1.0]]), torch.full((1, 3), -100.0)]
    wide = [x.detach().double().requires_grad_() for x in narrow]
    narrow = [x.detach().requires_grad_() for x in narrow]
    truth = F.gaussian_kl(*wide, reduction="none", backend="reference")
    found = F.gaussian_kl(*narrow, reduction="none", backend=backend)
    torch.testing.assert_close(found, truth.float(), rtol=2e-5, atol=0)
    pairs = zip(torch.autograd.grad(found.sum(), narrow), torch.autograd.grad(truth.sum(), wide), strict=True)
    for gradient, exact in pairs:
        torch.testing.assert_close(gradient, exact.float(), rtol=2e-5, atol=0)


@EVERY_BACKEND
def test_a_divergence_without_a_gradient_leaves_that_of_the_sample_where_it_is_infinite(backend) -> None:
    leaves = [torch.full((2, 3), value, requires_grad=True) for value in (0.0, 100.0, 1.0)]
    sample, divergence = F.reparameterised_gaussian(*leaves, backend=backend)
    assert divergence.isinf().all()
    expected = torch.autograd.grad(F.reparameterised_gaussian(*leaves, backend="reference")[0].sum(), leaves)
    for gradient, truth in zip(torch.autograd.grad(sample.sum(), leaves), expected, strict=True):
        torch.testing.assert_close(gradient, truth, rtol=2e-5, atol=0)


def test_minimality_of_nearly_equal_modalities_does_not_cancel() -> None:
    common = torch.randn(50, 64, dtype=torch.float64)
    views = [(common + 1e-4 * torch.randn(50, 64, dtype=torch.float64)).float() for _ in range(3)]
    truth = F.one_vs_all_minimality([z.double() for z in views], backend="reference")
    assert abs(F.one_vs_all_minimality(views).item() / truth.item() - 1) < 1e-4


def test_kl_near_the_prior_does_not_cancel() -> None:
    logvar = 1e-3 * torch.randn(64, 32)
    truth = F.gaussian_kl(torch.zeros(64, 32).double(), logvar.double(), backend="reference")
    assert abs(F.gaussian_kl(torch.zeros(64, 32), logvar).item() / truth.item() - 1) < 1e-5


def test_precisions_beyond_float32_multiply() -> None:
    logvars = [torch.full((2, 3), -200.0), torch.full((2, 3), -199.0)]
    mean, logvar = F.product_of_experts([torch.ones(2, 3), torch.zeros(2, 3)], logvars)
    share = 1 / (1 + math.exp(-1))
    torch.testing.assert_close(mean, torch.full((2, 3), share))
    torch.testing.assert_close(logvar, torch.full((2, 3), -200 + math.log(share)))


@pytest.mark.parametrize("backend", ["cpu", "reference", pytest.param("triton", marks=interpreted)])
def test_an_infinite_precision_is_the_products(backend) -> None:
    """Its own weight and the mean are unknown; the others' weight is none, and other components are untouched."""
    means = [torch.ones(2, 3), torch.zeros(2, 3)]
    logvars = [torch.zeros(2, 3), torch.zeros(2, 3)]
    logvars[0][1, 2] = -math.inf
    leaves = [x.requires_grad_() for x in (*means, *logvars)]
    mean, logvar = F.product_of_experts(leaves[:2], leaves[2:], backend=backend)
    expected = torch.full((2, 3), -math.log(2))
    expected[1, 2] = -math.inf
    torch.testing.assert_close(logvar, expected)
    assert mean[1, 2].isnan()
    gradients = torch.autograd.grad((mean + logvar).sum(), leaves)
    assert 0 <= gradients[1][1, 2] < 1e-37
    assert all(g.isfinite().sum() >= g.numel() - 1 for g in gradients)


@pytest.mark.parametrize("backend", ["cpu", pytest.param("triton", marks=interpreted)])
@pytest.mark.parametrize("size", [1e-15, 1e-17, 1e-20, 1e-21, 1e-22, 1e-23])
def test_squares_too_small_for_float32_make_no_gradient_nan(size, backend) -> None:
    """Squared distances and cosines become subnormal, then zero, and with them the gradients of what they weigh."""
    small = [size * torch.randn(9, 40, dtype=torch.float64) for _ in range(3)]
    # Orthogonal, but for what is small.
    across = [x + torch.eye(40, dtype=torch.float64)[9 * k : 9 * k + 9] for k, x in enumerate(small)]
    for loss, views in (
        (lambda z, b: F.gram_info_nce(z[0], z[1:], 1.0, backend=b), small),
        (lambda z, b: F.triangle_info_nce(*z, 1.0, backend=b), small),
        (lambda z, b: F.triangle_info_nce(*z, 1.0, squared=True, backend=b), small),
        (lambda z, b: F.one_vs_all_info_nce(z, 1.0, 1e-8, keys="pairwise", backend=b), across),
        (lambda z, b: F.one_vs_all_info_nce(z, 1.0, 0.0, keys="pairwise", backend=b), across),
    ):
        narrow = [x.float().requires_grad_() for x in views]
        wide = [x.detach().double().requires_grad_() for x in narrow]
        value, truth = loss(narrow, backend), loss(wide, "reference")
        torch.testing.assert_close(value.double(), truth, rtol=1e-5, atol=1e-6)
        gradients = torch.autograd.grad(truth, wide)
        largest = max(g.abs().max() for g in gradients)
        # Of subnormal numbers a root has few digits, and may be zero, and products of three tiny numbers vanish.
        allowed = (2e-4 if size > 1e-18 else 1.0) * largest + 1e-28
        for a, b in zip(torch.autograd.grad(value, narrow), gradients, strict=True):
            assert (a.double() - b).abs().max() <= allowed


@BACKENDS
@pytest.mark.parametrize("bias", [-1000.0, -10.0, 0.0, 40.0, 1000.0])
@pytest.mark.parametrize("scale", [-30.0, 0.0, 1e-4, 10.0, 1e3, 1e4])
def test_siglip_of_every_scale_and_bias(scale, bias, backend) -> None:
    """Aligned pairs, duplicates and zeros, far into both tails of the sigmoid."""
    first = torch.nn.functional.normalize(torch.randn(300, 32), dim=1)
    second = torch.nn.functional.normalize(first + 0.1 * torch.randn(300, 32), dim=1)
    first[3], second[4], second[10:20] = 0, 0, second[10]

    def run(dtype, backend):
        leaves = [x.to(dtype).requires_grad_() for x in (first, second)]
        leaves += [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (scale, bias)]
        value = F.siglip(*leaves, backend=backend)
        return [value.detach(), *torch.autograd.grad(value, leaves)]

    exact = run(torch.float64, "reference")
    n, d = first.shape
    for dtype in (torch.float32, torch.float64):
        # In roundings u, and for sums in any order: an inner product of unit vectors is a sum of d terms whose sizes
        # add up to one, a logit two roundings more; softplus and sigmoid are within 16, and a row's n terms are
        # summed. Doubled, since in float64 the truth rounds as much.
        u = torch.finfo(dtype).eps
        logit = abs(scale) * (d + 2) + 2 * abs(bias)
        # The derivative of a logit is one at most, its error a quarter of the logit's; of n logits to each row.
        weight = logit / 4 + 16 + n
        allowed = [n * logit + (16 + n) * exact[0].item(), abs(scale) * weight, abs(scale) * weight, n * (weight + d)]
        allowed.append(n * weight)
        for result, truth, roundings in zip(run(dtype, backend), exact, allowed, strict=True):
            assert result.isfinite().all()
            assert (result.double() - truth.double()).abs().max() <= u * roundings


@BACKENDS
@pytest.mark.parametrize("size", [1e-4, 1e4])
def test_siglip_of_small_and_large_embeddings(size, backend) -> None:
    views = [size * torch.randn(40, 16) for _ in range(2)]
    value, gradients = _loss_and_gradients(lambda z: F.siglip(*z, backend=backend), views)
    assert _finite(value, gradients)
    truth = F.siglip(*[z.double() for z in views], backend="reference")
    torch.testing.assert_close(value.double(), truth, rtol=1e-5, atol=0)


@BACKENDS
def test_siglip_keeps_nan(backend) -> None:
    for position in range(2):
        pair = [torch.randn(20, 8), torch.randn(20, 8)]
        pair[position][5, 1] = math.nan
        each = F.siglip(*pair, reduction="none", backend=backend)
        assert each[5].isnan()
        assert each.isnan().all() == (position == 1)
        value, gradients = _loss_and_gradients(lambda z: F.siglip(*z, backend=backend), pair)
        assert value.isnan()
        # A gradient of either meets the other.
        assert all(g[5].isnan().any() for g in gradients)
    missing = torch.tensor(math.nan)
    assert F.siglip(torch.eye(3), torch.eye(3), scale=missing, backend=backend).isnan()
    assert F.siglip(torch.eye(3), torch.eye(3), bias=missing, backend=backend).isnan()


def test_a_confident_positive_does_not_cancel() -> None:
    """softplus(z) - z would lose e^-z to rounding, where softplus(-z) keeps it."""
    query = torch.tensor([[1.0]])
    for z in (5.0, 20.0, 60.0):
        torch.testing.assert_close(
            F.siglip(query, query, z, 0.0).item(), math.log1p(math.exp(-z)), rtol=1e-6, atol=1e-7
        )


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf])
@BACKENDS
def test_a_tensor_temperature_that_is_not_positive_gives_nan(temperature, backend) -> None:
    tau = torch.tensor(temperature)
    assert F.info_nce(torch.eye(3), torch.eye(3), tau, backend=backend).isnan()
    assert F.one_vs_all_info_nce([torch.eye(3)] * 2, tau, backend=backend).isnan()


VOLUME_LOSSES = pytest.mark.parametrize(
    ("kind", "options"),
    [(losses.GRAMLoss, {}), (losses.TRIANGLELoss, {}), (losses.TRIANGLELoss, {"squared": False})],
    ids=["GRAM", "TRIANGLE, squared", "TRIANGLE"],
)


@BACKENDS
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("normalize", [True, False])
@VOLUME_LOSSES
def test_volumes_of_exact_duplicates(kind, options, normalize, scale, backend) -> None:
    """Perfect alignment: every volume is zero, where the square root has no derivative."""
    view = scale * torch.randn(40, 16)
    loss = kind(normalize=normalize, backend=backend, **options)
    value, gradients = _loss_and_gradients(loss, [view] * 3)
    assert _finite(value, gradients)
    assert abs(value.item() - math.log(40)) < 1e-5
    assert all((g == 0).all() for g in gradients)
    # The anchor in the span of others that are not equal: the positives alone are zero.
    other = torch.nn.functional.normalize(scale * torch.randn(40, 16), dim=1)
    views = [torch.nn.functional.normalize(view + scale * other, dim=1), view, other]
    assert _finite(*_loss_and_gradients(kind(anchor=None, backend=backend, **options), views))


@BACKENDS
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_volumes_scale_with_their_embeddings(scale, backend) -> None:
    a, b, c = torch.randn(3, 30, 12)
    volumes = F.gram_volume(a, [b, c], backend=backend)
    torch.testing.assert_close(F.gram_volume(scale * a, [b, c], backend=backend) / scale, volumes, rtol=1e-4, atol=0)
    scaled = F.gram_volume(scale * a, [scale * b, scale * c], backend=backend) / scale**3
    torch.testing.assert_close(scaled, volumes, rtol=1e-4, atol=0)
    for squared, power in ((False, 2), (True, 4)):
        areas = F.triangle_area(a, b, c, squared=squared, backend=backend)
        scaled = F.triangle_area(scale * a, scale * b, scale * c, squared=squared, backend=backend) / scale**power
        torch.testing.assert_close(scaled, areas, rtol=1e-4, atol=0)


@BACKENDS
@VOLUME_LOSSES
def test_volumes_of_zero_vectors(kind, options, backend) -> None:
    views = [torch.randn(20, 8) for _ in range(3)]
    views[0][2] = 0
    views[1][3] = 0
    loss = kind(anchor=None, backend=backend, **options)
    value, gradients = _loss_and_gradients(loss, views)
    assert _finite(value, gradients)
    assert (gradients[0][2] == 0).all()
    assert (gradients[1][3] == 0).all()
    value, gradients = _loss_and_gradients(loss, [torch.zeros(5, 4)] * 3)
    assert abs(value.item() - math.log(5)) < 1e-6
    assert all((g == 0).all() for g in gradients)


@BACKENDS
@VOLUME_LOSSES
def test_volumes_lose_no_nan(kind, options, backend) -> None:
    for position in range(3):
        views = [torch.randn(20, 8) for _ in range(3)]
        views[position][5, 1] = math.nan
        value, gradients = _loss_and_gradients(kind(backend=backend, **options), views)
        assert value.isnan()
        assert all(g.isnan().any() for g in gradients)
        volumes = F.gram_volume(views[0], views[1:], backend=backend)
        areas = F.triangle_area(*views, squared=options.get("squared", True), backend=backend)
        lost = volumes[5] if position == 0 else volumes[:, 5]
        assert lost.isnan().all()
        assert volumes.isnan().sum() == areas.isnan().sum() == 20


@pytest.mark.parametrize("backend", ["cpu", pytest.param("triton", marks=interpreted)])
@VOLUME_LOSSES
def test_a_loss_of_nan_leaves_no_gradient_zero_where_nothing_is_spanned(kind, options, backend) -> None:
    """Samples whose others are alike have gradients of zero, but not where the loss itself is no number."""
    anchor, other = torch.randn(4, 6), torch.randn(4, 6)
    views = [anchor, other, other.clone()]
    views[1][3, 2] = torch.nan
    leaves = [x.requires_grad_() for x in views]
    loss = kind(normalize=False, backend=backend, **options)(leaves)
    assert loss.isnan()
    assert all(g.isnan().any(1).all() for g in torch.autograd.grad(loss, leaves))


@BACKENDS
@pytest.mark.parametrize("position", [0, 1, 2])
def test_infinity_spans_no_volume_that_is_a_number(position, backend) -> None:
    views = [torch.randn(20, 8) for _ in range(3)]
    views[position][5] = math.inf
    volumes = F.gram_volume(views[0], views[1:], backend=backend)
    assert not (volumes[5] if position == 0 else volumes[:, 5]).isfinite().any()


@BACKENDS
@VOLUME_LOSSES
def test_volumes_of_one_sample(kind, options, backend) -> None:
    value, gradients = _loss_and_gradients(kind(backend=backend, **options), [torch.randn(1, 8) for _ in range(3)])
    assert abs(value.item()) < 1e-5
    assert all(g.abs().max() < 1e-5 for g in gradients)


@BACKENDS
@pytest.mark.parametrize("spread", [1e-2, 1e-4])
@pytest.mark.parametrize("temperature", [1e-3, 0.07])
@VOLUME_LOSSES
def test_volumes_of_nearly_aligned_modalities(kind, options, temperature, spread, backend) -> None:
    """The released determinants are wrong by 3e-4 here, or NaN."""
    common = torch.randn(300, 64, dtype=torch.float64)
    views = [
        torch.nn.functional.normalize(common + spread * torch.randn(300, 64, dtype=torch.float64), dim=1).float()
        for _ in range(3)
    ]
    truth, exact = _loss_and_gradients(
        kind(temperature, normalize=False, backend="reference", **options), [z.double() for z in views]
    )
    value, gradients = _loss_and_gradients(kind(temperature, normalize=False, backend=backend, **options), views)
    assert abs(value.item() - truth.item()) <= 2e-5 * max(1.0, truth.item())
    for a, b in zip(gradients, exact, strict=True):
        assert (a.double() - b).norm() <= 1e-3 * b.norm() + 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", [64, 1100])
@VOLUME_LOSSES
def test_volumes_of_rows_and_columns_far_from_the_others(kind, options, n, dtype) -> None:
    """Columns too far below the others for one reference, and rows too far from columns for one exponential."""
    views = list(torch.randn(3, n, 16))
    views[0][3] *= 30
    views[1][5] *= 30
    views[0][7] = 0
    loss = kind(0.05, normalize=False, backend="reference", **options)
    truth, exact = _loss_and_gradients(loss, [z.double() for z in views])
    loss.backend = "cpu"
    value, gradients = _loss_and_gradients(loss, [z.to(dtype) for z in views])
    tolerance = 1e-11 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(value.double(), truth, rtol=tolerance, atol=0)
    for a, b in zip(gradients, exact, strict=True):
        assert (a.double() - b).norm() <= tolerance * b.norm()


@BACKENDS
def test_a_volume_near_zero_keeps_its_gradient(backend) -> None:
    """Zero at a volume of zero, but the unit normal however near to it."""
    for height in (1e-6, 1e-9):
        anchor = torch.tensor([[1.0, height, 0.0]], requires_grad=True)
        other = torch.tensor([[1.0, 0.0, 0.0]], requires_grad=True)
        volume = F.gram_volume(anchor, [other], backend=backend)
        volume.backward()
        assert abs(volume.item() / height - 1) < 1e-6
        torch.testing.assert_close(anchor.grad, torch.tensor([[0.0, 1.0, 0.0]]), rtol=1e-5, atol=2 * height)
        torch.testing.assert_close(other.grad, torch.tensor([[0.0, -1.0, 0.0]]), rtol=1e-5, atol=2 * height)
        triangle = [x.detach().requires_grad_() for x in (anchor, other, torch.zeros(1, 3))]
        area = F.triangle_area(*triangle, backend=backend)
        area.backward()
        assert abs(2 * area.item() / height - 1) < 1e-6
        torch.testing.assert_close(triangle[0].grad, torch.tensor([[0.0, 0.5, 0.0]]), rtol=1e-5, atol=2 * height)


@BACKENDS
@pytest.mark.parametrize("squared", [True, False])
def test_areas_far_from_the_origin(squared, backend) -> None:
    """An area does not depend on where the origin is, and hundreds of its lengths away it keeps float32's digits."""
    views = [(torch.randn(70, 16) + 100.0).requires_grad_() for _ in range(3)]
    exact = [x.detach().double().requires_grad_() for x in views]
    upstream = torch.randn(70, 70)
    truth = F.triangle_area(*exact, squared=squared, backend="reference")
    found = F.triangle_area(*views, squared=squared, backend=backend)
    torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=0)
    expected = torch.autograd.grad((truth * upstream).sum(), exact)
    for a, b in zip(torch.autograd.grad((found * upstream).sum(), views), expected, strict=True):
        assert (a.double() - b).norm() <= 1e-5 * b.norm()


@BACKENDS
def test_others_nearly_in_line(backend) -> None:
    """Their span is that of their difference, 1e-6 long."""
    anchor, first = torch.randn(2, 50, 32)
    second = first + 1e-6 * torch.randn(50, 32)
    leaves = [x.requires_grad_() for x in (anchor, first, second)]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    truth = F.gram_volume(exact[0], exact[1:], backend="reference")
    found = F.gram_volume(leaves[0], leaves[1:], backend=backend)
    torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=1e-10)
    upstream = torch.randn(50, 50)
    expected = torch.autograd.grad((truth * upstream).sum(), exact)
    for a, b in zip(torch.autograd.grad((found * upstream).sum(), leaves), expected, strict=True):
        assert (a.double() - b).norm() <= 1e-5 * b.norm()


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf])
@BACKENDS
def test_volumes_at_a_tensor_temperature_that_is_not_positive(temperature, backend) -> None:
    tau = torch.tensor(temperature)
    assert F.gram_info_nce(torch.eye(3), [torch.eye(3)], tau, backend=backend).isnan()
    assert F.triangle_info_nce(*torch.randn(3, 4, 5), tau, backend=backend).isnan()


@pytest.mark.parametrize(
    "loss",
    [
        lambda a, b, c, backend: F.info_nce(a, b, 16e6, backend=backend),
        lambda a, b, c, backend: F.info_nce(a, b, 16e6, symmetric=True, backend=backend),
        lambda a, b, c, backend: F.siglip(a, b, 1 / 16e6, backend=backend),
        lambda a, b, c, backend: F.gram_info_nce(a, [b, c], 64e10, backend=backend),
        lambda a, b, c, backend: F.triangle_info_nce(a, b, c, 16e6, squared=False, backend=backend),
        lambda a, b, c, backend: F.symile_info_nce([z[:24] for z in (a, b, c)], 1 / 64e10, backend=backend),
        lambda a, b, c, backend: F.one_vs_all_info_nce([a, b, c], 1.0, backend=backend),
    ],
    ids=["one way", "both ways", "siglip", "gram", "triangle", "symile", "one-vs-all"],
)
@BACKENDS
def test_a_scaled_loss_raises_gradients_before_float16_rounds_them(loss, backend) -> None:
    """What `torch.amp.GradScaler` is for: below 6e-5 float16 loses digits, below 3e-8 all of them."""
    views = [(4000 * torch.randn(200, 16)).half() for _ in range(3)]
    leaves, exact = [z.clone().requires_grad_() for z in views], [z.double().requires_grad_() for z in views]
    loss(*exact, backend="reference").backward()
    scale = 2.0**20
    (scale * loss(*leaves, backend=backend)).backward()
    for z, truth in zip(leaves, exact, strict=True):
        if truth.grad is not None:
            assert (z.grad.double() / scale - truth.grad).norm() <= 1e-3 * truth.grad.norm()
