"""OMIB: its weights, bounds and losses against the goldens and the paper's algorithms written out, and its errors."""

import copy
import json
import math
import warnings
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mibfast import functional as F
from mibfast import omib
from mibfast.information import Estimate
from mibfast.nn import fusion
from mibfast.nn.fusion.cross_attention import FUSIONS
from mibfast.omib import bounds

GOLDENS = json.loads((Path(__file__).parents[1] / "goldens" / "golden.json").read_text())["goldens"]
RATIOS = ("ratio_of_means", "mean_of_ratios")


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


# --- weights


def test_weights_of_the_golden() -> None:
    first, second, third, fused = (normal(seed, 4, 5) for seed in (890, 891, 892, 893))
    golden = GOLDENS["omib_r_classification"]["value"]
    literal = omib.modality_weights([first, second, third], fused, ratio="mean_of_ratios")
    assert np.allclose(literal, [golden["r1_literal"], golden["r2_literal"]], rtol=0, atol=1e-12)
    assert abs(literal[0].item() - golden["r1_algebraic"]) < 1e-12
    assert abs(omib.modality_weights([first, second], fused).item() - golden["r1_ratio_of_means"]) < 1e-12


@pytest.mark.parametrize("task", ["regression", fusion.Regression(), "anomaly-detection"])
@pytest.mark.parametrize("ratio", RATIOS)
def test_weights_of_the_golden_in_regression(ratio, task) -> None:
    first, second, _, fused = (normal(seed, 4, 1) for seed in (890, 891, 892, 893))
    found = omib.modality_weights({"a": first, "b": second}, fused, task=task, ratio=ratio)
    assert abs(found.item() - GOLDENS["omib_r_regression"]["value"][ratio]) < 1e-12


@pytest.mark.parametrize("ratio", RATIOS)
def test_weights_are_one_minus_tanh_of_the_logarithm(ratio) -> None:
    predictions, fused = [normal(seed, 6, 3) for seed in range(4)], normal(9, 6, 3)
    kl = [
        (x.softmax(1) * (x.log_softmax(1) - fused.log_softmax(1))).sum(1) for x in predictions
    ]  # equation 11 to the letter
    found = omib.modality_weights(predictions, fused, ratio=ratio)
    for k, each in enumerate(kl[1:]):
        rho = each.mean() / kl[0].mean() if ratio == "ratio_of_means" else (each / kl[0]).mean()
        assert abs(found[k].item() - (1 - math.tanh(math.log(rho)))) < 1e-12


NUMBERS = st.floats(-(2.0**100), 2.0**100, width=32)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(NUMBERS, min_size=6, max_size=6), min_size=3, max_size=4),
    st.sampled_from(RATIOS),
    st.sampled_from(["classification", "regression", "anomaly-detection"]),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_weights_of_any_finite_predictions_are_in_range(rows, ratio, task, dtype) -> None:
    *predictions, fused = (torch.tensor(row, dtype=dtype).reshape(3, 2) for row in rows)
    found = omib.modality_weights(predictions, fused, task=task, ratio=ratio)
    assert found.shape == (len(predictions) - 1,)
    assert found.dtype == dtype
    assert ((found >= 0) & (found <= 2)).all()


@pytest.mark.parametrize("ratio", RATIOS)
def test_weights_at_the_ends(ratio) -> None:
    fused = torch.zeros(3, 2)
    away = torch.tensor([[1.0, -1.0]]).repeat(3, 1)

    def of(first, second) -> float:
        return omib.modality_weights([first, second], fused, ratio=ratio).item()

    assert of(fused, fused) == 1.0  # neither knows more
    assert of(away, away) == 1.0
    assert of(away, fused) == 2.0  # the second has nothing left, and is compressed most
    assert of(fused, away) == 0.0  # it has all that is left
    huge = torch.full((3, 1), 1e300, dtype=torch.float64)
    for second, expected in ((huge, 1.0), (huge * 0, 2.0)):
        found = omib.modality_weights([huge, second], huge * 0, task="regression", ratio=ratio)
        assert found.item() == expected


def test_weights_follow_what_is_left_and_not_its_scale() -> None:
    fused, first, second = (normal(seed, 8, 3) for seed in range(3))
    r = omib.modality_weights([first, second], fused, task="regression").item()
    for scale in (1e-4, 1e4, 1e-150, 1e150):
        scaled = omib.modality_weights([scale * first, scale * second], scale * fused, task="regression")
        assert abs(scaled.item() - r) < 1e-12
    farther = omib.modality_weights([first, fused + 2 * (second - fused)], fused, task="regression").item()
    assert farther < r
    swapped = omib.modality_weights([second, first], fused, task="regression").item()
    assert abs(r + swapped - 2) < 1e-12  # 2 / (1 + rho^2) + 2 / (1 + 1 / rho^2)


def test_weights_are_detached_and_say_when_predictions_are_not_numbers() -> None:
    first, second, fused = (normal(seed, 4, 3).requires_grad_() for seed in range(3))
    assert not omib.modality_weights([first, second], fused).requires_grad
    with torch.no_grad():
        second[0, 0] = torch.nan
    assert omib.modality_weights([first, second], fused).isnan().all()
    half = omib.modality_weights([first.bfloat16(), first.bfloat16()], fused.bfloat16())
    assert half.dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([torch.zeros(2, 3)], torch.zeros(2, 3)), {}, "at least 2 modalities, got 1"),
        ((torch.zeros(2, 2, 3), torch.zeros(2, 3)), {}, "sequence of M tensors"),
        (([torch.zeros(2, 3), torch.zeros(2, 4)], torch.zeros(2, 3)), {}, r"logits_by_modality\[1\] .* shape \[2, 4\]"),
        (([torch.zeros(2, 3)] * 2, torch.zeros(2, 3).double()), {}, "one dtype"),
        (([torch.zeros(2, 3)] * 2, torch.zeros(2, 3)), {"task": "ranking"}, "task must be one of 'classification'"),
        (([torch.zeros(2, 3)] * 2, torch.zeros(2, 3)), {"ratio": "mean"}, "ratio must be one of 'ratio_of_means'"),
        (([torch.zeros(2, 1)] * 2, torch.zeros(2, 1)), {}, "classes must be at least 2"),
    ],
)
def test_weights_refuse(arguments, options, message) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        omib.modality_weights(*arguments, **options)


# --- losses


def test_losses_of_the_golden() -> None:
    predictions, fused = [normal(seed, 4, 5) for seed in (890, 891, 892)], normal(893, 4, 5)
    task = fusion.Classification(5).loss(fused, torch.tensor([0, 1, 2, 3])).mean()
    kl = [F.gaussian_kl(normal(301 + i, 4, 6), 0.3 * normal(311 + i, 4, 6)) for i in range(3)]
    golden = GOLDENS["omib_LOMF_2mod"]["value"]
    assert abs(task.item() - golden["ce"]) < 1e-12
    assert np.allclose(kl, golden["kl"], rtol=0, atol=1e-12)
    for m, expected in ((2, golden["total"]), (3, GOLDENS["omib_LOMF_3mod"]["value"])):
        r = omib.modality_weights(predictions[:m], fused, ratio="mean_of_ratios")
        assert abs(omib.omf_loss(task, kl[:m], r, 0.01).item() - expected) < 1e-12


def test_svdd_loss_of_the_golden() -> None:
    golden = GOLDENS["svdd"]
    task = fusion.AnomalyDetection(5).double()
    task.set_center(normal(896, 1, 5))
    assert np.allclose(task.center, golden["c"], rtol=0, atol=1e-12)
    prediction = normal(895, 8, 5)
    assert abs(omib.svdd_loss(prediction, task.center).item() - golden["value"]) < 1e-12
    assert abs(task.loss(prediction).mean().item() - golden["value"]) < 1e-12
    with pytest.raises(ValueError, match="one last dimension"):
        omib.svdd_loss(prediction, torch.zeros(4, dtype=torch.float64))


S, H = torch.tensor(1.0), torch.tensor(1.0, dtype=torch.float16)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: omib.omf_loss(1.0, [S], None, 0.1), TypeError, r"task_loss must be a 0-d .* got float 1.0"),
        (lambda: omib.omf_loss(S, S, None, 0.1), TypeError, r"divergences must be a sequence .* got a tensor"),
        (
            lambda: omib.omf_loss(S, [], None, 0.1),
            TypeError,
            r"divergences must be a sequence .* one at least, got list",
        ),
        (lambda: omib.omf_loss(S, [S, S.expand(2)], None, 0.1), TypeError, r"divergences\[1\] must be a 0-d .*\[2\]"),
        (lambda: omib.omf_loss(S, [S, S.int()], None, 0.1), TypeError, r"divergences\[1\] must be a 0-d .*int32"),
        (lambda: omib.omf_loss(S, [S, S.double()], None, 0.1), TypeError, r"must have one dtype, .*float32.*float64"),
        (lambda: omib.omf_loss(S, [S.to("meta")], None, 0.1), ValueError, r"must be on one device"),
        (lambda: omib.omf_loss(S, [S, S], [0.5], 0.1), TypeError, r"weights must be a tensor \[M-1\], got list"),
        (lambda: omib.omf_loss(S, [S, S], torch.ones(2), 0.1), ValueError, r"weights must have the size 1 .*\[2\]"),
        (lambda: omib.omf_loss(S, [S, S], torch.ones(1).double(), 0.1), TypeError, r"weights must have one dtype"),
        (lambda: omib.omf_loss(S, [S, S], None, -0.1), ValueError, r"beta must be finite and at least 0, got -0.1"),
        (
            lambda: omib.svdd_loss(S, S),
            ValueError,
            r"svdd_loss: prediction must be \[N, d\], got a tensor of shape \[\]",
        ),
        (lambda: omib.svdd_loss(H.expand(2, 2), S.expand(2)), TypeError, r"prediction and center must have one dtype"),
        (lambda: omib.collapse_risks([S]), TypeError, r"collapse_risks: module must be an nn.Module, got list"),
    ],
)
def test_losses_refuse(call, kind, message) -> None:
    with pytest.raises(kind, match=message):
        call()


def test_the_loss_of_the_fusion_in_float16_is_formed_in_float32() -> None:
    loss = omib.omf_loss(60000 * H, [60000 * H, 60000 * H], H.expand(1), 1.0)
    assert loss.dtype == torch.float32
    assert loss == 180000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_losses_of_shorter_dtypes_are_formed_in_float32(dtype) -> None:
    """Squares of float16 overflow from 256 on; every difference here is exact."""
    prediction = torch.full((4, 5), 300.0, dtype=dtype, requires_grad=True)
    reference = torch.zeros(4, 5, dtype=dtype)
    regression, classification, anomalies = fusion.Regression(5), fusion.Classification(5), fusion.AnomalyDetection(5)
    anomalies.to(dtype).set_center(reference + 1)
    found = {
        "svdd_loss": (omib.svdd_loss(prediction, reference[0]), 450000),
        "regression": (regression.loss(prediction, reference).mean(), 450000),
        "divergence of regression": (regression.divergence(prediction, reference).mean(), 225000),
        "anomalies": (anomalies.loss(prediction).mean(), 5 * 299**2),
        "divergence of anomalies": (anomalies.divergence(prediction, reference).mean(), 225000),
        "classification": (classification.loss(prediction, torch.zeros(4).long()).mean(), math.log(5)),
        "divergence of classification": (classification.divergence(prediction, reference).mean(), 0),
    }
    for name, (value, expected) in found.items():
        assert value.dtype == torch.float32, name
        assert abs(value.item() - expected) <= 1e-6 * max(1, expected), name
    (gradient,) = torch.autograd.grad(found["svdd_loss"][0], prediction)
    assert gradient.dtype == dtype
    assert (gradient == 150).all()


# --- the bounds of beta


def test_bounds_of_the_golden() -> None:
    golden = GOLDENS["omib_bounds"]["value"]
    two = omib.beta_bounds([2.0, 3.0], {(0, 1): 0.5})
    assert np.allclose(two, (golden["Ml2"], golden["Mu2"]), rtol=1e-12)
    assert np.allclose(omib.beta_bounds([2.0, 3.0], {(1, 2): 0.5}, [1.0])[1], golden["Mu2_with_r1"], rtol=1e-12)
    expected = (golden["Ml3"], golden["Mu3"])
    for first in (0, 1):  # pairs may be counted from 0 or from 1
        pairs = {(first, first + 1): 0.5, (first, first + 2): 0.25, (first + 1, first + 2): 0.75}
        assert np.allclose(omib.beta_bounds([2.0, 3.0, 2.5], pairs), expected, rtol=1e-12)
    named = omib.beta_bounds({"a": 2.0, "b": 3.0, "c": 2.5}, {("a", "b"): 0.5, ("a", "c"): 0.25, ("b", "c"): 0.75})
    assert np.allclose(named, expected, rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=6), st.floats(0, 1), st.data())
def test_bounds_of_consistent_informations_are_in_order(entropies, share, data) -> None:
    pairs = {(i, j): share * min(entropies[i], entropies[j]) for i, j in combinations(range(len(entropies)), 2)}
    lower, upper = omib.beta_bounds(entropies, pairs)
    assert 0 < lower <= upper * (1 + 1e-12)
    weights = data.draw(st.lists(st.floats(0, 2), min_size=len(entropies) - 1, max_size=len(entropies) - 1))
    assert omib.beta_bounds(entropies, pairs, weights)[1] >= upper * (1 - 1e-12)  # every r is at most 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], {}), "at least 2 modalities"),
        (([1.0, 1.0, 1.0], {(0, 1): 0.1}), r"every pair, \(0, 1\), \(0, 2\), \(1, 2\)"),
        (([1.0, 1.0], {(1, 0): 0.1}), r"every pair, \(0, 1\)"),
        (({"a": 1.0, "b": 1.0}, {(0, 1): 0.1}), r"every pair, \('a', 'b'\)"),
        (([1.0, math.nan], {(0, 1): 0.1}), r"entropies\[1\] must be finite"),
        (([1.0, 1.0], {(0, 1): math.inf}), r"pairwise_mutual_information\[\(0, 1\)\] must be finite"),
        (([1.0, 1.0], {(0, 1): 2.0}), r"pairwise_mutual_information\[\(0, 1\)\] must be in \[0, 1\], .* got 2"),
        (({"a": 3.0, "b": 1.0}, {("a", "b"): 1.5}), r"\('a', 'b'\)\] must be in \[0, 1\], .* got 1.5"),
        (([1.0, 2.0, 3.0], {(1, 2): 0.1, (1, 3): 0.1, (2, 3): 2.5}), r"\(2, 3\)\] must be in \[0, 2\], .* got 2.5"),
        (([1.0, 1.0], {(0, 1): -0.1}), r"\(0, 1\)\] must be finite and at least 0, got -0.1"),
        (([3.0, -1.0], {(0, 1): 0.0}), r"entropies\[1\] must be finite and at least 0, got -1"),
        (([0.0, 0.0], {(0, 1): 0.0}), "must hold information"),
        (([1.0, 1.0], {(0, 1): 0.1}, [1.0, 1.0]), "1 numbers, got 2"),
        (([1.0, 1.0], {(0, 1): 0.1}, [2.5]), r"in \[0, 2\]"),
        ((1.0, {(0, 1): 0.1}), "entropies must be a sequence of numbers, got float 1.0"),
        ((torch.ones(()), {(0, 1): 0.1}), "entropies must be a sequence of numbers, got a tensor"),
        (([1.0, 1.0], {(0, 1): 0.1}, 1.0), "weights must be a sequence of numbers, got float 1.0"),
        (([1.0, 1.0], [0.1]), "pairwise_mutual_information must be a mapping from every pair"),
    ],
)
def test_bounds_refuse(arguments, message) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        omib.beta_bounds(*arguments)


def estimate_quietly(*arguments, **options) -> omib.BetaEstimate:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return omib.estimate_beta(*arguments, **options)


def test_beta_from_data() -> None:
    rng = np.random.default_rng(0)
    shared, labels = rng.standard_normal((800, 1)), rng.integers(0, 4, 800)
    views = {
        "x": np.concatenate([shared, rng.standard_normal((800, 1))], 1).reshape(800, 2, 1),
        "y": torch.from_numpy(np.concatenate([shared, rng.standard_normal((800, 1))], 1)),
        "label": np.eye(4)[labels],
    }
    lines = []
    settings = {"estimator": "infonce", "samples": 600, "seeds": 1, "epochs": 15, "batch_size": 64, "held_out": 0.2}
    found = estimate_quietly(views, **settings, progress=lines.append)
    again = estimate_quietly(views, **settings)
    assert (found.lower, found.upper) == (again.lower, again.upper)
    assert 0 < found.lower <= found.draw(1) <= found.upper
    assert found.draw(1) == found.draw(1) != found.draw(2)
    assert found.samples == 600
    assert found.cap == math.log(120)
    assert found.informations["x", "y"].value > 0.5 > abs(found.informations["x", "label"].value)
    # Of four classes it is ln 4, and no more; of what is continuous what the critic has learned to tell.
    assert abs(found.entropies["label"].value - math.log(4)) < 0.05
    assert found.entropies["x"].value > found.informations["x", "y"].value
    assert np.allclose(
        (found.lower, found.upper),
        omib.beta_bounds(
            {name: each.value for name, each in found.entropies.items()},
            {
                pair: max(0.0, min(each.value, *(found.entropies[name].value for name in pair)))
                for pair, each in found.informations.items()
            },
        ),
    )
    text = str(found)
    assert "capped at 4.787 nats" in text
    assert "I(x; label)" in text
    assert (
        json.loads(json.dumps(found.as_dict()))["informations"]["x, y"]["value"] == found.informations["x", "y"].value
    )
    assert any(line.startswith("H(x), seed 0, epoch 1") for line in lines)


def test_beta_warns_of_a_cap() -> None:
    x = np.random.default_rng(0).standard_normal((1000, 30))
    with pytest.warns(UserWarning, match=r"H\(v[12]\) = 3\.\d+ is at its cap, 3.69; the truth is larger"):
        found = omib.estimate_beta([x, x[::-1].copy()], estimator="infonce", seeds=1, epochs=30, held_out=0.04)
    assert any("at its cap" in doubt for doubt in found.doubts)
    assert "doubtful: H(v" in str(found)


def _estimate(value: float, spread: float = 0.01, cap: float = math.inf, samples: int = 1000) -> Estimate:
    return Estimate(value, spread, (value,), ((),), cap, samples)


@pytest.mark.parametrize(
    ("entropies", "information", "doubts"),
    [
        ((_estimate(2.0), _estimate(3.0)), _estimate(1.0), []),
        ((_estimate(2.0), _estimate(3.0, cap=3.1)), _estimate(1.0), [r"H\(b\) = 3 is at its cap, 3.1"]),
        ((_estimate(2.0), _estimate(9.0)), _estimate(1.0), [r"H\(b\) = 9 is above ln N = 6.91"]),
        ((_estimate(2.0, 0.6), _estimate(3.0)), _estimate(1.0), [r"H\(a\) = 2 differs by 0.6"]),
        ((_estimate(2.0), _estimate(3.0)), _estimate(1.0, 0.6), [r"I\(a; b\) = 1 differs by 0.6"]),
        ((_estimate(2.0), _estimate(3.0)), _estimate(2.5), [r"I\(a; b\) = 2.5 exceeds the smaller entropy, 2"]),
        ((_estimate(-0.1), _estimate(3.0)), _estimate(-0.2), [r"H\(a\) = -0.1 is not positive"]),
        ((_estimate(2.0, math.nan), _estimate(3.0)), _estimate(1.0), []),
        ((_estimate(0.6), _estimate(3.0)), _estimate(0.1), [r"H\(a\) = 0.6 is far below ln N = 6.91: .* too large"]),
    ],
)
def test_beta_warns_of_what_cannot_be_trusted(monkeypatch, entropies, information, doubts) -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 30, 1))
    of = iter([*entropies, information])
    monkeypatch.setattr(bounds, "estimate", lambda *arguments, **options: next(of))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = omib.estimate_beta({"a": a, "b": b})
    assert len(found.doubts) == len(caught) == len(doubts)
    for doubt, warning in zip(doubts, caught, strict=True):
        with pytest.raises(RuntimeError, match=doubt):
            raise RuntimeError(str(warning.message))
    assert 0 < found.lower <= found.upper


def test_beta_warns_of_tails_once_for_a_modality() -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 200, 1))
    a[3] = 1e8
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = omib.estimate_beta({"a": a.astype(">f8"), "b": b}, estimator="infonce", seeds=1, epochs=40)
        ranked = omib.estimate_beta({"a": a, "b": b}, estimator="infonce", seeds=1, epochs=40, transform="ranks")
    tails = [doubt for doubt in found.doubts if "standard deviations from its mean" in doubt]
    assert len(tails) == 1
    assert tails[0].startswith("a[:, 0] reaches 14.1")
    assert not any("standard deviations" in doubt for doubt in ranked.doubts)
    assert ranked.entropies["a"].value > found.entropies["a"].value + 1
    assert [str(each.message) for each in caught] == [f"estimate_beta: {d}" for d in found.doubts + ranked.doubts]


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_beta_of_estimates_that_give_no_bounds(monkeypatch, value) -> None:
    monkeypatch.setattr(bounds, "estimate", lambda *arguments, **options: _estimate(value))
    with pytest.raises(ValueError, match="no bounds follow" if not math.isfinite(value) else "no information"):
        omib.estimate_beta(list(np.random.default_rng(0).standard_normal((2, 30, 1))))


ONES = np.random.default_rng(0).standard_normal((30, 2))
HOLED = np.where(np.arange(60).reshape(30, 2) == 7, np.nan, ONES)


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ({"a": ONES}, "at least 2 modalities, got 1"),
        ({"a": ONES, "b": ONES[:29]}, "30 of a, 29 of b"),
        ({"a": ONES[:19], "b": ONES[:19]}, "at least 20 samples are needed, got 19"),
        ({"a": ONES, "b": HOLED}, r"views\['b'\] must be finite, got 1 of 30"),
        ({"a": ONES, "b": np.full((30, 2), 3.0)}, r"views\['b'\] is constant"),
        ({"a": ONES, "b": torch.full((30, 2), 3)}, r"views\['b'\] is constant"),
        ({"a": ONES, "b": ONES.astype(str)}, r"views\['b'\] must be an array or a tensor of numbers"),
        ({"a": ONES, "b": [1.0] * 30}, r"views\['b'\] must be an array or a tensor of numbers"),
    ],
)
def test_beta_refuses(views, message) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        omib.estimate_beta(views)


def test_seeds_of_beta_are_counted_by_numpys_integers_too() -> None:
    options = {"estimator": "infonce", "epochs": 1}
    found = estimate_quietly([ONES, ONES], seeds=np.int64(1), **options)
    assert found == estimate_quietly([ONES, ONES], seeds=1, **options)


def test_beta_reads_the_rows_that_it_draws(tmp_path) -> None:
    """A file that would not fit: what is not drawn is not read, NaN there does no harm."""
    file = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (5000, 3))
    file[:] = np.nan
    rows = np.sort(np.random.default_rng(0).choice(5000, 60, replace=False))
    file[rows] = np.random.default_rng(1).standard_normal((60, 3))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    found = estimate_quietly([mapped, mapped], estimator="infonce", samples=60, seeds=1, epochs=2)
    assert found.samples == 60


# --- anomalies


def test_risks_of_collapse_are_named() -> None:
    network = nn.Sequential(
        nn.Linear(3, 4, bias=False), nn.Tanh(), nn.BatchNorm1d(4), nn.ReLU6(), nn.ReLU(), nn.LSTM(4, 2)
    )
    assert omib.collapse_risks(network) == ["the bias of 2", "the bias of 5", "1, a Tanh", "3, a ReLU6"]
    assert omib.collapse_risks(nn.MultiheadAttention(4, 1)) == ["the bias of the module", "the bias of out_proj"]
    assert omib.collapse_risks(nn.Linear(3, 4)) == ["the bias of the module"]
    assert omib.collapse_risks(nn.Sequential(nn.Linear(3, 4, bias=False), nn.LeakyReLU())) == []


def test_f1_at_the_true_count() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    labels = rng.random(50) < 0.3
    scores = rng.standard_normal(50) + labels
    called = scores >= np.sort(scores)[-labels.sum()]
    expected = metrics.f1_score(labels, called)
    assert 0 < expected < 1
    assert omib.f1_at_true_count(scores, labels) == pytest.approx(expected, abs=1e-12)
    assert omib.f1_at_true_count(torch.from_numpy(scores), torch.from_numpy(labels).long()) == pytest.approx(expected)


def test_f1_at_the_true_count_does_not_depend_on_the_order_of_equal_scores() -> None:
    scores, labels = np.array([3.0, 2.0, 2.0, 2.0, 1.0]), np.array([1, 1, 0, 0, 1])
    # Three calls: the first, and two of three equal ones, of which one is an anomaly: 1 + 2 / 3 of 3.
    for order in (range(5), (4, 3, 2, 1, 0), (3, 1, 4, 0, 2)):
        assert omib.f1_at_true_count(scores[list(order)], labels[list(order)]) == pytest.approx((1 + 2 / 3) / 3)
    assert omib.f1_at_true_count(np.zeros(4), [1, 0, 0, 0]) == 0.25


def test_scores_of_any_dtype_that_pytorch_has() -> None:
    scores = torch.tensor([0.5, 2.0, 1.0, 4.0], dtype=torch.bfloat16)
    assert omib.anomaly_threshold(scores, 1.0) == 4.0
    assert omib.f1_at_true_count(scores, torch.tensor([0, 0, 1, 1])) == 0.5


def test_threshold_lets_the_share_of_training_samples_pass() -> None:
    scores = torch.from_numpy(np.random.default_rng(0).random(1000))
    assert (scores > omib.anomaly_threshold(scores, 0.9)).double().mean() == 0.1
    assert omib.anomaly_threshold(scores, 1.0) == scores.max()
    negated = torch._neg_view(-scores)
    assert omib.anomaly_threshold(negated, 0.9) == omib.anomaly_threshold(scores, 0.9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: omib.f1_at_true_count([1.0, math.nan], [0, 1]), "scores must be finite, got 1"),
        (lambda: omib.f1_at_true_count([1.0, 2.0], [0, 2]), "labels must be 0 or 1"),
        (lambda: omib.f1_at_true_count([1.0, 2.0], [0, 0]), "at least one anomaly"),
        (lambda: omib.f1_at_true_count([1.0, 2.0], [0]), r"labels must be \[2\]"),
        (lambda: omib.f1_at_true_count([[1.0], [2.0]], [[0], [1]]), r"scores must be numbers \[N\]"),
        (lambda: omib.f1_at_true_count([1.0, 2.0], torch.eye(2).to_sparse()), "labels must be a dense tensor"),
        (lambda: omib.anomaly_threshold(torch.zeros(3, device="meta")), "scores must be a dense tensor with numbers"),
        (lambda: omib.anomaly_threshold([], 0.5), r"scores must be numbers \[N\]"),
        (lambda: omib.anomaly_threshold([1.0], 1.5), r"in \[0, 1\]"),
    ],
)
def test_scores_refuse(call, message) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call()


# --- the model

TASKS = {
    "classification": lambda: fusion.Classification(3),
    "regression": lambda: fusion.Regression(2),
    "absolute": lambda: fusion.Regression(1, "absolute"),
    "anomalies": lambda: fusion.AnomalyDetection(3),
}


def made(m=2, task="classification", n=6, dtype=torch.float64, **options):
    """A small model, samples of m modalities and a target."""
    torch.manual_seed(0)
    chosen = TASKS[task]()
    encoders = {f"v{k}": nn.Linear(3 + k, 4, bias=task != "anomalies") for k in range(m)}
    settings = {"beta": 0.05, "latent_features": 5, "hidden_features": 7, "head_features": (6,), **options}
    model = omib.OMIB(encoders, 4, chosen, **settings).to(dtype)
    views = {f"v{k}": torch.randn(n, 3 + k, dtype=dtype) for k in range(m)}
    target = None
    if isinstance(chosen, fusion.Classification):
        target = torch.arange(n) % 3
    elif isinstance(chosen, fusion.Regression):
        target = torch.randn(n, chosen.outputs, dtype=dtype)
    else:
        chosen.set_center(model(views))
    return model, views, target


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def linear(x, layer) -> torch.Tensor:
    return x @ layer.weight.T + (0 if layer.bias is None else layer.bias)


def written_out(model, views, target, *, fuse, ratio="ratio_of_means", weights="dynamic") -> torch.Tensor:
    """Algorithm 2, lines 9 to 22, from the weights of a model."""
    z = [linear(views[name], model.encoders[name]) for name in model.modalities]
    zeta, kl = [], []
    for head, each in zip(model.omf.heads, z, strict=True):
        hidden = linear(each, head.hidden).clamp(min=0)
        mean, variance = linear(hidden, head.mean), linear(hidden, head.logvar).exp()
        zeta.append(mean + variance.sqrt() * torch.randn_like(mean))
        kl.append((mean**2 + variance - 1 - variance.log()).sum(1).mean() / 2)
    xi = fuse(model.omf.fusion, zeta)
    fused = model.omf.predictor(xi)
    predictions = [branch(torch.cat([each, xi], 1)) for branch, each in zip(model.branches.values(), z, strict=True)]
    task = model.task
    if isinstance(task, fusion.Classification):

        def loss(y):
            return -y.log_softmax(1)[torch.arange(len(y)), target].mean()

        def divergence(y):
            return (y.softmax(1) * (y.log_softmax(1) - fused.log_softmax(1))).sum(1)

    else:

        def loss(y):
            away = y - (task.center if target is None else target)
            return (away.abs() if getattr(task, "error", "") == "absolute" else away**2).sum(1).mean()

        def divergence(y):
            return ((y - fused) ** 2).sum(1) / 2

    first, *others = [divergence(y).detach() for y in predictions]
    total = loss(fused) + model.beta * kl[0]
    for each, compressed in zip(others, kl[1:], strict=True):
        rho = each.mean() / first.mean() if ratio == "ratio_of_means" else (each / first).mean()
        r = 1 - torch.tanh(rho.log()) if weights == "dynamic" else 1.0
        total = total + model.beta * r * compressed
    return total + sum(loss(y) for y in predictions)


def tokens(layer, zeta) -> torch.Tensor:
    attended = []
    for n in range(len(zeta[0])):
        rows = torch.stack([each[n] for each in zeta])
        query, key, value = (linear(rows, each) for each in (layer.query, layer.key, layer.value))
        attended.append(((query @ key.T / math.sqrt(rows.shape[1])).softmax(1) @ value).flatten())
    return linear(torch.stack(attended), layer.out)


FUSE = {
    "cross_attention": tokens,
    "concat_feature": lambda layer, zeta: linear(linear(torch.cat(zeta, 1), layer.value), layer.out),
    "concatenation": lambda layer, zeta: linear(torch.cat(zeta, 1), layer.out),
}


@pytest.mark.parametrize("m", [2, 3, 5])
@pytest.mark.parametrize("task", TASKS)
def test_main_step_is_algorithm_2(task, m) -> None:
    assert_as_written_out(*made(m, task), fuse=tokens)


@pytest.mark.parametrize("form", FUSIONS)
@pytest.mark.parametrize("ratio", RATIOS)
def test_main_step_with_options(ratio, form) -> None:
    assert_as_written_out(*made(3, fusion=form, ratio=ratio), fuse=FUSE[form], ratio=ratio)
    model, views, target = made(3, fusion=form, ratio=ratio, dynamic_weights=False)
    assert_as_written_out(model, views, target, fuse=FUSE[form], weights=None)


def assert_as_written_out(model, views, target, **options) -> None:
    torch.manual_seed(1)
    written_out(model, views, target, **options).backward()
    expected = gradients(model)
    assert expected.keys() == dict(model.named_parameters()).keys()  # one step on everything
    torch.manual_seed(1)
    reference = written_out(model, views, target, **options)
    model.zero_grad()
    torch.manual_seed(1)
    terms = model.terms(views, target, "main")
    terms["loss"].backward()
    assert abs(terms["loss"].item() - reference.item()) < 1e-12 * max(1, abs(reference.item()))
    for name, gradient in gradients(model).items():
        assert torch.allclose(gradient, expected[name], rtol=1e-10, atol=1e-12), name
    kl, trb = ([terms[f"{kind}.{name}"] for name in model.modalities] for kind in ("kl", "trb"))
    r = [terms[f"r.{name}"] for name in model.modalities[1:]] if model.dynamic_weights else [1.0] * (len(kl) - 1)
    total = terms["task"] + model.beta * (kl[0] + sum(w * k for w, k in zip(r, kl[1:], strict=True))) + sum(trb)
    assert abs(total.item() - terms["loss"].item()) < 1e-12 * max(1, abs(total.item()))
    assert not any(value.requires_grad for name, value in terms.items() if name != "loss")


@pytest.mark.parametrize("task", ["classification", "regression", "anomalies"])
def test_gradients_of_the_inputs(task) -> None:
    model, views, target = made(3, task, n=3, dynamic_weights=False)
    names = list(views)
    inputs = tuple(views[name].requires_grad_() for name in names)

    def of(stage):
        def loss(*given):
            torch.manual_seed(2)
            return model.terms(dict(zip(names, given, strict=True)), target, stage)["loss"]

        return loss

    assert torch.autograd.gradcheck(of("warm-up"), inputs)
    assert torch.autograd.gradcheck(of("main"), inputs)


@pytest.mark.parametrize("m", [2, 3, 5])
@pytest.mark.parametrize("task", TASKS)
def test_warm_up_trains_encoders_and_branches_alone(task, m) -> None:
    model, views, target = made(m, task, beta=None)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(3)
    terms = model.terms(views, target, "warm-up")
    assert sorted(terms) == ["loss", *(f"trb.{name}" for name in model.modalities)]
    terms["loss"].backward()
    optimizer.step()
    changed = {name.split(".")[0] for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert changed == {"encoders", "branches"}
    model.load_state_dict(before)
    torch.manual_seed(3)
    expected = 0.0
    noises = [torch.randn(6, 5, dtype=torch.float64) for _ in range(m)]
    for (name, branch), noise in zip(model.branches.items(), noises, strict=True):
        prediction = branch(torch.cat([linear(views[name], model.encoders[name]), noise], 1))
        expected += model.task.loss(prediction, target).mean()
    assert abs(expected.item() - terms["loss"].item()) < 1e-12
    assert model.terms(views, target, "warm-up")["loss"] != expected  # the noise is drawn anew


def test_each_loss_may_train_its_own_networks() -> None:
    def trained_by(loss_of, **options) -> set[str]:
        model, views, target = made(2, **options)
        torch.manual_seed(4)
        z = model.encode(views)
        loss_of(model, views, target, z).backward()
        return {name.split(".")[0] for name, gradient in gradients(model).items() if gradient.abs().max() > 0}

    def main(model, views, target, z):
        return model.terms(views, target, "main")["loss"]

    assert trained_by(main) == {"encoders", "branches", "omf"}
    both = {"detach_xi_in_trb": True, "detach_z_in_omf": True}
    model, views, target = made(2, **both)
    torch.manual_seed(4)
    model.terms(views, target, "main")["loss"].backward()
    apart = gradients(model)
    # The encoders' gradient is that of the branches' losses, the fusion's that of L_OMF, each alone.
    torch.manual_seed(4)
    z = model.encode(views)
    xi, kl = model.omf.sample([each.detach() for each in z])
    fused = model.omf.predictor(xi)
    predictions = [b(torch.cat([each, xi.detach()], 1)) for b, each in zip(model.branches.values(), z, strict=True)]
    r = omib.modality_weights(predictions, fused)
    omf = omib.omf_loss(model.task.loss(fused, target).mean(), [each.mean() for each in kl], r, model.beta)
    trb = sum(model.task.loss(y, target).mean() for y in predictions)
    for loss, parts in ((omf, ["omf"]), (trb, ["encoders", "branches"])):
        parameters = {name: p for name, p in model.named_parameters() if name.split(".")[0] in parts}
        alone = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True)
        for name, gradient in zip(parameters, alone, strict=True):
            assert torch.allclose(apart[name], gradient, rtol=1e-10, atol=1e-13), name


def test_without_the_fusion_block_representations_are_concatenated() -> None:
    model, views, target = made(3, bottleneck=False, beta=None)
    terms = model.terms(views, target)
    assert sorted(terms) == ["loss", "task", "trb.v0", "trb.v1", "trb.v2"]
    z = torch.cat(model.encode(views), 1)
    xi = linear(z, model.omf.fusion.out)
    assert model.embed(views).equal(xi)
    assert terms["loss"].item() == pytest.approx(sum(v.item() for k, v in terms.items() if k != "loss"))
    assert terms["loss"].equal(model.terms(views, target)["loss"])  # nothing is drawn


@pytest.mark.parametrize("m", [2, 5])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("options", [{}, {"bottleneck": False}], ids=["", "without the block"])
def test_prediction_without_the_branches_is_the_same(options, task, m) -> None:
    model, views, _ = made(m, task, dtype=torch.float32, **options)
    state = torch.get_rng_state()
    predictor = model.without_branches()
    assert model(views).shape == (6, model.task.outputs)
    assert predictor(views).equal(model(views))
    assert predictor.embed(views).equal(model.embed(views))
    assert predictor.embed(views).shape == (6, 5)
    assert torch.get_rng_state().equal(state)  # nothing is drawn
    names = dict(predictor.named_parameters())
    assert names.keys() == {name for name, _ in model.named_parameters() if not name.startswith("branches.")}
    assert all(names[name] is p for name, p in model.named_parameters() if name in names)
    fresh, _, _ = made(m, task, dtype=torch.float32, **options)
    for p in fresh.parameters():
        nn.init.zeros_(p)
    kept = fresh.without_branches()
    kept.load_state_dict(predictor.state_dict())
    assert kept(views).equal(model(views))


@pytest.mark.parametrize("scale", [0.0, 1e-4, 1.0, 1e4])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("n", [1, 6])
def test_terms_are_finite_at_the_extremes(n, task, scale) -> None:
    model, views, target = made(3, task, n=n, dtype=torch.float32)
    views = {name: scale * x[:1].expand(n, -1) for name, x in views.items()}  # duplicates
    for stage in model.stages:
        model.zero_grad()
        terms = model.terms(views, target, stage)
        terms["loss"].backward()
        assert all(value.isfinite() for value in terms.values())
        assert all(gradient.isfinite().all() for gradient in gradients(model).values())
    views["v1"] = views["v1"] * torch.nan
    assert model.terms(views, target)["loss"].isnan()


def test_log_variances_out_of_bounds_come_back() -> None:
    model, views, target = made(2, logvar_bounds=(-2.0, 1.0))
    head = model.omf.heads[0]
    nn.init.constant_(head.logvar.bias, 50.0)
    terms = model.terms(views, target)
    assert terms["kl.v0"] < 100
    terms["loss"].backward()
    assert (head.logvar.bias.grad > 0).any()


@pytest.mark.parametrize("stage", ["warm-up", "main"])
def test_terms_repeat(stage) -> None:
    model, views, target = made(3, dtype=torch.float32)
    found = []
    for _ in range(2):
        model.zero_grad()
        torch.manual_seed(5)
        terms = model.terms(views, target, stage)
        terms["loss"].backward()
        found.append([*terms.values(), *gradients(model).values()])
    assert all(a.equal(b) for a, b in zip(*found, strict=True))


def test_autocast() -> None:
    model, views, target = made(2, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        for stage in model.stages:
            terms = model.terms(views, target, stage)
            terms["loss"].backward()
            assert terms["loss"].dtype == torch.float32
            assert all(value.isfinite() for value in terms.values())


def test_heads_are_the_papers() -> None:
    def widths(task) -> list[int]:
        encoders = {name: nn.Linear(3, 4, bias=False) for name in "ab"}
        head = omib.OMIB(encoders, 4, task).branches["a"]
        return [layer.in_features for layer in head if isinstance(layer, nn.Linear)] + [head[-1].out_features]

    assert widths(fusion.Classification(6)) == [8, 512, 100, 6]
    assert widths(fusion.Regression()) == [8, 50, 1]
    assert widths(fusion.AnomalyDetection(256)) == [8, 256, 256]


def test_a_model_of_anomalies_has_no_bias_of_its_own_and_names_the_encoders() -> None:
    model, views, _ = made(2, "anomalies")
    assert omib.collapse_risks(model) == []
    encoders = {"a": nn.Sequential(nn.Linear(3, 4), nn.Sigmoid()), "b": nn.Linear(3, 4, bias=False)}
    with pytest.warns(UserWarning, match=r"encoders have the bias of a\.0, a\.1, a Sigmoid$"):
        omib.OMIB(encoders, 4, fusion.AnomalyDetection(3))
    uncentred = omib.OMIB(dict(model.encoders.float()), 4, fusion.AnomalyDetection(3))
    with pytest.raises(RuntimeError, match="no centre is set"):
        uncentred.terms({name: x.float() for name, x in views.items()}, None, "warm-up")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"beta": 0.0}, ValueError, "beta must be positive, got 0.0"),
        ({"beta": -1.0}, ValueError, "beta must be finite and at least 0, got -1.0"),
        ({"beta": math.nan}, ValueError, "beta must be finite"),
        ({"beta": "0.1"}, TypeError, "beta must be a number"),
        ({"latent_features": 0}, ValueError, "latent_features must be at least 1"),
        ({"head_features": (6, 0)}, ValueError, "head_features must be at least 1"),
        ({"logvar_bounds": (1.0, 1.0)}, ValueError, "low < high"),
        ({"fusion": "sum"}, ValueError, "fusion must be one of 'cross_attention'"),
        ({"ratio": "mean"}, ValueError, "ratio must be one of 'ratio_of_means'"),
        ({"bottleneck": "False"}, TypeError, "OMIB: bottleneck must be True or False, got str 'False'"),
        ({"dynamic_weights": 1}, TypeError, "dynamic_weights must be True or False"),
        ({"detach_xi_in_trb": None}, TypeError, "detach_xi_in_trb must be True or False"),
        ({"detach_z_in_omf": "no"}, TypeError, "detach_z_in_omf must be True or False"),
        ({"m": 1}, ValueError, "at least 2 modalities"),
    ],
)
def test_a_model_refuses(options, error, message) -> None:
    with pytest.raises(error, match=message):
        made(**options)


def test_terms_refuse() -> None:
    model, views, target = made(2, beta=None)
    with pytest.raises(RuntimeError, match=r"beta is None; give it, or set it to what omib\.estimate_beta finds"):
        model.terms(views, target)
    model.beta = 0.5
    assert model.terms(views, target)["loss"].isfinite()
    with pytest.raises(ValueError, match="stage must be one of 'warm-up', 'main'"):
        model.terms(views, target, "fine-tuning")
    with pytest.raises(ValueError, match="v1 are missing"):
        model.terms({"v0": views["v0"]}, target)
    with pytest.raises(ValueError, match=r"one shape, .*shape \[6, 4\].* and .*shape \[5, 4\]"):
        model.terms({"v0": views["v0"], "v1": views["v1"][:5]}, target)
    model.encoders["v1"] = nn.Linear(4, 3).double()
    with pytest.raises(ValueError, match=r"output of encoders\['v1'\] must have the size 4 in dimension 1"):
        model.terms(views, target)


def test_attention_refuses() -> None:
    for options, message in (
        ({"modalities": 1, "features": 4}, "modalities must be at least 2"),
        ({"modalities": 2, "features": 0}, "features must be at least 1"),
        ({"modalities": 2, "features": 4, "fusion": "sum"}, "fusion must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            omib.CrossAttention(**options)
    with pytest.raises(TypeError, match=r"CrossAttention: out_features must be an int, got float 3\.0"):
        omib.CrossAttention(2, 4, out_features=3.0)
    module, z = omib.CrossAttention(2, 4), torch.zeros(5, 4)
    for latents, message in (
        (z, r"latents must be \[M, N, k\], got a tensor of shape \[5, 4\]"),
        (torch.zeros(3, 5, 4), "latents must have the size 2 in dimension 0"),
        (torch.zeros(2, 5, 3), "latents must have the size 4 in dimension 2"),
        ([z], r"latents must be 2 tensors \[N, 4\], got list"),
        ([z, z[:4]], r"latents\[0\] and latents\[1\] must have one shape"),
        ([z, z.double()], r"latents\[1\] and the module's parameters must have one dtype"),
        ([z, None], r"latents\[1\] must be a tensor"),
        (3, r"latents must be 2 tensors \[N, 4\], got int 3"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"CrossAttention: {message}"):
            module(latents)


# --- training


def two_stages(specific: tuple[int, int], *, train: int = 1000, test: int = 1000):
    """Train on shared, specific and superfluous blocks; a hyperplane makes the label. Return accuracy and r."""
    rng = np.random.default_rng(0)
    shared, first, second = (rng.standard_normal((train + test, d)) for d in (10, *specific))
    superfluous = rng.standard_normal((3, train + test, 10))
    relevant = np.concatenate([shared, first, second], 1)
    labels = torch.from_numpy((relevant @ rng.standard_normal(relevant.shape[1]) > 0).astype(np.int64))
    views = {
        name: torch.from_numpy(np.concatenate([shared, superfluous[0], each, b], 1)).float()
        for name, each, b in (("v1", first, superfluous[1]), ("v2", second, superfluous[2]))
    }
    torch.manual_seed(0)
    encoders = {
        name: nn.Sequential(nn.Linear(x.shape[1], 64), nn.GELU(), nn.Linear(64, 32)) for name, x in views.items()
    }
    model = omib.OMIB(encoders, 32, fusion.Classification(2), beta=0.01)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    weights = []
    for stage, epochs in (("warm-up", 3), ("main", 8)):
        for _ in range(epochs):
            for rows in torch.randperm(train).split(125):
                terms = model.terms({name: x[rows] for name, x in views.items()}, labels[rows], stage)
                optimizer.zero_grad()
                terms["loss"].backward()
                optimizer.step()
                weights += [terms["r.v2"].item()] if stage == "main" else []
    with torch.no_grad():
        found = model({name: x[train:] for name, x in views.items()}).argmax(1)
    return (found == labels[train:]).double().mean().item(), float(np.mean(weights))


def test_training_uses_all_modalities_and_compresses_least_the_one_that_has_most() -> None:
    accuracy, r = two_stages((20, 20))
    # The best that one modality alone can do, with 30 of the label's 50 dimensions, is 0.78.
    assert accuracy > 1 - math.acos(math.sqrt(30 / 50)) / math.pi + 0.05
    _, first_has_most = two_stages((40, 4))
    _, second_has_most = two_stages((4, 40))
    assert first_has_most > r > second_has_most
    assert first_has_most > 1 > second_has_most
