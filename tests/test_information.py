"""Estimators of mutual information: released numbers, the same by streaming as in one piece, and known truths."""

import json
import math
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch

from mibfast import functional as F
from mibfast import information
from mibfast.information import MutualInformation

GOLDENS = json.loads((Path(__file__).parent / "goldens" / "golden.json").read_text())["goldens"]
ESTIMATORS = ("infonce", "nwj", "tuba", "dv", "mine", "smile", "js_fgan", "js", "clip")
NAMES = pytest.mark.parametrize("estimator", ESTIMATORS)
RELEASED = {
    "est_tuba": ("tuba", {}),
    "est_nwj": ("nwj", {}),
    "est_infonce": ("infonce", {}),
    "est_js_fgan": ("js_fgan", {}),
    "est_js_nwj_value_jsd_grad": ("js", {}),
    "est_dv": ("dv", {}),
    "est_smile_noclip": ("smile", {"clip": None}),
    "est_smile_clip1": ("smile", {"clip": 1.0}),
    "est_smile_clip5": ("smile", {}),
    "est_mine_buffer1_mom0.9": ("mine", {}),
    "neuralmi_smile_clip1": ("smile", {"clip": 1.0, "clip_joint": True}),
    "neuralmi_smile_clip5": ("smile", {"clip_joint": True}),
    "neuralmi_infonce": ("infonce", {}),
    "dsib_clip_estimator": ("clip", {}),
}


def released_scores(dtype: torch.dtype) -> torch.Tensor:
    scores = torch.from_numpy(1.5 * np.random.default_rng(401).standard_normal((8, 8)))
    return (scores + 2 * torch.eye(8)).to(dtype).requires_grad_()


def critics(dtype: torch.dtype = torch.float64) -> dict[str, torch.nn.Module]:
    made = {
        "separable": information.SeparableCritic(3, 2, 4, 5),
        "bilinear": information.BilinearCritic(3, 2),
        "concatenated": information.ConcatenatedCritic(3, 2, 6),
        "concatenated, two layers": information.ConcatenatedCritic(3, 2, 6, hidden_layers=2),
        "cosine": information.CosineCritic(0.3, learnable_temperature=True),
    }
    return {name: critic.to(dtype) for name, critic in made.items()}


def views(name: str, n: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    widths = (3, 3) if name == "cosine" else (3, 2)
    return [torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for d in widths]


CRITICS = pytest.mark.parametrize("name", list(critics()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", RELEASED)
def test_released_numbers(name, dtype) -> None:
    estimator, options = RELEASED[name]
    scores, golden = released_scores(dtype), GOLDENS[name]
    found = F.mutual_information(scores, estimator, **options)
    found.backward()
    # The released code ran in float32.
    assert abs(found.item() - golden["value"]) < 2e-6
    for expected in golden.get("grad", []):
        assert abs(scores.grad.sum().item() - expected["sum"]) < 2e-6
        assert abs(scores.grad.norm().item() - expected["l2"]) < 1e-6
        assert np.allclose(scores.grad.flatten()[:3], expected["first3"], rtol=0, atol=2e-7)


def _literal(s: torch.Tensor, estimator: str) -> torch.Tensor:
    """The formulas as they are printed, over all pairs at once."""
    n = len(s)
    positives, negatives = s.diagonal(), s[~torch.eye(n, dtype=torch.bool)]
    if estimator == "infonce":
        return (positives - s.exp().mean(1).log()).mean()
    if estimator == "clip":
        return (positives - 0.5 * (s.exp().mean(1).log() + s.exp().mean(0).log())).mean()
    if estimator == "js_fgan":
        return -torch.log1p(torch.exp(-positives)).mean() - torch.log1p(negatives.exp()).mean()
    if estimator == "smile":
        return positives.mean() - negatives.clamp(-5, 5).exp().mean().log()
    if estimator in ("dv", "mine"):
        return positives.mean() - negatives.exp().mean().log()
    if estimator == "tuba":
        return 1 + positives.mean() - negatives.exp().mean()
    return positives.mean() - (negatives - 1).exp().mean()


@NAMES
@pytest.mark.parametrize("n", [2, 3, 17, 64])
def test_it_is_the_printed_formula(n, estimator) -> None:
    scores = 2 * torch.randn(n, n, dtype=torch.float64)
    torch.testing.assert_close(
        F.mutual_information(scores, estimator), _literal(scores, estimator), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("estimator", ["infonce", "clip", "dv", "nwj", "tuba", "js_fgan"])
def test_gradients_of_scores(estimator) -> None:
    scores = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: F.mutual_information(s, estimator), scores)
    assert torch.autograd.gradgradcheck(lambda s: F.mutual_information(s, estimator), scores)


@pytest.mark.parametrize(("estimator", "objective"), [("js", "js_fgan"), ("smile", "js_fgan")])
def test_the_gradient_is_that_of_another_value(estimator, objective) -> None:
    scores = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)
    found, expected = (
        torch.autograd.grad(3 * F.mutual_information(scores, e), scores)[0] for e in (estimator, objective)
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_mine_divides_by_its_moving_average(momentum) -> None:
    buffer, average = torch.zeros((), dtype=torch.float64), 1.0
    for _ in range(3):
        scores = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)
        (found,) = torch.autograd.grad(F.mutual_information(scores, "mine", buffer=buffer, momentum=momentum), scores)
        off = 1 - torch.eye(5, dtype=torch.float64)
        exponentials = scores.detach().exp() * off / 20
        average = momentum * average + (1 - momentum) * exponentials.sum().item()
        torch.testing.assert_close(found, torch.eye(5, dtype=torch.float64) / 5 - exponentials / average)
        assert math.isclose(buffer.exp().item(), average, rel_tol=1e-12)
    F.mutual_information(torch.full((3, 3), math.nan), "mine", buffer=buffer)
    assert math.isclose(buffer.exp().item(), average, rel_tol=1e-12)


@NAMES
@pytest.mark.parametrize("size", [1e-4, 100.0, 1e4])
def test_no_exponential_overflows(size, estimator) -> None:
    """The released MINE takes exp of scores as they are, which is infinite from 89 up in float32."""
    scores = (size * torch.randn(9, 9)).requires_grad_()
    found = F.mutual_information(scores, estimator)
    found.backward()
    assert found.isfinite()
    assert scores.grad.isfinite().all()
    if estimator in ("nwj", "tuba") and size > 1:
        # The only negatives that count pull down, the positives up.
        assert scores.grad.argmin() == (scores - 1e9 * torch.eye(9)).argmax()
        assert torch.allclose(scores.grad.diagonal(), torch.full((9,), 1 / 9))
    else:
        exact = F.mutual_information(scores.detach().double(), "nwj" if estimator == "js" else estimator)
        assert found.isclose(exact.float(), rtol=1e-5, atol=2e-6) or exact < -1e38


@NAMES
def test_nan_comes_out(estimator) -> None:
    for place in ((1, 1), (0, 2)):
        scores = torch.zeros(4, 4)
        scores[place] = math.nan
        assert F.mutual_information(scores, estimator).isnan()


@pytest.mark.parametrize("estimator", ["infonce", "clip"])
def test_the_cap_is_the_logarithm_of_the_batch(estimator) -> None:
    assert math.isclose(F.mutual_information(1e4 * torch.eye(50), estimator), math.log(50), rel_tol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@NAMES
def test_short_dtypes(dtype, estimator) -> None:
    scores = (2 * torch.randn(8, 8)).to(dtype).requires_grad_()
    found = F.mutual_information(scores, estimator)
    found.backward()
    assert found.dtype == torch.float32
    assert scores.grad.dtype == dtype
    exact = F.mutual_information(scores.detach().double(), estimator)
    assert math.isclose(found.item(), exact.item(), rel_tol=1e-5, abs_tol=1e-5)


S = torch.zeros(4, 4)
BAD_SCORES = [
    (lambda: F.mutual_information(S[:3], "dv"), ValueError, r"scores must be square, \[N, N\], got .*\[3, 4\]"),
    (
        lambda: F.mutual_information(S[:1, :1], "infonce"),
        ValueError,
        r"mutual_information: a batch of N = 1",
    ),
    (lambda: F.mutual_information(S[0], "dv"), ValueError, r"scores must be \[N, N\]"),
    (lambda: F.mutual_information(S.int(), "dv"), TypeError, r"scores must be float64, float32"),
    (lambda: F.mutual_information(S, "mi"), ValueError, r"estimator must be one of 'infonce', 'nwj'.*got str 'mi'"),
    (lambda: F.mutual_information(S, "smile", clip=0), ValueError, r"clip must be positive, or None, got 0"),
    (lambda: F.mutual_information(S, "smile", clip=-1.0), ValueError, r"clip must be finite and at least 0"),
    (
        lambda: F.mutual_information(S, "dv", clip_joint=True),
        ValueError,
        r'clip_joint is for estimator="smile"',
    ),
    (lambda: F.mutual_information(S, "smile", clip=None, clip_joint=True), ValueError, r"with a clip, got 'smile'"),
    (lambda: F.mutual_information(S, "dv", buffer=S[0, 0]), ValueError, r'buffer is for estimator="mine", got \'dv\''),
    (lambda: F.mutual_information(S, "mine", buffer=S), ValueError, r"buffer must be a 0-d tensor .*\[4, 4\]"),
    (lambda: F.mutual_information(S, "mine", buffer=1.0), ValueError, r"buffer must be a 0-d tensor .* got float 1.0"),
    (lambda: F.mutual_information(S, "mine", momentum=1.0), ValueError, r"momentum must be below 1"),
]
CRITIC = information.BilinearCritic(4, 4)
BAD_MODULES = [
    (lambda: MutualInformation("separable"), TypeError, r"critic must be an nn.Module, got str"),
    (lambda: MutualInformation(CRITIC, "mi"), ValueError, r"MutualInformation: estimator must be one of"),
    (lambda: MutualInformation(CRITIC, "infonce", negatives="shuffled"), ValueError, r"'infonce' is over all pairs"),
    (lambda: MutualInformation(torch.nn.Bilinear(4, 4, 1), "dv", negatives="shuffled"), TypeError, r"got Bilinear"),
    (lambda: MutualInformation(CRITIC, negatives="some"), ValueError, r"negatives must be one of 'all', 'shuffled'"),
    (lambda: MutualInformation(CRITIC)(S, S[:3]), ValueError, r"y must have the size 4 in dimension 0.*\[3, 4\]"),
    (lambda: MutualInformation(CRITIC)(S[:1], S[:1]), ValueError, r"MutualInformation: a batch of N = 1 has no pairs"),
    (
        lambda: MutualInformation(CRITIC)(S, S, torch.zeros(2, 4).long()),
        ValueError,
        r"permutations are for",
    ),
    (
        lambda: MutualInformation(CRITIC, "dv", negatives="shuffled")(S, S, torch.zeros(2, 3).long()),
        ValueError,
        r"permutations must be \[2, N\], of x and of y, for N = 4, got a tensor of shape \[2, 3\]",
    ),
    (
        lambda: MutualInformation(CRITIC, "dv", negatives="shuffled")(S, S, torch.zeros(2, 4).long()),
        ValueError,
        r"each row of permutations must hold 0..N - 1 once",
    ),
    (lambda: information.SeparableCritic(0, 3), ValueError, r"SeparableCritic: x_features must be at least 1, got 0"),
    (lambda: information.ConcatenatedCritic(3, 3, 4, 3), ValueError, r"hidden_layers must be 1 or 2, got 3"),
    (lambda: information.CosineCritic(0.0), ValueError, r"CosineCritic: temperature must be positive and finite"),
    (lambda: information.CosineCritic(S[0, 0]), TypeError, r"learnable_temperature=True makes it a parameter"),
    (lambda: CRITIC(S[0], S), ValueError, r"BilinearCritic: x must be \[N, dx\]"),
    (lambda: CRITIC(S[:, :1], S), ValueError, r"BilinearCritic: x must have the size 4 in dimension 1, got .*\[4, 1\]"),
    (lambda: CRITIC(S, S.double()), TypeError, r"BilinearCritic: y and the module's parameters must have one dtype"),
    (
        lambda: information.clip_terms(information.ConcatenatedCritic(4, 4), S.double(), S.double()),
        TypeError,
        r"ConcatenatedCritic: x and the module's parameters must have one dtype",
    ),
    (
        lambda: information.SeparableCritic(2, 3)(torch.zeros(4, 2), torch.zeros(4, 2)),
        ValueError,
        r"SeparableCritic: y must have the size 3 in dimension 1",
    ),
    (
        lambda: information.CosineCritic()(torch.zeros(4, 2), torch.zeros(4, 3)),
        ValueError,
        r"CosineCritic: x and y must have one last dimension",
    ),
    (
        lambda: information.clip_terms(S, S, S),
        TypeError,
        r"clip_terms: critic must be one of mibfast.information's, got",
    ),
    (lambda: information.club(S, S, S[:3]), ValueError, r"club: mean and y must have one shape"),
    (lambda: information.club(S[:1], S[:1], S[:1]), ValueError, r"club: a batch of N = 1"),
    (lambda: information.leave_one_out(S, S, S.double()), TypeError, r"leave_one_out: mean and y must have one dtype"),
    (
        lambda: information.gaussian_mutual_information(torch.randn(8, 4), torch.randn(8, 4)),
        ValueError,
        r"expected more than 8, got N = 8",
    ),
    (
        lambda: information.gaussian_mutual_information(torch.ones(8, 1), torch.randn(8, 1)),
        ValueError,
        r"x has columns that are constant or depend linearly",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), [*BAD_SCORES, *BAD_MODULES])
def test_bad_input(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


@CRITICS
def test_a_critics_scores_are_those_of_its_pairs(name) -> None:
    critic, (x, y) = critics()[name], views(name, 7)
    dense = critic(x, y)
    torch.testing.assert_close(dense.diagonal(), critic.pairs(x, y), rtol=1e-12, atol=1e-12)
    each = torch.stack([critic.pairs(x[i].expand_as(x), y) for i in range(7)])
    torch.testing.assert_close(dense, each, rtol=1e-12, atol=1e-12)
    assert critic(x, y[:4]).shape == (7, 4)


def test_a_concatenated_critic_is_a_perceptron_of_the_pair() -> None:
    critic, (x, y) = critics()["concatenated, two layers"], views("", 6)
    pairs = torch.cat([x[:, None].expand(6, 6, 3), y.expand(6, 6, 2)], 2)
    expected = critic.last(critic.second(critic.first(pairs).relu()).relu())[..., 0]
    torch.testing.assert_close(critic(x, y), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("n", [2, 13, 70])
@NAMES
@CRITICS
def test_streaming_is_the_dense_estimate(name, estimator, n, dtype) -> None:
    """Value and the gradients of both inputs and of every parameter."""
    critic, inputs = critics(dtype)[name], views(name, n, dtype)
    leaves = [*inputs, *critic.parameters()]
    found = MutualInformation(critic, estimator, clip=0.4)(*inputs)
    dense = F.mutual_information(critic(*inputs), estimator, clip=0.4)
    tolerance = {"rtol": 1e-9, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 2e-5}
    assert found.dtype == dtype
    torch.testing.assert_close(found, dense, **tolerance)
    gradients = [torch.autograd.grad(1.7 * each, leaves, allow_unused=True) for each in (found, dense)]
    for a, b in zip(*gradients, strict=True):
        # A bias moves every score alike, which cancels.
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("estimator", ["infonce", "clip", "dv", "js_fgan"])
@CRITICS
def test_gradcheck_through_a_critic(name, estimator) -> None:
    critic, inputs = critics()[name], views(name, 4)
    for needed in product([False, True], repeat=2):
        leaves = [x.detach().requires_grad_(need) for x, need in zip(inputs, needed, strict=True)]
        if any(needed):
            assert torch.autograd.gradcheck(MutualInformation(critic.eval(), estimator), leaves)


def test_a_critic_of_ones_own_is_scored_densely() -> None:
    class Distance(torch.nn.Module):
        def forward(self, x, y):
            return -torch.cdist(x, y)

    x, y = torch.randn(6, 3), torch.randn(6, 3)
    assert torch.equal(MutualInformation(Distance(), "dv")(x, y), F.mutual_information(-torch.cdist(x, y), "dv"))


def test_mines_average_moves_in_training_alone() -> None:
    module = MutualInformation(information.BilinearCritic(3, 2), "mine", momentum=0.5)
    inputs = [z.float() for z in views("", 9)]
    module.eval()(*inputs)
    assert module.log_average == 0
    module.train()(*inputs)
    assert module.log_average != 0
    assert "log_average" in module.state_dict()


@pytest.mark.parametrize("estimator", ["nwj", "tuba", "dv", "mine", "smile", "js_fgan", "js"])
def test_shuffled_negatives(estimator) -> None:
    critic, (x, y) = critics()["concatenated"], views("", 40)
    module = MutualInformation(critic, estimator, clip=0.1, negatives="shuffled")
    order = torch.stack([torch.randperm(40), torch.randperm(40)])
    scores = torch.cat([critic.pairs(x, y), critic.pairs(x[order[0]], y[order[1]])])
    positives, negatives = scores[:40], scores[40:]
    kept = negatives.clamp(-0.1, 0.1) if estimator == "smile" else negatives
    expected = {
        "nwj": positives.mean() - (kept - 1).exp().mean(),
        "js": positives.mean() - (kept - 1).exp().mean(),
        "tuba": 1 + positives.mean() - kept.exp().mean(),
        "js_fgan": -torch.log1p((-positives).exp()).mean() - torch.log1p(kept.exp()).mean(),
    }.get(estimator, positives.mean() - kept.exp().mean().log())
    torch.testing.assert_close(module(x, y, order), expected, rtol=1e-12, atol=1e-12)
    torch.manual_seed(3)
    drawn = module(x, y)
    torch.manual_seed(3)
    assert torch.equal(module(x, y), drawn)


def test_clip_is_donsker_varadhan_and_a_correction() -> None:
    x, y = views("cosine", 30)
    critic = information.CosineCritic(0.1)
    terms = information.clip_terms(critic, x, y)
    scores = critic(x, y)
    torch.testing.assert_close(terms.donsker_varadhan, scores.diagonal().mean() - scores.exp().mean().log())
    torch.testing.assert_close(terms.clip, terms.donsker_varadhan + terms.correction)
    torch.testing.assert_close(terms.clip, F.mutual_information(scores, "clip"))
    assert terms.correction > 0.01
    # Every row and every column has the same partition function.
    same = information.clip_terms(critic, torch.eye(5), torch.eye(5))
    assert abs(same.correction) < 1e-5


@pytest.mark.parametrize("estimator", ["smile", "mine", "clip"])
def test_a_compiled_estimator_is_the_same(estimator) -> None:
    module = MutualInformation(information.ConcatenatedCritic(3, 2, 6), estimator).eval()
    inputs = [z.detach().float() for z in views("", 9)]
    parameters = list(module.parameters())
    expected = torch.autograd.grad(module(*inputs), parameters, allow_unused=True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(compiled(*inputs), parameters, allow_unused=True), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("negatives", ["all", "shuffled"])
@CRITICS
def test_scores_are_not_of_short_dtypes(name, negatives) -> None:
    """Neither under autocast nor of a model in bfloat16: beside float64 on the same rounded embeddings."""
    critic, inputs = critics(torch.float32)[name], [z.detach().float() for z in views(name, 9)]
    module = MutualInformation(critic, "dv", negatives=negatives)
    order = None if negatives == "all" else torch.stack([torch.arange(9).roll(k) for k in (1, 3)])
    expected = module(*inputs, order)
    with torch.autocast("cpu", torch.bfloat16):
        found, dense = module(*inputs, order), critic(*inputs)
    assert found.dtype == dense.dtype == torch.float32
    assert abs(found - expected) < 0.1
    short = module.to(torch.bfloat16)(*(z.bfloat16() for z in inputs), order)
    assert short.dtype == torch.float32
    assert abs(short - expected) < 0.1


def test_a_cosine_of_nothing_is_zero_with_gradient_zero() -> None:
    x, y = torch.zeros(3, 4, requires_grad=True), torch.randn(3, 4)
    scores = information.CosineCritic()(x, y)
    scores.sum().backward()
    assert (scores == 0).all()
    assert (x.grad == 0).all()


def conditional(dtype: torch.dtype) -> list[torch.Tensor]:
    mean, logvar, y = (torch.from_numpy(np.random.default_rng(501 + k).standard_normal((8, 5))) for k in range(3))
    return [z.to(dtype).requires_grad_() for z in (mean, logvar.tanh(), y)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=str)
def test_released_upper_bounds(dtype, tolerance) -> None:
    mean, logvar, y = conditional(dtype)
    expected = {
        "club_upper": information.club(mean, logvar, y),
        "club_mean": information.club(mean, torch.zeros_like(logvar), y),
        "l1out_ub": information.leave_one_out(mean, logvar, y),
    }
    for name, found in expected.items():
        assert found.dtype == dtype
        assert abs(found.item() - GOLDENS[name]["value"]) < tolerance, name


@pytest.mark.parametrize("bound", [information.club, information.leave_one_out])
def test_gradients_of_upper_bounds(bound) -> None:
    assert torch.autograd.gradcheck(bound, conditional(torch.float64))


@pytest.mark.parametrize("needed", [mask for mask in product((False, True), repeat=3) if any(mask)])
def test_gradients_of_club_that_are_asked_for_and_second_ones(needed) -> None:
    inputs = [x.detach().requires_grad_(need) for x, need in zip(conditional(torch.float64), needed, strict=True)]
    assert torch.autograd.gradcheck(information.club, inputs)
    assert torch.autograd.gradgradcheck(information.club, inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bound", [information.club, information.leave_one_out])
def test_upper_bounds_are_as_exact_under_autocast(bound, dtype) -> None:
    """Squares of these leave float16's range."""
    inputs = [100 * torch.randn(64, 8), 0.1 * torch.randn(64, 8), 100 * torch.randn(64, 8)]
    leaves, plain = ([x.clone().requires_grad_() for x in inputs] for _ in range(2))
    with torch.autocast("cpu", dtype):
        found = bound(*leaves)
    expected = bound(*plain)
    torch.testing.assert_close(found, expected)
    for a, b in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, plain), strict=True):
        torch.testing.assert_close(a, b)


def test_club_under_function_transforms() -> None:
    mean, logvar, y = (x.detach() for x in conditional(torch.float64))
    for argument in range(3):
        found = torch.func.grad(information.club, argnums=argument)(mean, logvar, y)
        leaves = [mean, logvar, y.clone()]
        leaves[argument] = leaves[argument].clone().requires_grad_()
        torch.testing.assert_close(found, torch.autograd.grad(information.club(*leaves), leaves[argument])[0])
    batch = torch.stack([mean, 2 * mean])
    found = torch.vmap(information.club, in_dims=(0, None, None))(batch, logvar, y)
    torch.testing.assert_close(found, torch.stack([information.club(each, logvar, y) for each in batch]))


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("logvar", [-12.0, 0.0])
@pytest.mark.parametrize("bound", [information.club, information.leave_one_out])
def test_upper_bounds_far_from_zero_and_of_small_variance(bound, logvar, offset) -> None:
    """Where the squares of float32 inputs cancel, against the definitions in float64."""
    y = torch.randn(50, 3) + offset
    mean = y + 0.01 * torch.randn(50, 3)
    logvars = torch.full_like(y, logvar)
    wide_y, wide_mean = y.double(), mean.double()
    densities = -0.5 * ((wide_y[:, None] - wide_mean).square() * math.exp(-logvar) + logvar).sum(2)
    if bound is information.club:
        expected = (densities.diagonal() - densities.mean(0)).mean()
    else:
        others = densities.masked_fill(torch.eye(50, dtype=torch.bool), -math.inf).logsumexp(1) - math.log(49)
        expected = (densities.diagonal() - others).mean()
    assert math.isclose(bound(mean, logvars, y), expected, rel_tol=1e-3 if offset else 1e-5)


def gaussians(n: int, d: int, nats: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    rho = math.sqrt(1 - math.exp(-2 * nats / d))
    x = rng.standard_normal((n, d))
    return x, rho * x + math.sqrt(1 - rho * rho) * rng.standard_normal((n, d))


def test_information_of_gaussians() -> None:
    x, y = map(torch.from_numpy, gaussians(20_000, 3, 2.0))
    found = information.gaussian_mutual_information(x, y)
    assert abs(found.item() - 2.0) < 0.05
    # Invariant to invertible maps of either.
    mixed = information.gaussian_mutual_information(x @ torch.randn(3, 3).double() + 5, -1e3 * y)
    torch.testing.assert_close(mixed, found, rtol=1e-8, atol=1e-8)
    assert information.gaussian_mutual_information(x[:99], x[:99, :1]) > 15
    assert torch.autograd.gradcheck(information.gaussian_mutual_information, [x[:12].requires_grad_(), y[:12]])


@pytest.mark.parametrize("estimator", ["smile", "infonce"])
def test_an_estimate_of_known_information(estimator) -> None:
    x, y = gaussians(3000, 2, 1.0)
    found = information.estimate(x, y, estimator, epochs=25, held_out=0.2, seeds=2)
    # Held out, a critic of finite training reads less, and 600 samples scatter by some hundredths.
    assert 0.75 < found.value < 1.15
    assert found.samples == 600
    assert found.cap == (math.log(600) if estimator == "infonce" else math.inf)
    assert len(found.by_seed) == len(found.history) == 2
    assert found.spread > 0


def test_an_estimate_of_independent_samples_is_about_zero() -> None:
    """The value is of samples that did not train the critic, whatever it remembers of those that did."""
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, 400, 6))
    found = information.estimate(x, y, "infonce", epochs=60, patience=60, seeds=1)
    assert found.history[0][-1]["train"] > 1.0
    assert found.value < 0.1
    assert math.isnan(found.spread)


def test_an_estimate_repeats_and_leaves_the_generator_alone() -> None:
    x, y = gaussians(200, 2, 1.0)
    lines: list[str] = []
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = information.estimate(x, torch.from_numpy(y).float(), "mine", epochs=3, seeds=[4, 5], progress=lines.append)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    assert information.estimate(x, y.astype(np.float32), "mine", epochs=3, seeds=[4, 5]) == first
    assert [line.split(":")[0] for line in lines[:2]] == ["seed 4, epoch 1", "seed 4, epoch 2"]
    assert "± " in str(first)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("critic", ["separable", "bilinear", "concatenated"])
def test_every_estimator_and_critic_trains(critic, estimator) -> None:
    x, y = gaussians(61, 1, 1.0)
    found = information.estimate(x[:, 0], y, estimator, critic, epochs=2, batch_size=16, seeds=1)
    assert math.isfinite(found.value)
    assert all(math.isfinite(value) for epoch in found.history[0] for value in epoch.values())


def test_averaged_weights_steady_an_estimate(monkeypatch) -> None:
    """At a learning rate that makes the weights of single steps jump about."""
    x, y = gaussians(1500, 2, 1.0)
    spreads = []
    for averaging in (information.estimation._AVERAGING, 0.0):
        monkeypatch.setattr(information.estimation, "_AVERAGING", averaging)
        (history,) = information.estimate(
            x, y, "infonce", epochs=25, patience=25, learning_rate=0.03, batch_size=128, seeds=1
        ).history
        spreads.append(np.std([epoch["validation"] for epoch in history[10:]]))
    assert spreads[0] < 0.6 * spreads[1]


def test_small_rises_do_not_put_off_the_end() -> None:
    """By epochs and, where an epoch is a step or two, by steps."""
    x, y = gaussians(1000, 1, 0.5)
    for batch_size, epochs in ((50, 4), (400, 25)):
        (history,) = information.estimate(
            *(x, y, "infonce", "bilinear"), epochs=60, patience=3, learning_rate=1e-7, batch_size=batch_size, seeds=1
        ).history
        rises = [epoch["validation"] for epoch in history]
        assert all(b >= a for a, b in pairwise(rises))
        assert len(rises) == epochs


def test_an_estimate_evaluates_averaged_weights_with_statistics_that_were_trained() -> None:
    """A critic with buffers: what is evaluated has those of the network that trains, not those of the start."""

    class Normalised(information.SeparableCritic):
        def __init__(self, x_features: int, y_features: int) -> None:
            super().__init__(x_features, y_features, hidden_features=16, activation=lambda: torch.nn.BatchNorm1d(16))

    x, y = gaussians(1000, 1, 1.0)
    found = information.estimate(x, y, "infonce", Normalised, epochs=15, seeds=1)
    # With the statistics of the start a linear critic's scores are off by their scale, and the value is below 0.
    assert found.value > 0.3


def broken_activation() -> torch.nn.Module:
    raise TypeError("broken inside")


def test_what_an_activation_raises_is_said() -> None:
    with pytest.raises(TypeError, match=r"activation must make a module.*broken inside"):
        information.SeparableCritic(2, 2, activation=broken_activation)


@pytest.mark.parametrize("activation", [torch.nn.functional.gelu, torch.nn.GELU(), "gelu", lambda: 1])
def test_an_activation_that_makes_no_module(activation) -> None:
    with pytest.raises(TypeError, match=r"activation must make a module, as torch\.nn\.GELU does, got"):
        information.SeparableCritic(2, 2, activation=activation)


def test_a_constant_feature_changes_nothing_and_breaks_nothing() -> None:
    x, y = gaussians(100, 1, 1.0)
    found = information.estimate(np.concatenate([x, np.ones_like(x)], 1), y, epochs=2, seeds=1)
    assert math.isfinite(found.value)


X = np.zeros((40, 2))
BAD_SAMPLES = [
    (lambda: information.estimate(X, X[:39]), ValueError, r"must have one number of samples.*\[40, 2\].*\[39, 2\]"),
    (lambda: information.estimate(X[:10], X[:10]), ValueError, r"at least 20 samples are needed, got 10"),
    (
        lambda: information.estimate(X, np.full_like(X, np.nan)),
        ValueError,
        r"y must be finite, got 40 samples",
    ),
    (lambda: information.estimate(X[None], X), ValueError, r"x must be \[N, d\], got a tensor of shape \[1, 40, 2\]"),
    (lambda: information.estimate(np.array(["a"] * 40), X), TypeError, r"x must be an array or a tensor of numbers"),
    (lambda: information.estimate(X, X, "mi"), ValueError, r"estimator must be one of"),
    (lambda: information.estimate(X, X, critic="deep"), ValueError, r"critic must be one of 'separable'"),
    (lambda: information.estimate(X, X, held_out=0.5), ValueError, r"held_out = 0.5 of 40 samples leaves a part"),
    (lambda: information.estimate(X, X, held_out=0.01), ValueError, r"held_out = 0.01 of 40 samples leaves a part"),
    (lambda: information.estimate(X, X, batch_size=1), ValueError, r"a batch of 1 has no pairs"),
    (lambda: information.estimate(X, X, epochs=0), ValueError, r"epochs must be at least 1, got 0"),
    (lambda: information.estimate(X, X, seeds=[]), ValueError, r"seeds must hold at least one"),
    (lambda: information.estimate(X, X, learning_rate=0), ValueError, r"learning_rate must be positive, got 0"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_SAMPLES)
def test_bad_samples(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()
