"""OMIB: its weights, bounds and losses against the goldens and the paper's algorithms written out, and its errors."""

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

from mibfast import functional as F
from mibfast import omib
from mibfast.information import Estimate
from mibfast.nn import fusion
from mibfast.omib import bounds

GOLDENS = json.loads((Path(__file__).parent / "goldens" / "golden.json").read_text())["goldens"]
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


NUMBERS = st.floats(-1e30, 1e30, width=32)


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
        (([1.0, 1.0], {(0, 1): 2.0}), "must hold information"),
        (([0.0, 0.0], {(0, 1): 0.0}), "must hold information"),
        (([1.0, 1.0], {(0, 1): 0.1}, [1.0, 1.0]), "1 numbers, got 2"),
        (([1.0, 1.0], {(0, 1): 0.1}, [2.5]), r"in \[0, 2\]"),
    ],
)
def test_bounds_refuse(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
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
    found = estimate_quietly(views, estimator="infonce", samples=600, seeds=2, epochs=15, progress=lines.append)
    again = estimate_quietly(views, estimator="infonce", samples=600, seeds=2, epochs=15)
    assert (found.lower, found.upper) == (again.lower, again.upper)
    assert 0 < found.lower <= found.draw(1) <= found.upper
    assert found.draw(1) == found.draw(1) != found.draw(2)
    assert found.samples == 600
    assert found.cap == math.log(120)
    assert found.informations["x", "y"].value > 0.5 > abs(found.informations["x", "label"].value)
    # Of four classes it is ln 4, and is not above; of what is continuous it stops at what the estimator can tell.
    assert abs(found.entropies["label"].value - math.log(4)) < 0.05
    assert found.entropies["x"].value > 2.5
    assert np.allclose(
        (found.lower, found.upper),
        omib.beta_bounds(
            {name: each.value for name, each in found.entropies.items()},
            {pair: max(each.value, 0.0) for pair, each in found.informations.items()},
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
    x = np.random.default_rng(0).standard_normal((100, 30))
    with pytest.warns(UserWarning, match=r"H\(v1\) = 3 is at its cap, 3; the truth is larger"):
        found = omib.estimate_beta([x, x[::-1].copy()], estimator="infonce", seeds=1, epochs=60)
    assert any("at its cap" in doubt for doubt in found.doubts)
    assert "doubtful: H(v1)" in str(found)


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


def test_beta_reads_the_rows_that_it_draws(tmp_path) -> None:
    """A file that would not fit: what is not drawn is not read, NaN there does no harm."""
    file = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (5000, 3))
    file[:] = np.nan
    rows = np.sort(np.random.default_rng(0).choice(5000, 60, replace=False))
    file[rows] = np.random.default_rng(1).standard_normal((60, 3))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    found = estimate_quietly([mapped, mapped], estimator="infonce", samples=60, seeds=1, epochs=2)
    assert found.samples == 60
