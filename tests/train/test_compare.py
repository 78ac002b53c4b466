"""Comparisons: tuned alike, resumed, refused."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lightning")
from mibfast import train
from mibfast.cli.commands import run as command
from mibfast.train.comparison import Comparison, compare, grid
from mibfast.train.comparison import runs as comparison_runs
from mibfast.train.comparison import settings as grids
from mibfast.train.methods import method

SETTINGS = {"epochs": 2, "batch_size": 16, "features": 8, "progress": False, "combinations": "whole"}


@pytest.fixture(scope="module")
def npz(tmp_path_factory) -> str:
    generator = np.random.default_rng(0)
    labels = np.arange(120) % 3
    centres = 2 * generator.standard_normal((3, 5))
    views = {name: centres[labels] + generator.standard_normal((120, 5)) for name in "abc"}
    path = tmp_path_factory.mktemp("data") / "x.npz"
    np.savez(path, **views, labels=labels)
    return f"npz:{path}"


def test_every_method_is_tuned_over_the_same_grid() -> None:
    assert len(grid(method("ova-ib"))) == 6
    assert grid(method("clip")) == [{"temperature": t} for t in grids.TEMPERATURES]
    assert {setting["temperature"] for setting in grid(method("clip-ib"))} == set(grids.TEMPERATURES)
    # A scale is the inverse of a temperature.
    for name in ("symile", "siglip"):
        assert [1 / setting["scale"] for setting in grid(method(name))] == pytest.approx(grids.TEMPERATURES)


def test_a_comparison_is_of_the_runs_that_it_leaves(npz, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(grids, "TEMPERATURES", (0.1, 0.5))
    found = compare(["clip", "ova-ib"], npz, tmp_path / "c", seeds=2, **SETTINGS)
    assert [(t["method"], t["loss"]) for t in found.tried[:2]] == [
        ("clip", {"temperature": 0.1}),
        ("clip", {"temperature": 0.5}),
    ]
    best = max(found.tried[:2], key=lambda t: t["score"])
    assert found.settings["clip"] == best["loss"]
    # The validation score is that of the run, and the table the mean over seeds of what `evaluate` says.
    folder = f"clip,temperature={best['loss']['temperature']:g},seed="
    runs = [train.open_run(tmp_path / "c" / "runs" / f"{folder}{seed}") for seed in (0, 1)]
    by = {"progress": False, "combinations": "whole"}
    score = train.evaluate(runs[0], probes=["linear"], split="validation", **by).value("linear probe", "accuracy")
    assert score == best["score"]
    values = [train.evaluate(run, **by).value("linear probe", "accuracy") for run in runs]
    mean, spread = found.figures()["clip"]["linear probe"]
    assert mean == pytest.approx(np.mean(values))
    assert spread == pytest.approx(np.std(values, ddof=1))
    with open(tmp_path / "c" / "comparison.csv") as file:
        rows = list(csv.DictReader(file))
    assert {row["method"] for row in rows} == {"clip", "ova-ib"}
    assert (tmp_path / "c" / "comparison.md").read_text() == found.markdown()
    import matplotlib.image

    assert matplotlib.image.imread(tmp_path / "c" / "comparison.png").std() > 0.01


def test_an_ablation_is_a_row_for_each_value_tuned_over_the_rest(npz, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(grids, "TEMPERATURES", (0.1, 0.5))
    assert grid(method("ova-ib"), beta=3.0) == [{"temperature": t, "beta": 3.0} for t in (0.1, 0.5)]
    assert grid(method("ova-ib"), False, beta=3.0) == [{"beta": 3.0}]
    found = compare(["clip", "ova-ib"], npz, tmp_path / "c", seeds=1, vary={"beta": [0.0, 5.0]}, **SETTINGS)
    assert list(found.settings) == ["clip", "ova-ib[beta=0]", "ova-ib[beta=5]"]
    assert {row["method"] for row in found.rows} == set(found.settings)
    assert [each["beta"] for name, each in found.settings.items() if name != "clip"] == [0.0, 5.0]
    assert len(found.tried) == 6
    runs = {path.name for path in (tmp_path / "c" / "runs").iterdir()}
    assert {"ova-ib,temperature=0.1,beta=0,seed=0", "ova-ib,temperature=0.5,beta=5,seed=0"} < runs
    lines = found.markdown().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["pairwise CLIP", "OVA-IB", "OVA-IB"]
    assert "beta 5" in lines[4]
    with pytest.raises(train.RunError, match="none of the methods has a loss option 'betta'; did you mean 'beta'"):
        compare(["clip", "ova-ib"], npz, tmp_path / "other", vary={"betta": [1.0]}, **SETTINGS)
    # The second would be found in the folder of the first.
    for other in (1.0, 1.0000001):
        with pytest.raises(
            train.RunError, match="values of beta must be given, each once and told apart by six digits"
        ):
            compare(["ova-ib"], npz, tmp_path / "other", vary={"beta": [1.0, other]}, **SETTINGS)
    with pytest.raises(train.RunError, match="beta must be"):
        compare(["ova-ib"], npz, tmp_path / "other", vary={"beta": [-1.0]}, **SETTINGS)
    assert not (tmp_path / "other").exists()


def test_an_interrupted_comparison_goes_on(npz, tmp_path, monkeypatch) -> None:
    whole = compare(["clip", "ova-ib"], npz, tmp_path / "whole", seeds=2, tune=False, **SETTINGS)
    original, calls = comparison_runs.fit, []

    def interrupted(name: str, *arguments: object, **options: object) -> object:
        calls.append(name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(name, *arguments, **options)

    monkeypatch.setattr(comparison_runs, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(["clip", "ova-ib"], npz, tmp_path / "c", seeds=2, tune=False, **SETTINGS)
    assert not (tmp_path / "c" / "comparison.json").exists()
    found = compare(["clip", "ova-ib"], npz, tmp_path / "c", seeds=2, tune=False, **SETTINGS)
    # What was done is not done again.
    assert calls == ["clip", "clip", "ova-ib", "ova-ib", "ova-ib"]
    assert found.rows == whole.rows
    for changed in ({"seeds": 3}, {"epochs": 3}, {"tune": True}):
        with pytest.raises(
            train.RunError, match=f"was begun with other {'settings' if 'epochs' in changed else next(iter(changed))}"
        ):
            compare(["clip", "ova-ib"], npz, tmp_path / "c", **{"seeds": 2, "tune": False, **SETTINGS, **changed})


def test_a_comparison_of_data_that_changed_is_not_gone_on_with(npz, tmp_path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(Path(npz.removeprefix("npz:")).read_bytes())
    compare(["clip"], f"npz:{path}", tmp_path / "c", seeds=1, tune=False, **SETTINGS)
    content = dict(np.load(path))
    content["a"][0] += 1
    np.savez(path, **content)
    with pytest.raises(train.RunError, match="was begun with other data"):
        compare(["clip"], f"npz:{path}", tmp_path / "c", seeds=1, tune=False, **SETTINGS)


def test_what_does_not_fit_a_method_is_said_before_anything_is_trained(npz, tmp_path) -> None:
    with pytest.raises(train.RunError, match="embeddings must hold exactly 2 modalities, got 3"):
        compare(["clip", "barlow-twins"], npz, tmp_path / "c", **SETTINGS)
    assert not (tmp_path / "c").exists()


def test_a_setting_that_diverges_is_not_chosen(npz, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(grids, "TEMPERATURES", (0.1, 0.5))
    original = train.AlignmentModule.training_step

    def diverging(self: train.AlignmentModule, batch: object, position: int) -> torch.Tensor:
        # At once with the one temperature, late with the other.
        broken = float(self.loss.temperature()) < 0.3 or self.trainer.current_epoch == 1
        return original(self, batch, position) * (float("nan") if broken else 1.0)

    monkeypatch.setattr(train.AlignmentModule, "training_step", diverging)
    found = compare(["clip"], npz, tmp_path / "c", seeds=1, **SETTINGS)
    assert [each["score"] is None for each in found.tried] == [True, False]
    assert found.settings["clip"] == {"temperature": 0.5}
    monkeypatch.setattr(grids, "TEMPERATURES", (0.1, 0.2))
    with pytest.raises(train.RunError, match="clip diverged with every setting"):
        compare(["clip"], npz, tmp_path / "other", seeds=1, **SETTINGS)


def test_a_score_that_is_no_number_chooses_nothing(npz, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(grids, "TEMPERATURES", (0.1, 0.5))
    original = comparison_runs.evaluate

    def evaluated(run: object, **how: object) -> object:
        found = original(run, **how)
        if how.get("split") == "validation" and float(run.module.loss.temperature()) < 0.3:
            for row in found.rows:
                row["value"] = float("nan")
        return found

    monkeypatch.setattr(comparison_runs, "evaluate", evaluated)
    found = compare(["clip"], npz, tmp_path / "c", seeds=1, **SETTINGS)
    assert [each["score"] is None for each in found.tried] == [True, False]
    assert found.settings["clip"] == {"temperature": 0.5}


def test_the_best_of_each_column_is_bold() -> None:
    def row(name: str, metric: str, value: float, modalities: str = "a+b") -> dict[str, object]:
        task = "linear probe" if metric == "accuracy" else "retrieval"
        return {"method": name, "task": task, "modalities": modalities, "metric": metric, "mean": value, "sd": 0.1}

    rows = [
        row("clip", "accuracy", 0.99, "a"),
        row("clip", "accuracy", 0.8),
        row("ova-ib", "accuracy", 0.9),
        row("clip", "MRR", 0.5, "a → b"),
        row("clip", "MRR", 0.7, "b → a"),
        row("ova-ib", "MRR", 0.4, "a → b"),
        row("ova-ib", "MRR", 0.6, "b → a"),
    ]
    text = Comparison(rows, {"clip": {"temperature": 0.1}, "ova-ib": {}}, [], "").markdown()
    assert text.splitlines()[2:] == [
        "| pairwise CLIP | temperature 0.1 | 0.8000 ± 0.1000 | **0.6000 ± 0.1000** |",
        "| OVA-IB |  | **0.9000 ± 0.1000** | 0.5000 ± 0.1000 |",
    ]


def test_the_command(npz, tmp_path, capsys) -> None:
    options = ["--epochs", "1", "--batch-size", "16", "--seeds", "1", "--no-tune", "--no-every-combination"]
    arguments = ["compare", "--methods", "clip,ova-ib", "--data", npz, "--output", str(tmp_path / "c"), *options]
    assert command(arguments) == 0
    out = capsys.readouterr().out
    assert "pairwise CLIP" in out
    assert "retrieval MRR" in out
    assert command(arguments) == 0
    assert json.loads((tmp_path / "c" / "comparison.json").read_text())["seeds"] == 1
    capsys.readouterr()
    for changed, message in (
        (["--methods", "clip,clip"], "methods must be given, each once; got clip, clip"),
        (["--methods", "clipp"], "unknown method 'clipp'; did you mean 'clip'?"),
        (["--data", "npz:none"], "No such file or directory"),
        (["--modalities", "a,d"], "no modality 'd'"),
        (["--vary", "beta=a"], "OVAIBLoss: beta must be a number, got str 'a'"),
    ):
        assert command([*arguments, "--output", str(tmp_path / "other"), *changed]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
