"""Estimators of mutual information: released numbers, the same by streaming as in one piece, and known truths.

Streaming is tested with every pair of critic, estimator, batch and dtype rather than with all 300 of them: estimators
are made of the same few sums, whose kernels `test_critic.py` goes through size by size.
"""

import json
import math
import re
import warnings
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch

from mibfast import functional as F
from mibfast import information
from mibfast.information import MutualInformation

GOLDENS = json.loads((Path(__file__).parents[1] / "goldens" / "golden.json").read_text())["goldens"]
ESTIMATORS = ("infonce", "nwj", "tuba", "dv", "mine", "smile", "js_fgan", "js", "js_tuba", "clip")
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
        "separable, squared distance": information.SeparableCritic(3, 2, 4, 5, score="squared_distance"),
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
    if estimator in ("tuba", "js_tuba"):
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


@pytest.mark.parametrize(("estimator", "objective"), [("js", "js_fgan"), ("js_tuba", "js_fgan"), ("smile", "js_fgan")])
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
        value = {"js": "nwj", "js_tuba": "tuba"}.get(estimator, estimator)
        exact = F.mutual_information(scores.detach().double(), value)
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
    (lambda: information.SeparableCritic(3, 3, score="cosine"), ValueError, r"score must be one of 'inner_product', "),
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


BATCHES = [(n, dtype) for n in (2, 13, 70) for dtype in (torch.float64, torch.float32)]
STREAMED = [
    (name, estimator, *BATCHES[(i + k) % len(BATCHES)])
    for i, name in enumerate(critics())
    for k, estimator in enumerate(ESTIMATORS)
]


@pytest.mark.parametrize(("name", "estimator", "n", "dtype"), STREAMED)
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


@pytest.mark.parametrize("estimator", ["nwj", "tuba", "dv", "mine", "smile", "js_fgan", "js", "js_tuba"])
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
        "js_tuba": 1 + positives.mean() - kept.exp().mean(),
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


@pytest.mark.parametrize("estimator", ["infonce", "smile", "mine"])
@pytest.mark.filterwarnings("ignore:estimate")
def test_a_critic_without_parameters_is_evaluated_as_it_is(estimator) -> None:
    """A cosine of a fixed temperature, or a network that is frozen, has nothing to train."""
    x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))

    def frozen(dx: int, dy: int) -> torch.nn.Module:
        return information.SeparableCritic(dx, dy, depth=1).requires_grad_(False)

    for make in (lambda *_: information.CosineCritic(0.1), frozen):
        result = information.estimate(x, x, estimator, make, seeds=2)
        assert result.history == ((), ())
        assert all(map(math.isfinite, result.by_seed))
    # Cosines of temperature 0.1 tell a sample from the 39 others that are held out.
    assert information.estimate(x, x, "infonce", lambda *_: information.CosineCritic(0.1)).value > 1.5


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


@pytest.mark.filterwarnings("ignore::mibfast.information.EstimateWarning")  # After two epochs a value may be negative.
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("critic", ["separable", "bilinear", "concatenated"])
def test_every_estimator_and_critic_trains(critic, estimator) -> None:
    x, y = gaussians(61, 1, 1.0)
    found = information.estimate(x[:, 0], y, estimator, critic, epochs=2, batch_size=16, seeds=1)
    assert math.isfinite(found.value)
    assert all(math.isfinite(value) for epoch in found.history[0] for value in epoch.values())


SECONDS = (1.7e9 + 60 * np.random.default_rng(2).standard_normal((300, 1))).round()
WIDE = {
    "int64": SECONDS.astype(np.int64),
    "uint64": SECONDS.astype(np.uint64),
    "uint32": SECONDS.astype(np.uint32),
    "big-endian": SECONDS.astype(">i8"),
    "list": SECONDS.astype(np.int64)[:, 0].tolist(),
    "int64 tensor": torch.from_numpy(SECONDS.astype(np.int64)),
    "uint64 tensor": torch.from_numpy(SECONDS.astype(np.uint64)),
    "int32 tensor": torch.from_numpy(SECONDS.astype(np.int32)),
    "float64 tensor": torch.from_numpy(SECONDS),
}


@pytest.mark.parametrize("kind", list(WIDE))
def test_numbers_of_any_dtype_keep_their_digits(kind) -> None:
    """Seconds since 1970 that differ by a minute: float32 tells apart no more than two minutes."""
    y = SECONDS / 60 + np.random.default_rng(3).standard_normal((300, 1))
    settings = {"epochs": 2, "seeds": 1}
    found = information.estimate(WIDE[kind], y, **settings)
    assert found.by_seed == information.estimate(SECONDS, y, **settings).by_seed
    assert found.by_seed != information.estimate(SECONDS.astype(np.float32), y, **settings).by_seed


@pytest.mark.parametrize("kind", ["array", "tensor", "list"])
def test_truths_are_numbers(kind) -> None:
    x, y = gaussians(200, 1, 1.0)
    truths = x > 0
    given = {"array": truths, "tensor": torch.from_numpy(truths), "list": truths[:, 0].tolist()}[kind]
    settings = {"epochs": 2, "seeds": 1}
    found = information.estimate(given, y, **settings)
    assert found.by_seed == information.estimate(truths.astype(float), y, **settings).by_seed


@pytest.mark.parametrize("unit", [2.0**-600, 2.0**-1000, 2.0**600, 2.0**1000])
def test_features_whose_squares_leave_float64s_range(unit) -> None:
    x, y = gaussians(200, 2, 1.0)
    settings = {"epochs": 2, "seeds": 1}
    assert information.estimate(unit * x, y, **settings).by_seed == information.estimate(x, y, **settings).by_seed


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


@pytest.mark.filterwarnings("ignore::mibfast.information.EstimateWarning")  # The critic has learned nothing.
def test_small_rises_do_not_put_off_the_end() -> None:
    """By epochs and, where an epoch is a step or two, by steps, 24 of which raise the learning rate."""
    x, y = gaussians(1000, 1, 0.5)
    for batch_size, epochs in ((50, 5), (400, 36)):
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
        r"y must be finite, got 40 of 40 samples",
    ),
    (lambda: information.estimate(X[None], X), ValueError, r"x must be \[N, d\], got a tensor of shape \[1, 40, 2\]"),
    (
        lambda: information.estimate(np.array(["a"] * 40), X),
        TypeError,
        r"x must be an array or a tensor of real numbers",
    ),
    (lambda: information.estimate(X + 0j, X), TypeError, r"x must be an array or a tensor of real numbers"),
    (lambda: information.estimate(X, torch.zeros(40, 2) + 0j), TypeError, r"y must be .* of real numbers"),
    (lambda: information.estimate(X, X, transform="rank"), ValueError, r"transform must be one of 'standardise', 'ra"),
    (lambda: information.estimate(X, X, "mi"), ValueError, r"^estimate: estimator must be one of"),
    (lambda: information.estimate(X, X, clip=0.0), ValueError, r"^estimate: clip must be positive"),
    (lambda: information.estimate(X, X, "mine", momentum=1.0), ValueError, r"^estimate: momentum must be below 1"),
    (lambda: information.estimate(X, X, critic=lambda dx, dy: 3), TypeError, r"^estimate: critic must make an nn.Mod"),
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


class FailsAt(torch.nn.Module):
    """A critic whose parameter turns NaN once it has scored so many batches, in training or evaluation."""

    def __init__(self, calls: float) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.register_buffer("left", torch.tensor(float(calls)))

    def forward(self, x, y):
        if self.training:
            self.left -= 1
        return torch.where(self.left < 0, math.nan, self.scale) * x @ y.mT


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_training_that_diverges_gives_no_estimate_whatever_the_estimator(estimator) -> None:
    """From the first step, or after an epoch that was well."""
    x, y = gaussians(100, 1, 1.0)
    for calls, epochs in ((0, 1), (3, 4)):
        with pytest.warns(information.EstimateWarning, match=r"training diverged \(NaN or infinity\) for 1 of 1 seeds"):
            found = information.estimate(x, y, estimator, lambda dx, dy, n=calls: FailsAt(n), seeds=1, epochs=9)
        assert math.isnan(found.value)
        assert len(found.history[0]) == epochs
        assert math.isnan(found.history[0][-1]["train"])
        assert "nan nats" in str(found)
        assert "doubtful: training diverged" in str(found)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("critic", ["separable", "bilinear", "concatenated"])
def test_a_learning_rate_without_measure_does_not_go_unsaid(critic, estimator) -> None:
    x, y = gaussians(100, 1, 1.0)
    with pytest.warns(information.EstimateWarning):
        found = information.estimate(x, y, estimator, critic, seeds=1, epochs=3, learning_rate=1e30)
    assert found.doubts


def test_one_seed_that_diverges_is_named() -> None:
    x, y = gaussians(100, 1, 1.0)
    fates = iter([math.inf, 5, math.inf])
    with pytest.warns(information.EstimateWarning, match=r"for 1 of 3 seeds \(8\), so there is no estimate") as said:
        found = information.estimate(x, y, "infonce", lambda dx, dy: FailsAt(next(fates)), seeds=[7, 8, 9], epochs=20)
    assert len(said) == len(found.doubts) == 1
    assert [math.isnan(value) for value in found.by_seed] == [False, True, False]
    assert math.isnan(found.value)


def test_a_critic_that_tells_nothing_apart_is_named() -> None:
    x, y = gaussians(100, 1, 1.0)
    with pytest.warns(information.EstimateWarning, match="the critic scores all pairs alike for 1 of 1 seeds"):
        found = information.estimate(x, y, "infonce", "bilinear", seeds=1, epochs=2, learning_rate=1e-30)
    assert found.value == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("values", "estimator", "cap", "doubt"),
    [
        ((1.0, 1.2), "infonce", 4.6, None),
        ((-0.05, 0.04), "infonce", 4.6, None),
        ((-0.1, -0.1), "infonce", 4.6, r"-0\.1 nats is negative, which no information is.*nor that there is none$"),
        ((-0.101, 0.05, 0.06), "tuba", math.inf, r"-0\.101 nats of one seed is negative"),
        ((-0.1, -0.1), "js", math.inf, r'negative.*"js" reads 1 / e = 0.37 nats low, unlike "js_tuba"'),
        ((-1.2, -1.3), "js_fgan", 0.0, None),
        ((-2.0, -2.0), "js_fgan", 0.0, r"-2 nats is below -2 ln 2 = -1\.39"),
        ((4.5, 4.5), "clip", 4.6, r"4\.5 nats is at the cap, 4\.6; the truth is larger"),
        ((4.7, 4.7), "dv", math.inf, r"4\.7 nats is above ln N = 4\.61, more than which the N = 100 held-out samples"),
        ((0.03, 0.3), "mine", math.inf, r"seeds differ by 0\.191 nats, of 0\.165"),
    ],
)
def test_values_that_are_not_to_be_trusted(monkeypatch, values, estimator, cap, doubt) -> None:
    trained = iter(information.estimation._Trained(value, ()) for value in values)
    monkeypatch.setattr(information.estimation, "_trained", lambda *arguments: next(trained))
    monkeypatch.setattr(information.estimation, "_cap", lambda *arguments: cap)
    x, y = gaussians(1000, 1, 1.0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = information.estimate(x, y, estimator, seeds=len(values))
    assert [str(each.message) for each in said] == [f"estimate: {each}" for each in found.doubts]
    assert all(each.category is information.EstimateWarning for each in said)
    if doubt is None:
        assert not found.doubts
    else:
        assert len(found.doubts) == 1
        assert re.search(doubt, found.doubts[0])


@pytest.mark.parametrize(
    ("estimator", "nats", "data", "seed"),
    [("nwj", 1.164, 70, 80), ("tuba", 1.0, 70, 82), ("dv", 1.0, 70, 82), ("mine", 1.0, 70, 82), ("mine", 1.0, 71, 82)],
)
def test_estimators_of_exponentials_do_not_lose_their_critic(estimator, nats, data, seed) -> None:
    """On samples and seeds with which gradients of a single pair once drove a critic to scores that were all alike."""
    x, y = gaussians(1000, 1, nats, data)
    assert information.estimate(x, y, estimator, seeds=[seed]).value > 0.75 * nats


@pytest.mark.parametrize(("n", "d"), [(200, 100), (300, 200)])
def test_a_bilinear_critic_of_many_features_reaches_the_cap(n, d) -> None:
    """Of x with itself, whose information is infinite, from fewer samples than the critic has weights."""
    x = np.random.default_rng(0).standard_normal((n, d))
    with pytest.warns(information.EstimateWarning, match="is at the cap"):
        found = information.estimate(x, x, "infonce", "bilinear", seeds=2)
    assert found.value > found.cap - 0.05
    independent = np.random.default_rng(1).standard_normal((n, d))
    with warnings.catch_warnings():
        # Of 20 pairs the value may be negative by a tenth of a nat.
        warnings.simplefilter("ignore", information.EstimateWarning)
        assert abs(information.estimate(x, independent, "infonce", "bilinear", seeds=2).value) < 0.3


HARSH = {
    "sinh": lambda x: np.sinh(4 * x),
    "outlier": lambda x: np.where(np.arange(len(x))[:, None] == 3, 1e8, x),
}


@pytest.mark.parametrize("kind", list(HARSH))
def test_ranks_mend_what_heavy_tails_ruin(kind) -> None:
    """Maps that are invertible, or change one sample of a thousand."""
    x, y = gaussians(1000, 1, 0.5)
    settings = {"seeds": 1, "epochs": 25}
    with pytest.warns(information.EstimateWarning, match=r'x\[:, 0\] reaches \d.* transform="ranks" mends that'):
        ruined = information.estimate(HARSH[kind](x), y, **settings)
    mended = information.estimate(HARSH[kind](x), y, **settings, transform="ranks")
    plain = information.estimate(x, y, **settings, transform="ranks")
    assert ruined.value < 0.6 * plain.value
    assert abs(mended.value - plain.value) < 0.03
    if kind == "sinh":
        assert mended.by_seed == plain.by_seed


def test_ranks_of_ties_are_their_mean() -> None:
    scores = information.estimation.normal_scores(torch.tensor([[3.0], [-0.0], [7.0], [0.0], [7.0]]))
    quantiles = torch.special.ndtri((torch.tensor([3.0, 1.5, 4.5, 1.5, 4.5], dtype=torch.float64) - 0.5) / 5)
    torch.testing.assert_close(scores[:, 0], quantiles)


def distributions(n: int) -> dict[str, tuple[np.ndarray, bool]]:
    rng = np.random.default_rng(4)
    z = rng.standard_normal(n)
    return {
        "normal": (z, False),
        "uniform": (rng.random(n), False),
        "exponential": (rng.exponential(size=n), False),
        "Student's t, 3 degrees of freedom": (rng.standard_t(3, n), False),
        "an event of 1%": ((rng.random(n) < 0.01).astype(float), False),
        "counts": (rng.poisson(0.1, n), False),
        "constant": (np.ones(n), False),
        "sinh": (np.sinh(4 * z), True),
        "outlier": (np.where(np.arange(n) == 3, 1e8, z), True),
        "outlier beyond all digits": (np.where(np.arange(n) == 3, 1e300, z), True),
    }


@pytest.mark.parametrize("n", [200, 5000])
@pytest.mark.parametrize("name", list(distributions(20)))
def test_tails_that_are_hinted_at(name, n) -> None:
    values, heavy = distributions(n)[name]
    columns = torch.from_numpy(np.stack([np.zeros(n), values.astype(float)], 1))
    found = information.estimation.heavy_tails("x", columns)
    assert bool(found) == heavy
    if heavy:
        assert found[0].startswith("x[:, 1] reaches ")


def test_js_at_its_optimum_is_a_share_of_a_nat_low_and_js_tuba_is_not() -> None:
    """With the exact log-density ratio, which the gradient of both leads to."""
    rho, n = 0.8, 3000
    x, y = map(torch.from_numpy, gaussians(n, 1, -0.5 * math.log(1 - rho**2)))
    exponent = rho * x @ y.mT - 0.5 * rho**2 * (x.square() + y.square().mT)
    scores = exponent / (1 - rho**2) - 0.5 * math.log(1 - rho**2)
    truth = scores.diagonal().mean()
    assert abs(F.mutual_information(scores, "js_tuba") - truth) < 0.01
    assert abs(F.mutual_information(scores, "js") - (truth - 1 / math.e)) < 0.01
    # No other critic has a larger value of what their gradient maximises.
    best = F.mutual_information(scores, "js_fgan")
    assert all(F.mutual_information(other, "js_fgan") < best for other in (scores + 0.5, scores - 0.5, 0.8 * scores))


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("bound", [information.club, information.leave_one_out])
def test_upper_bounds_of_what_is_not_finite_are_not_finite(bound, bad, place) -> None:
    if bound is information.club and place == 1 and bad == math.inf:
        pytest.skip("a q(y | x) of infinite variance is flat, and its share in CLUB 0")
    inputs = [x.detach() for x in conditional(torch.float32)]
    inputs[place][2, 1] = bad
    assert not bound(*inputs).isfinite()
