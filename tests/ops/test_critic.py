"""Critics over all pairs: what the tests of all operations leave out."""

import math
from functools import partial

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from mibfast import functional as F

BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])
LAYERS = pytest.mark.parametrize("layers", [0, 1, 2])


def _leaves(n: int, columns: int, d: int, layers: int, dtype=torch.float64, scale: float = 1.0) -> list[torch.Tensor]:
    """x and y, a weight and a bias, W [3, d] and c."""
    shapes = [(n, d), (columns, d), (3 if layers == 2 else d,), (), (3, d), (3,)][: 2 + 2 * layers]
    return [(scale * torch.randn(s, dtype=torch.float64)).to(dtype).requires_grad_() for s in shapes]


def _call(function, leaves, **options):
    if len(leaves) == 2:
        return function(*leaves, **options)
    hidden = tuple(leaves[4:]) or None
    return function(*leaves[:4], hidden, score="additive", **options)


def _step(function, leaves, **options):
    """Results and gradients for uneven upstream ones."""
    results = _call(function, leaves, **options)
    upstream = [torch.linspace(-0.4 - k, 1.1, r.numel(), dtype=r.dtype) for k, r in enumerate(results)]
    return [*(r.detach() for r in results), *torch.autograd.grad(results, leaves, upstream)]


@LAYERS
@pytest.mark.parametrize(("n", "columns", "d"), [(1, 1, 1), (1, 3, 9), (7, 8, 1), (33, 1500, 17), (300, 301, 8)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_ragged_sizes(n, columns, d, layers, dtype) -> None:
    leaves = _leaves(n, columns, d, layers)
    narrow = [x.detach().to(dtype).requires_grad_() for x in leaves]
    for function in (partial(F.critic_log_sum_exp, clip=3.0), partial(F.critic_softplus, positive=True)):
        found, expected = _step(function, narrow, backend="cpu"), _step(function, leaves, backend="reference")
        for result, truth in zip(found, expected, strict=True):
            a, b = (x.double().masked_fill(x == -math.inf, 0.0) for x in (result, truth))
            # A unit or a score within a rounding of a kink may lie on its other side in float32.
            assert (a - b).norm() <= (1e-11 if dtype == torch.float64 else 1e-3) * max(1e-6, b.norm())


@BACKENDS
def test_without_a_negative_there_is_minus_infinity_and_no_gradient(backend) -> None:
    x, y = (torch.randn(1, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    positives, rows, columns = F.critic_log_sum_exp(x, y, columns=True, backend=backend)
    assert rows.item() == columns.item() == -math.inf
    found = torch.autograd.grad((positives + rows.clamp(min=-1.0) + columns.clamp(min=-1.0)).sum(), (x, y))
    torch.testing.assert_close(found, (y.detach(), x.detach()))
    assert F.critic_softplus(x, y, backend=backend)[1].item() == 0.0


@BACKENDS
@LAYERS
def test_many_columns_and_rows_share_no_state(layers, backend) -> None:
    """Estimators as one writes them down."""
    leaves = _leaves(40, 40, 5, layers)
    s = _call_scores(leaves)
    off = ~torch.eye(40, dtype=torch.bool)
    positives, rows = _call(F.critic_log_sum_exp, leaves, backend=backend)
    smile = positives.mean() - torch.logsumexp(_call(F.critic_log_sum_exp, leaves, clip=0.5, backend=backend)[1], 0)
    torch.testing.assert_close(torch.logsumexp(rows, 0), torch.logsumexp(s[off], 0))
    torch.testing.assert_close(smile, s.diagonal().mean() - torch.logsumexp(s.clamp(-0.5, 0.5)[off], 0))
    positives, sums = _call(F.critic_softplus, leaves, backend=backend)
    jensen_shannon = sums.sum() + softplus(-positives).sum()
    labels = torch.eye(40, dtype=torch.float64)
    torch.testing.assert_close(jensen_shannon, binary_cross_entropy_with_logits(s, labels, reduction="sum"))


def _call_scores(leaves):
    x, y, *parameters = (z.detach() for z in leaves)
    if not parameters:
        return x @ y.T
    units = torch.relu(x[:, None] + y)
    if len(parameters) == 4:
        units = torch.relu(units @ parameters[2].T + parameters[3])
    return units @ parameters[0] + parameters[1]


@LAYERS
@pytest.mark.parametrize("clip", [None, 5.0, 200.0])
@pytest.mark.parametrize("size", [1e-4, 1e4])
def test_small_and_large_scores(size, clip, layers) -> None:
    """Scores of 1e4 in float32 are known to 1e-3, and so are their weights."""
    leaves = _leaves(50, 50, 6, layers, scale=size ** (1 / (2 if layers < 2 else 3)))
    narrow = [x.detach().float().requires_grad_() for x in leaves]
    exact = [x.detach().double().requires_grad_() for x in narrow]
    function = partial(F.critic_log_sum_exp, columns=True, clip=clip)
    for a, b in zip(_step(function, narrow, backend="cpu"), _step(function, exact, backend="reference"), strict=True):
        assert a.isfinite().all()
        assert (a.double() - b).abs().max() <= 2e-2 * b.abs().max()
    found, expected = (_step(F.critic_softplus, x, backend=b) for x, b in ((narrow, "cpu"), (exact, "reference")))
    for a, b in zip(found, expected, strict=True):
        assert (a.double() - b).abs().max() <= 1e-4 * b.abs().max()


def test_softplus_of_very_negative_scores_keeps_its_digits() -> None:
    x, y = torch.full((3, 1), 5.0, requires_grad=True), torch.full((4, 1), -5.0)
    _, sums = F.critic_softplus(x, y, backend="cpu")
    torch.testing.assert_close(sums, torch.full((3,), 3 * math.exp(-25.0)), rtol=1e-5, atol=0.0)


@BACKENDS
def test_a_clamped_score_has_no_gradient_and_positives_are_not_clamped(backend) -> None:
    x = torch.tensor([[3.0], [0.5]], requires_grad=True)
    y = torch.tensor([[2.0], [1.0], [-4.0]], requires_grad=True)
    positives, rows = F.critic_log_sum_exp(x, y, positive=True, clip=1.0, backend=backend)
    assert positives.tolist() == [6.0, 0.5]
    # The scores are 6, 3, -12 and 1, 0.5, -2: what lies at the bound keeps its gradient.
    (of_x,) = torch.autograd.grad(rows.sum(), x)
    weights = torch.softmax(torch.tensor([1.0, 0.5, -1.0]), 0)
    torch.testing.assert_close(of_x, torch.tensor([[0.0], [2.0 * weights[0] + 1.0 * weights[1]]]))


@BACKENDS
def test_a_tie_of_relu_has_gradient_zero(backend) -> None:
    x, y = torch.tensor([[1.0, -2.0]], requires_grad=True), torch.tensor([[-1.0, 3.0]], requires_grad=True)
    weight = torch.tensor([5.0, 7.0], requires_grad=True)
    positives, _ = F.critic_log_sum_exp(x, y, weight, score="additive", positive=True, backend=backend)
    found = torch.autograd.grad(positives.sum(), (x, y, weight))
    for a, b in zip(found, ([[0.0, 7.0]], [[0.0, 7.0]], [0.0, 1.0]), strict=True):
        torch.testing.assert_close(a, torch.tensor(b))


@BACKENDS
@LAYERS
@pytest.mark.parametrize("side", [0, 1])
def test_nan_is_not_lost(side, layers, backend) -> None:
    leaves = _leaves(6, 6, 3, layers)
    with torch.no_grad():
        leaves[side][2, 1] = math.nan
    for function in (F.critic_log_sum_exp, F.critic_softplus, partial(F.critic_log_sum_exp, clip=1.0)):
        positives, rows = _call(function, leaves, backend=backend)
        where = torch.arange(6) == 2
        assert torch.equal(positives.isnan(), where)
        # A column that is NaN is part of every row but that whose positive it is.
        assert torch.equal(rows.isnan(), ~where if side else where)
        of_x, of_y = torch.autograd.grad(rows.sum(), leaves[:2])
        assert of_x.isnan().any()
        assert of_y.isnan().any()


@LAYERS
def test_results_repeat_bit_for_bit_and_hardly_depend_on_threads(layers) -> None:
    leaves = _leaves(200, 210, 40, layers, torch.float32)
    function = partial(F.critic_log_sum_exp, backend="cpu")
    first, threads = _step(function, leaves), torch.get_num_threads()
    assert all(torch.equal(a, b) for a, b in zip(_step(function, leaves), first, strict=True))
    try:
        torch.set_num_threads(3 - min(threads, 2))
        for a, b in zip(_step(function, leaves), first, strict=True):
            assert (a - b).abs().max() <= 2e-5 * b.abs().max()
    finally:
        torch.set_num_threads(threads)


def test_columns_far_below_the_others_keep_their_digits() -> None:
    """Clamped to 60, columns may lie 120 nats apart."""
    x = torch.ones(40, 1)
    y = torch.where(torch.arange(40) % 2 == 0, -70.0, 70.0)[:, None]
    for clip in (None, 60.0):
        found = F.critic_log_sum_exp(x, y, positive=True, columns=True, clip=clip, backend="cpu")
        expected = F.critic_log_sum_exp(x, y, positive=True, columns=True, clip=clip, backend="reference")
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)


MEANS = {
    "log_mean_exp": F.critic_log_mean_exp,
    "log_mean_exp, clipped": partial(F.critic_log_mean_exp, clip=3.0),
    "softplus": F.critic_mean_softplus,
    "softplus, log_mean_exp, clipped": partial(F.critic_mean_softplus, log_mean_exp=True, clip=3.0),
    "softplus, log_mean_exp, loosely clipped": partial(F.critic_mean_softplus, log_mean_exp=True, clip=60.0),
    "softplus, log_mean_exp": partial(F.critic_mean_softplus, log_mean_exp=True),
    "softplus, positives": partial(F.critic_mean_softplus, positives=True),
    "softplus, positives, log_mean_exp, clipped": partial(
        F.critic_mean_softplus, positives=True, log_mean_exp=True, clip=3.0
    ),
    "softplus, positives, log_mean_exp": partial(F.critic_mean_softplus, positives=True, log_mean_exp=True),
}


def _mean_step(function, leaves, backend):
    """Results and the gradients of the first, whatever is needed of it."""
    found = _call(function, leaves, backend=backend)
    results = [found] if isinstance(found, torch.Tensor) else list(found)
    needed = [x for x in leaves if x.requires_grad]
    return [*(r.detach() for r in results), *torch.autograd.grad(-1.3 * results[0], needed)]


@LAYERS
@pytest.mark.parametrize("name", MEANS)
@pytest.mark.parametrize(("n", "columns", "d"), [(2, 2, 1), (1, 3, 9), (33, 1500, 7), (1200, 1210, 8)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_means_formed_with_their_gradients(n, columns, d, name, layers, dtype) -> None:
    """Rows of one tile and of several; `scale` brings larger rows after smaller ones."""
    if layers and n * columns * d > 10**6:
        n, columns = 300, 301
    leaves = _leaves(n, columns, d, layers)
    with torch.no_grad():
        leaves[0].mul_(torch.linspace(0.1, 3.0, n, dtype=torch.float64)[:, None])
    narrow = [x.detach().to(dtype).requires_grad_() for x in leaves]
    exact = [x.detach().double().requires_grad_() for x in narrow]
    found, expected = (_mean_step(MEANS[name], z, b) for z, b in ((narrow, "cpu"), (exact, "reference")))
    for result, truth in zip(found, expected, strict=True):
        assert (result.double() - truth).norm() <= (1e-11 if dtype == torch.float64 else 1e-3) * max(1e-6, truth.norm())


@pytest.mark.parametrize("name", ["log_mean_exp", "softplus, log_mean_exp", "softplus, positives"])
@pytest.mark.parametrize("needed", [(True, False), (False, True)])
def test_means_of_which_one_side_needs_a_gradient(needed, name) -> None:
    leaves = [x.detach().requires_grad_(need) for x, need in zip(_leaves(20, 25, 3, 0), needed, strict=True)]
    found, expected = (_mean_step(MEANS[name], leaves, backend) for backend in ("cpu", "reference"))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@LAYERS
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("size", [1e-4, 300.0, 1e4])
def test_a_mean_of_rows_whose_levels_are_far_apart(size, descending, layers) -> None:
    """Beside float64 on the same inputs, an error like that of float32 in plain PyTorch."""
    leaves = _leaves(1500 if not layers else 200, 1500 if not layers else 200, 6, layers)
    with torch.no_grad():
        leaves[0].mul_(size * torch.linspace(0.0, 1.0, len(leaves[0]), dtype=torch.float64)[:, None])
        if descending:
            leaves[0].copy_(leaves[0].flip(0))
    narrow = [x.detach().float().requires_grad_() for x in leaves]
    exact = [x.detach().double().requires_grad_() for x in narrow]
    truth = _mean_step(F.critic_log_mean_exp, exact, "reference")
    plain, found = (_mean_step(F.critic_log_mean_exp, narrow, b) for b in ("reference", "cpu"))
    for a, b, c in zip(found, plain, truth, strict=True):
        assert a.isfinite().all()
        assert (a - c).abs().max() <= 4 * (b - c).abs().max() + 1e-6 * c.abs().max()


def test_a_mean_of_nan_is_nan_with_every_gradient() -> None:
    for row, side in ((2, 0), (2, 1)):
        leaves = _leaves(6, 6, 3, 0)
        with torch.no_grad():
            leaves[side][row, 1] = math.nan
        for function in MEANS.values():
            value, *_, of_x, of_y = _mean_step(function, leaves, "cpu")
            assert value.isnan()
            assert of_x.isnan().any()
            assert of_y.isnan().any()


def test_the_values_beside_the_mean_softplus_have_no_gradient() -> None:
    x, y = _leaves(5, 5, 3, 0)
    for backend in ("cpu", "reference"):
        mean, *values = F.critic_mean_softplus(x, y, positives=True, log_mean_exp=True, backend=backend)
        assert mean.requires_grad
        assert [value.requires_grad for value in values] == [False, False]
        torch.testing.assert_close(values[1], (x * y).sum(1).mean().detach())


@pytest.mark.parametrize("own", [-1e4, -30.0, 30.0, 1e4, math.inf, -math.inf])
def test_the_logistic_loss_of_extreme_positives(own) -> None:
    """A lost positive costs -s, with slope -1; one that is certain nothing, with slope e^-s and not less."""
    x = torch.tensor([[own], [0.5]], dtype=torch.float32, requires_grad=True)
    # An infinite positive has a negative of -inf beside it, and the other positive is 0.25 or -0.25.
    y = torch.tensor([[1.0], [0.0 if math.isfinite(own) else math.copysign(0.5, -own)]])
    loss, mean = F.critic_mean_softplus(x, y, positives=True, backend="cpu")
    exact = x.detach().double().requires_grad_()
    expected, expected_mean = F.critic_mean_softplus(exact, y.double(), positives=True, backend="reference")
    assert mean == expected_mean
    assert not loss.isnan()
    assert loss.isinf() == (own == -math.inf)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0.0)
    if math.isfinite(own):
        (found,), (truth,) = torch.autograd.grad(loss, x), torch.autograd.grad(expected, exact)
        torch.testing.assert_close(found.double(), truth, rtol=1e-6, atol=1e-38)


def test_a_mean_keeps_a_half_precision_gradient_until_the_loss_is_scaled() -> None:
    """Of 300 samples, a softplus weighs 1e-5 of a mean: in float16 most gradients were zero before a scale of 1e4."""
    x, y = (torch.full((300, 2), 0.01, dtype=torch.float16, requires_grad=True) for _ in range(2))
    for function in (F.critic_log_mean_exp, F.critic_mean_softplus):
        (found,) = torch.autograd.grad(1e4 * function(x, y, backend="cpu"), x)
        (expected,) = torch.autograd.grad(1e4 * function(x.double(), y.double(), backend="reference"), x)
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=0.0)


def test_means_repeat_bit_for_bit() -> None:
    leaves = _leaves(1100, 1100, 8, 0, torch.float32)
    for function in MEANS.values():
        first, second = (_mean_step(function, leaves, "cpu") for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_rows_far_below_those_of_later_blocks_keep_their_gradients() -> None:
    """Their weights, e^-60 of the total, are numbers of float32 still."""
    n, later = 2600, 2500
    x, y = 0.1 * torch.randn(n, 4), torch.randn(n, 4)
    x[:, 0], y[:, 0] = 0.0, 1.0
    x[later:, 0] = 60.0
    leaves = [x.requires_grad_(), y]
    wide = [x.detach().double().requires_grad_(), y.double()]
    (found,) = torch.autograd.grad(F.critic_log_mean_exp(*leaves, backend="cpu"), leaves[0])
    (exact,) = torch.autograd.grad(F.critic_log_mean_exp(*wide, backend="reference"), wide[0])
    assert exact[:later].abs().max() < 1e-28
    errors = (found.double() - exact)[:later].norm(dim=1) / exact[:later].norm(dim=1)
    assert errors.max() < 1e-3
