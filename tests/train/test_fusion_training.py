"""Fusions trained, interrupted in every stage, evaluated, compared, and refused."""

import csv
import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("lightning")
from mibfast import data, omib, train
from mibfast.cli.commands import run as command
from mibfast.cli.training import _value
from mibfast.data.npy import NpyRows
from mibfast.data.sim import SPECIFIC, authentic_features, best_accuracies, read_sim, write_sim
from mibfast.nn import MLPEncoder, fusion
from mibfast.train import pictures
from mibfast.train.comparison import compare, grid
from mibfast.train.comparison import settings as grids
from mibfast.train.errors import DivergedError
from mibfast.train.evaluation import evaluate
from mibfast.train.evaluation import evaluation as evaluating
from mibfast.train.evaluation.scores import scored
from mibfast.train.experiments.authentic import classify_authentic_features
from mibfast.train.fitting.modules import FusionModule
from mibfast.train.fitting.recording import Recording, StepTable
from mibfast.train.fitting.targets import TARGET, Target, target_of
from mibfast.train.methods import METHODS, Fusion, method

# 60 samples of training make 7 batches.
SMALL: dict[str, Any] = {"epochs": 3, "batch_size": 8, "features": 8, "depth": 1, "progress": False}


class TwoStages(fusion.FusionModel):
    """Learns a prediction of each modality alone, then of both, with noise in either stage."""

    stages: ClassVar[tuple[str, ...]] = ("warm-up", "main")

    def __init__(self, encoders: Any, features: int, task: fusion.Task, noise: float = 0.1) -> None:
        super().__init__(encoders, features, task)
        self.noise = noise
        self.branches = nn.ModuleList(nn.Linear(features, task.outputs) for _ in encoders)
        self.predictor = nn.Linear(len(encoders) * features, task.outputs)

    def predict(self, representations: Any) -> torch.Tensor:
        return self.predictor(torch.cat(list(representations), 1))

    def terms(self, views: Any, target: Any, stage: str = "main") -> dict[str, torch.Tensor]:
        noisy = [z + self.noise * torch.randn_like(z) for z in self.encode(views)]
        if stage == "warm-up":
            losses = [self.task.loss(b(z), target).mean() for b, z in zip(self.branches, noisy, strict=True)]
            return {"loss": sum(losses), **{f"trb.{k}": each.detach() for k, each in enumerate(losses)}}
        loss = self.task.loss(self.predict(noisy), target).mean()
        return {"loss": loss, "r.b": noisy[0].detach().square().mean()}


@pytest.fixture(autouse=True)
def two_stages(monkeypatch) -> None:
    monkeypatch.setitem(METHODS, "two-stages", Fusion("two stages", TwoStages))
    # Intervals are tested where probes are.
    monkeypatch.setattr(evaluating, "_RESAMPLES", 20)


@pytest.fixture
def quick_beta(monkeypatch) -> None:
    monkeypatch.setattr(omib, "estimate_beta", partial(omib.estimate_beta, seeds=1, epochs=60))


def arrays(n: int = 100, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    centres = 2 * generator.standard_normal((3, 5))
    views = {name: (centres[labels] + generator.standard_normal((n, 5))).astype(np.float32) for name in "ab"}
    return views, labels


@pytest.fixture
def npz(tmp_path) -> str:
    views, labels = arrays()
    np.savez(tmp_path / "x.npz", **views, labels=labels)
    return f"npz:{tmp_path / 'x.npz'}"


def weights(path: Path) -> bytes:
    return (path / "weights.safetensors").read_bytes()


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path) as file:
        return list(csv.DictReader(file))


class StoppedError(Exception):
    pass


def test_sim_is_what_the_appendix_says() -> None:
    for name, (first, second) in SPECIFIC.items():
        found = data.load(f"{name}:500", seed=3)
        assert [x.shape for x in found.views.values()] == [(500, 600 + first), (500, 600 + second)]
        assert [len(found.splits[split]) for split in ("train", "validation", "test")] == [400, 50, 50]
        v1, v2 = found.views["v1"], found.views["v2"]
        # a0 and b0 are in both; nothing else is shared.
        assert np.array_equal(v1[:, :400], v2[:, :400])
        assert abs(np.corrcoef(v1[:, 400], v2[:, 400])[0, 1]) < 0.2
        relevant = np.concatenate([v1[:, :200], v1[:, 400 : 400 + first], v2[:, 400 : 400 + second]], 1)
        # All labels lie on their sides of one hyperplane through the origin: it is in the span of few samples.
        found_normal, *_ = np.linalg.lstsq(relevant.astype(float), 2.0 * found.labels - 1, rcond=None)
        assert ((relevant @ found_normal > 0) == found.labels).mean() > 0.99
        features, labels, split = authentic_features(name, 500, 3)
        assert np.array_equal(features["optimal"], relevant)
        assert np.array_equal(features["v2"], v2)
        assert features["union"].shape == (500, 800 + first + second)
        assert np.array_equal(labels, found.labels)
        assert (split == "test").sum() == 50
    assert 0.4 < labels.mean() < 0.6


def test_sim_depends_on_its_seed_alone() -> None:
    views, labels, _ = read_sim("sim-i", 5000, seed=1)
    # Chunks are drawn apart, so that more samples begin with the same.
    more, more_labels, _ = read_sim("sim-i", 9000, seed=1)
    assert np.array_equal(views["v1"], more["v1"][:5000])
    assert np.array_equal(labels, more_labels[:5000])
    assert not np.array_equal(views["v1"], read_sim("sim-i", 5000, seed=2)[0]["v1"])
    # No row is another's.
    assert len(np.unique(more["v2"][:, 0])) > 8900


def test_sim_is_written_piece_by_piece(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(data.sim, "_CHUNK", 64)
    write_sim(tmp_path / "sim", "sim-ii", 200, seed=5)
    views, labels, split = read_sim("sim-ii", 200, seed=5)
    found = data.load(f"dir:{tmp_path / 'sim'}")
    assert found.on_disk
    for name, view in views.items():
        assert np.array_equal(found.views[name][:], view)
    assert np.array_equal(found.labels, labels)
    assert np.array_equal(found.splits["test"].numpy(), np.flatnonzero(split == "test"))
    with pytest.raises(data.DataError, match="is not empty; choose another folder"):
        write_sim(tmp_path / "sim", "sim-ii", 200)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sim-iv", "unknown data set 'sim-iv'"),
        ("sim-i:many", "expected sim-i or sim-i:SAMPLES, a number"),
        ("sim-i:9", "samples must be an integer of at least 10, got 9"),
    ],
)
def test_sim_that_there_is_not(name, message) -> None:
    with pytest.raises(data.DataError, match=message):
        data.load(name)


@pytest.mark.parametrize("name", [name for name in train.FUSIONS if name != "omib"])
def test_every_fusion_trains_and_opens_again(npz, tmp_path, name) -> None:
    run = train.fit(name, npz, output=tmp_path / "run", pictures=False, **{**SMALL, "epochs": 2})
    assert run.predict("test").shape == (20, 3)
    opened = train.open_run(tmp_path / "run")
    assert torch.equal(opened.predict("test"), run.predict("test"))
    assert opened.target == Target("classification", classes=(0, 1, 2))
    row = rows_of(tmp_path / "run" / "metrics.csv")[-1]
    terms = {key.removeprefix("train_") for key in row if key.startswith("train_")} - {"loss"}
    of_validation = {key.removeprefix("validation_") for key in row if key.startswith("validation_")}
    assert of_validation == {*terms, "loss", "prediction"}
    # Whatever the loss is made of is there step by step.
    steps = tmp_path / "run" / "steps.csv"
    assert steps.exists() == bool(terms)
    if terms:
        found = rows_of(steps)
        assert [int(step["step"]) for step in found] == list(range(1, 15))
        assert np.mean([float(step["loss"]) for step in found[7:]]) == pytest.approx(float(row["train_loss"]))


@pytest.mark.parametrize("step", [3, 14, 15, 25])
@pytest.mark.parametrize("minutes", [1e-9, 10.0])
def test_a_run_interrupted_in_either_stage_ends_with_the_same_weights(
    npz, tmp_path, monkeypatch, step, minutes
) -> None:
    """Two epochs of warm-up and three of main training, of 7 steps each: within, and at the boundary."""
    settings = {**SMALL, "warm_up_epochs": 2, "checkpoint_minutes": minutes, "pictures": False}
    whole = train.fit("two-stages", npz, output=tmp_path / "whole", **settings)
    original = Recording.on_train_batch_end

    def stopping(self: Recording, *arguments: object) -> None:
        original(self, *arguments)
        if self.step == step:
            raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(Recording, "on_train_batch_end", stopping)
        with pytest.raises(StoppedError):
            train.fit("two-stages", npz, output=tmp_path / "run", **settings)
    run = train.fit("two-stages", npz, output=tmp_path / "run", resume=True, **settings)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert (tmp_path / "run" / "steps.csv").read_text() == (tmp_path / "whole" / "steps.csv").read_text()
    timed = ("seconds", "loading_seconds")
    for mine, its in zip(run.epochs, whole.epochs, strict=True):
        assert {key: x for key, x in mine.items() if key not in timed} == {
            key: x for key, x in its.items() if key not in timed
        }


def test_the_warm_up_comes_first_and_chooses_nothing(npz, tmp_path) -> None:
    settings = {**SMALL, "epochs": 100, "patience": 2, "learning_rate": 0.05}
    run = train.fit("two-stages", npz, output=tmp_path / "run", warm_up_epochs=4, **settings)
    stages = [row["stage"] for row in run.epochs]
    assert stages == ["warm-up"] * 4 + ["main"] * (len(stages) - 4)
    # The patience of the main stage ended it, however the warm-up's losses were.
    assert run.best_epoch == len(stages) - 2 > 4
    main = [row["validation_prediction"] for row in run.epochs[4:]]
    assert run.epochs[run.best_epoch - 1]["validation_prediction"] == min(main)
    rows = rows_of(tmp_path / "run" / "metrics.csv")
    assert rows[0]["train_trb.1"]
    assert not rows[0]["train_r.b"]
    assert rows[-1]["validation_r.b"]
    steps = rows_of(tmp_path / "run" / "steps.csv")
    assert list(steps[0]) == ["step", "loss", "r.b"]
    assert int(steps[0]["step"]) == 4 * 7 + 1
    assert (tmp_path / "run" / "learning_curves.png").exists()
    assert (tmp_path / "run" / "modality_weights.png").exists()
    assert not (tmp_path / "run" / "embeddings.png").exists()
    none = train.fit("two-stages", npz, warm_up_epochs=0, **SMALL)
    assert [row["stage"] for row in none.epochs] == ["main"] * 3


class Memoriser(TwoStages):
    """Adds to its loss what rises with every step, as the loss of a branch that learns samples by heart does."""

    def __init__(self, encoders: Any, features: int, task: fusion.Task, noise: float = 0.0) -> None:
        super().__init__(encoders, features, task, noise)
        self.register_buffer("steps", torch.zeros(()))

    def terms(self, views: Any, target: Any, stage: str = "main") -> dict[str, torch.Tensor]:
        if self.training:
            self.steps += 1
        terms = super().terms(views, target, stage)
        return {**terms, "loss": terms["loss"] + self.steps}


def test_a_fusions_predictions_choose_its_epoch(npz, monkeypatch) -> None:
    monkeypatch.setitem(METHODS, "memoriser", Fusion("memoriser", Memoriser))
    settings = {**SMALL, "epochs": 6, "patience": 2, "learning_rate": 0.01}
    run = train.fit("memoriser", npz, warm_up_epochs=1, **settings)
    losses = [row["validation_loss"] for row in run.epochs[1:]]
    assert losses == sorted(losses)
    of_predictions = [row["validation_prediction"] for row in run.epochs[1:]]
    assert run.best_epoch == 2 + int(np.argmin(of_predictions)) > 2
    # Without noise and what rises it is the loss itself.
    steps = [7.0 * epoch for epoch in range(2, len(run.epochs) + 1)]
    assert np.subtract(losses, steps) == pytest.approx(of_predictions, abs=1e-4)
    assert "validation_prediction" not in run.epochs[0]


def test_the_noise_of_validation_is_the_same_at_every_epoch(npz) -> None:
    run = train.fit("two-stages", npz, loss={"noise": 3.0}, warm_up_epochs=0, **{**SMALL, "learning_rate": 1e-30})
    assert len({row["validation_loss"] for row in run.epochs}) == 1
    assert len({row["train_loss"] for row in run.epochs}) == 3


def test_the_table_of_steps_is_bounded_and_leaves_no_step_out() -> None:
    table = StepTable(limit=8)
    for step in range(1, 1001):
        table.add(step, {"r": float(step)})
        again = StepTable(limit=8)
        again.restore(json.loads(json.dumps(table.state())))
        table = again
    lengths = np.diff([0, *[row["step"] for row in table.rows]])
    assert 4 <= len(table.rows) < 8
    assert set(lengths) == {128}
    for row in table.rows:
        assert row["r"] == row["step"] - 63.5


def test_omib_estimates_its_beta_once(npz, tmp_path, monkeypatch, quick_beta) -> None:
    settings = {**SMALL, "warm_up_epochs": 1, "epochs": 2, "pictures": False}
    whole = train.fit("omib", npz, output=tmp_path / "whole", **settings)
    report = json.loads((tmp_path / "whole" / "beta.json").read_text())
    assert report["lower"] <= report["beta"] == whole.module.model.beta <= report["upper"]
    assert set(report["entropies"]) == {"a", "b"}
    assert report["estimator"] == "smile"
    original = Recording.on_train_batch_end

    def stopping(self: Recording, *arguments: object) -> None:
        original(self, *arguments)
        if self.step == 10:
            raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(Recording, "on_train_batch_end", stopping)
        with pytest.raises(StoppedError):
            train.fit("omib", npz, output=tmp_path / "run", **settings)
    monkeypatch.setattr(omib, "estimate_beta", lambda *_, **__: pytest.fail("it was estimated already"))
    (tmp_path / "run" / "beta.json").unlink()
    train.fit("omib", npz, output=tmp_path / "run", resume=True, **settings)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert json.loads((tmp_path / "run" / "beta.json").read_text()) == report
    assert train.open_run(tmp_path / "run").module.model.beta == report["beta"]
    # Given, or weighing nothing, it is not estimated.
    given = train.fit("omib", npz, output=tmp_path / "given", loss={"beta": 0.25}, **settings)
    assert given.module.model.beta == 0.25
    assert not (tmp_path / "given" / "beta.json").exists()
    train.fit("omib", npz, loss={"bottleneck": False}, **settings)
    steps = rows_of(tmp_path / "run" / "steps.csv")
    assert [int(row["step"]) for row in steps] == list(range(8, 22))
    assert all(0 <= float(row["r.b"]) <= 2 for row in steps)


def test_a_regression_predicts_in_its_own_units(tmp_path) -> None:
    views, labels = arrays(200)
    targets = 1e4 + 300.0 * (labels - 1) + views["a"][:, 0]
    found = data.from_arrays(views, targets)
    run = train.fit("concatenation", found, **{**SMALL, "epochs": 20, "learning_rate": 0.02})
    prediction = run.predict("test")[:, 0].numpy()
    expected = targets[run.data.splits["test"].numpy()]
    assert np.abs(prediction - expected).mean() < 0.5 * np.abs(expected - expected.mean()).mean()
    result = evaluate(run, progress=False)
    assert [row["metric"] for row in result.rows] == ["MAE", "Pearson r"]
    assert result.value("regression", "MAE") == pytest.approx(np.abs(prediction - expected).mean())
    two = data.from_arrays(views, np.stack([targets, -targets], 1))
    train.fit("two-stages", two, output=tmp_path / "run", warm_up_epochs=1, **SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = train.open_run(tmp_path / "run", data=two)
    assert opened.predict("test").shape == (40, 2)
    assert opened.target.deviation[0] == pytest.approx(opened.target.deviation[1])


def test_anomaly_detection_trains_on_what_is_normal(tmp_path, monkeypatch) -> None:
    views, labels = arrays(300)
    names = np.array(["zero", "one", "two"])[labels]
    found = data.from_arrays(views, names)
    settings = {**SMALL, "task": "anomaly-detection", "normal_class": "one", "epochs": 20}
    seen = []
    original = FusionModule.training_step

    def step(self: FusionModule, batch: dict[str, torch.Tensor], position: int) -> object:
        seen.append(batch[TARGET])
        return original(self, batch, position)

    monkeypatch.setattr(FusionModule, "training_step", step)
    run = train.fit("concatenation", found, output=tmp_path / "run", **settings)
    assert not torch.cat(seen).any()
    assert len(seen[0]) == 8
    assert bool((run.module.model.task.center.abs() >= 0.1).all())
    assert not any("bias" in name for name, _ in run.module.model.named_parameters())
    result = evaluate(run, progress=False)
    assert result.value("anomaly-detection", "AUC") > 0.9
    assert result.rows[0]["samples"] == 60
    from sklearn.metrics import roc_auc_score

    scores = run.predict("test")[:, 0]
    anomalies = names[found.splits["test"].numpy()] != "one"
    assert result.value("anomaly-detection", "AUC") == pytest.approx(roc_auc_score(anomalies, scores))
    assert result.value("anomaly-detection", "F1") == omib.f1_at_true_count(scores, anomalies)
    opened = train.open_run(tmp_path / "run", data=found)
    assert torch.equal(opened.predict("test"), run.predict("test"))


def test_scores_are_those_of_scikit_learn_and_of_sentiment_analysis() -> None:
    from scipy import stats
    from sklearn.metrics import accuracy_score, f1_score

    generator = np.random.default_rng(0)
    logits = torch.from_numpy(generator.standard_normal((50, 3)))
    labels = generator.integers(3, size=50)
    target = Target("classification", classes=(0, 1, 2))
    found = scored(target, logits, labels)
    assert found.value("accuracy") == pytest.approx(accuracy_score(labels, logits.argmax(1)))
    assert found.value("F1") == pytest.approx(f1_score(labels, logits.argmax(1), average="macro"), abs=1e-6)
    rows = generator.integers(50, size=(4, 50))
    assert found.value("accuracy", rows)[2] == pytest.approx(accuracy_score(labels[rows[2]], logits.argmax(1)[rows[2]]))
    # Sentiment: 0 has no sign, and what is predicted beyond 3 counts as 3.
    truth = np.array([-3.0, -1.2, -0.4, 0.0, 0.6, 1.5, 3.0, 2.0])
    guess = torch.tensor([[-4.0], [-1.4], [0.2], [-2.0], [0.7], [2.4], [5.0], [-0.1]])
    found = scored(Target("regression", mean=(0.0,), deviation=(1.0,), sentiment=True), guess, truth)
    assert found.value("MAE") == pytest.approx(np.abs(truth - guess[:, 0].numpy()).mean())
    assert found.value("Pearson r") == pytest.approx(stats.pearsonr(truth, guess[:, 0])[0])
    nonzero = truth != 0
    assert found.value("Acc-2") == pytest.approx(5 / 7)
    signs = truth[nonzero] > 0, guess[nonzero, 0].numpy() > 0
    assert found.value("F1") == pytest.approx(f1_score(*signs, average="weighted"), abs=1e-6)
    # All but 0 and 2 round to the same as what is predicted.
    assert found.value("Acc-7") == pytest.approx(6 / 8)
    beyond = scored(Target("regression", mean=(0.0,), deviation=(1.0,)), guess, truth * 2)
    assert list(beyond.metrics) == ["MAE", "Pearson r"]


def test_a_loss_of_predictions_that_is_no_number_ends_training(npz, monkeypatch) -> None:
    monkeypatch.setattr(TwoStages, "forward", lambda self, views: self.predict(self.encode(views)) * torch.nan)
    with pytest.raises(DivergedError, match="the validation loss of predictions became nan in epoch 2"):
        train.fit("two-stages", npz, pictures=False, **{**SMALL, "epochs": 1, "warm_up_epochs": 1})


@pytest.mark.parametrize(
    ("rate", "error", "message"),
    [(1e30, DivergedError, "the validation loss became"), (float("inf"), train.RunError, "finite")],
)
def test_authentic_features_without_a_loss_have_no_accuracy(tmp_path, rate, error, message) -> None:
    settings = {"samples": 100, "epochs": 2, "batch_size": 8, "features": 4, "depth": 1, "progress": False}
    with pytest.raises(error, match=message):
        classify_authentic_features("sim-i", tmp_path / "run", seeds=1, learning_rate=rate, **settings)


def test_options_change_what_they_name_in_a_file(npz, tmp_path, monkeypatch) -> None:
    given = {}
    monkeypatch.setattr(train, "fit", lambda *_, **settings: given.update(settings) or pytest.fail("as far as it goes"))
    loss, encoders = {"ratio": "ratio_of_means", "beta": 1.0}, {"a": "mlp", "b": "mlp"}
    (tmp_path / "s.json").write_text(json.dumps({"loss": loss, "encoders": encoders}))
    with pytest.raises(pytest.fail.Exception):
        command(
            ["fit", "omib", "--data", npz, "--config", str(tmp_path / "s.json"), "--beta", "2", "--encoder", "b=lstm"]
        )
    assert given["loss"] == {**loss, "beta": 2.0}
    assert given["encoders"] == {"a": "mlp", "b": "lstm"}


def test_a_beta_of_a_critic_that_learned_nothing_is_refused(npz, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(omib, "estimate_beta", partial(omib.estimate_beta, seeds=1, epochs=1, learning_rate=1e-4))
    with pytest.raises(train.RunError, match=r"told hardly any of 60 samples apart, H\(a\) = .*give a beta \(--beta\)"):
        train.fit("omib", npz, output=tmp_path / "run", pictures=False, **SMALL)
    assert train.fit("omib", npz, loss={"beta": 0.1}, pictures=False, **{**SMALL, "epochs": 1}).module.model.beta == 0.1


def test_sentiment_is_what_all_labels_say() -> None:
    views, _ = arrays()
    labels = np.linspace(0.1, 2.9, 100)
    assert not target_of(data.from_arrays(views, labels)).sentiment
    # One sample of a sign, in whatever split, and one beyond the scale.
    labels[7] = -1.0
    target = target_of(data.from_arrays(views, labels))
    assert target.sentiment
    assert Target.from_json(json.loads(json.dumps(target.to_json()))) == target
    assert target_of(data.from_arrays(views, labels[:, None])).sentiment
    labels[8] = 3.5
    assert not target_of(data.from_arrays(views, labels)).sentiment


@pytest.mark.parametrize(
    ("target", "labels"),
    [
        (Target("regression", mean=(0.0,), deviation=(1.0,)), np.array(["a", "b"])),
        (Target("regression", mean=(0.0,), deviation=(1.0,)), np.zeros((2, 3))),
        (Target("regression", mean=(0.0, 0.0), deviation=(1.0, 1.0)), np.zeros(2)),
        (Target("classification", classes=(0, 1)), np.array(["0", "1"])),
        (Target("classification", classes=("a", "b")), np.array([0, 1])),
        (Target("classification", classes=(0, 1)), np.zeros((2, 2))),
        (Target("anomaly-detection", normal="1"), np.zeros((2, 2))),
    ],
)
def test_labels_of_another_kind_are_refused(target, labels) -> None:
    with pytest.raises(data.DataError, match=rf"labels are .*; the run was trained for {target.task}, "):
        scored(target, torch.zeros(2, max(1, len(target.mean))), labels)


def test_options_read_what_python_writes() -> None:
    assert [_value(text) for text in ("True", "False", "None", "true", "0.5", "pairwise")] == [
        True,
        False,
        None,
        True,
        0.5,
        "pairwise",
    ]


def test_an_epoch_of_a_folder_reads_a_batch_at_a_time(tmp_path, monkeypatch) -> None:
    write_sim(tmp_path / "sim", "sim-iii", 1000)
    largest = {"take": 0, "slice": 0}
    take, slices = NpyRows.take, NpyRows.__getitem__

    def taking(self: NpyRows, indices: np.ndarray, axis: int = 0) -> np.ndarray:
        largest["take"] = max(largest["take"], len(indices))
        return take(self, indices, axis)

    def slicing(self: NpyRows, rows: slice) -> np.ndarray:
        found = slices(self, rows)
        largest["slice"] = max(largest["slice"], found.nbytes)
        return found

    monkeypatch.setattr(NpyRows, "take", taking)
    monkeypatch.setattr(NpyRows, "__getitem__", slicing)
    monkeypatch.setattr(data.multimodal, "_CHUNK_BYTES", 1 << 18)
    train.fit("concatenation", f"dir:{tmp_path / 'sim'}", **{**SMALL, "batch_size": 64, "epochs": 1})
    # 64 samples also tell the data from others.
    assert largest["take"] == 64
    assert largest["slice"] <= 1 << 18


def test_fusions_take_the_samples_that_have_all_modalities(monkeypatch) -> None:
    views, labels = arrays(200)
    present = np.random.default_rng(0).random(200) < 0.7
    views["b"][~present] = np.nan
    found = data.from_arrays(views, labels, presence={"b": present})
    run = train.fit("two-stages", found, warm_up_epochs=1, **SMALL)
    result = evaluate(run, progress=False)
    assert result.rows[0]["samples"] == present[found.splits["test"].numpy()].sum()
    with pytest.raises(data.DataError, match="a fusion predicts samples that have all modalities, and some lack one"):
        run.predict("test")


def test_what_is_wrong_is_said_before_training(npz, tmp_path, monkeypatch) -> None:
    views, labels = arrays()
    split = np.array(["train", "validation", "test"])[np.r_[np.zeros(60, int), np.ones(20, int), 2 * np.ones(20, int)]]
    nan = labels.astype(float)
    nan[3] = np.nan
    with pytest.raises(data.DataError, match=r"labels hold NaN or infinity at \[3\]"):
        data.from_arrays(views, nan)
    for name, source, settings, message in (
        ("concatenation", data.from_arrays(views), {}, "trained to predict labels, and there are none"),
        (
            "concatenation",
            data.from_arrays(views, np.where(split == "train", 0, labels), split=split),
            {},
            "the training split is of class 0 alone; expected two or more",
        ),
        ("concatenation", data.from_arrays(views, np.full(100, 2)), {}, "labels do not fit classification: 1 classes"),
        ("concatenation", data.from_arrays(views, np.full(100, 2.0)), {}, "a target never varies"),
        ("concatenation", data.from_arrays(views, labels + 0.5), {"task": "classification"}, "are not whole"),
        ("concatenation", data.from_arrays(views, labels.astype(str)), {"task": "regression"}, "they hold strings"),
        ("concatenation", npz, {"task": "ranking"}, "task must be one of auto, classification, .*, got 'ranking'"),
        ("concatenation", npz, {"task": "anomaly-detection"}, "anomaly-detection needs a normal_class"),
        ("concatenation", npz, {"normal_class": 1}, "a normal_class is of anomaly-detection, and the task is 'auto'"),
        (
            "concatenation",
            npz,
            {"task": "anomaly-detection", "normal_class": 5},
            "no sample is of the normal class 5; there are 0, 1, 2",
        ),
        ("concatenation", npz, {"modalities": ["a"]}, "concatenation needs at least 2 modalities, got a"),
        ("concatenation", npz, {"warm_up_epochs": 3}, "concatenation has no warm-up"),
        ("concatenation", npz, {"loss": {"hiden_features": 3}}, "did you mean 'hidden_features'"),
        ("ova-ib", npz, {"task": "classification"}, "task is of fusions, which predict labels; OVA-IB aligns"),
        ("omib", npz, {"loss": {"beta": 0}}, "OMIB: beta must be positive, got 0"),
        ("omib", npz, {"loss": {"beta": -1.0}}, "OMIB: beta must be .*at least 0"),
        ("omib", npz, {"warm_up_epochs": -1}, "warm_up_epochs must be an integer of at least 0, got -1"),
        ("omib", npz, {"beta_estimator": "guess"}, "estimator must be one of"),
        ("omib", data.from_arrays({k: v[:30] for k, v in views.items()}, labels[:30]), {}, "at least 20"),
    ):
        with pytest.raises((train.RunError, data.DataError), match=message) as caught:
            train.fit(name, source, output=tmp_path / "run", **{**SMALL, **settings})
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["train", "validation", "test"])
@pytest.mark.parametrize("task", ["auto", "anomaly-detection"])
def test_a_class_of_one_sample_stops_nothing(tmp_path, capsys, place, task) -> None:
    """Wherever it is: it is trained on, or left out of what cannot be scored, and that is said."""
    views, labels = arrays()
    names = np.array(["x", "y", "z"])[labels]
    split = np.array(["train", "validation", "test"])[np.r_[np.zeros(60, int), np.ones(20, int), 2 * np.ones(20, int)]]
    rare = int(np.flatnonzero(split == place)[5])
    names = names.astype("<U4")
    names[rare] = "rare"
    found = data.from_arrays(views, names, split=split)
    settings = {**SMALL, "progress": True, "task": task, "normal_class": None if task == "auto" else "x"}
    run = train.fit("concatenation", found, output=tmp_path / "run", pictures=False, **settings)
    said = " ".join(capsys.readouterr().err.split())
    rows = evaluate(run, progress=True).rows
    left_out = "left out: 1 of 20 test samples, of classes that training had not"
    assert (left_out in " ".join(capsys.readouterr().err.split())) == ((place, task) == ("test", "auto"))
    assert np.isfinite([row["value"] for row in rows]).all()
    if task == "anomaly-detection":
        assert "concatenation: anomaly detection, class 'x' normal, of a, b" in said
        return
    trained = place == "train"
    assert f"concatenation: classification of {3 + trained} classes, of a, b; 60 training" in said
    assert ("no training sample is of class 'rare': 1 sample of validation and test left out" in said) != trained
    assert ("no validation sample is of class 'rare', which is trained on and chooses no epoch" in said) == trained
    assert ("no test sample is of class 'rare', which is trained on and is not scored" in said) == trained
    assert f"{20 - (place == 'validation')} validation samples" in said
    assert {row["samples"] for row in rows} == {20 - (place == "test")}
    opened = train.open_run(tmp_path / "run", data=found)
    assert opened.target == run.target
    assert [row["value"] for row in evaluate(opened, progress=False).rows] == [row["value"] for row in rows]
    assert (opened.target.encoded(np.array(["rare"])).item() >= 0) == trained


def test_anomalies_may_each_be_of_a_class_of_their_own(tmp_path) -> None:
    views, labels = arrays()
    ids = np.where(labels == 0, 0, 1 + np.arange(100))
    found = data.from_arrays(views, ids)
    run = train.fit("concatenation", found, task="anomaly-detection", normal_class=0, **SMALL)
    assert {row["metric"] for row in evaluate(run, progress=False).rows} == {"AUC", "F1"}


def test_a_run_meets_other_data(npz, tmp_path) -> None:
    train.fit("concatenation", npz, output=tmp_path / "run", pictures=False, **SMALL)
    views, labels = arrays(seed=1)
    opened = train.open_run(tmp_path / "run", data=data.from_arrays(views, labels + 1))
    with pytest.raises(data.DataError, match="labels hold class 3, which training had not"):
        evaluate(opened, progress=False)
    unlabelled = train.open_run(tmp_path / "run", data=data.from_arrays(views, split=None), whole=True)
    assert unlabelled.predict("all").shape == (100, 3)
    with pytest.raises(data.DataError, match="predictions are scored by labels, and there are none"):
        evaluate(train.open_run(tmp_path / "run", data=data.from_arrays(views)), progress=False)
    with pytest.raises(data.DataError, match="a fusion needs all of a, b; got a"):
        train.open_run(tmp_path / "run", data=data.from_arrays({"a": views["a"]}, labels))
    run = train.open_run(tmp_path / "run")
    with pytest.raises(train.RunError, match="was trained for classification, not for regression"):
        evaluate(run, task="regression", progress=False)
    with pytest.raises(train.RunError, match="is a fusion and makes no embeddings"):
        run.embed("test")
    assert run.embed("test", representations=True)["a"].shape == (20, 8)


def test_targets_of_labels() -> None:
    views, labels = arrays()
    names = np.array(["b", "a", "c"])[labels]
    target = target_of(data.from_arrays(views, names))
    assert target.classes == ("a", "b", "c")
    assert target.encoded(np.array(["c", "d", "a"])).tolist() == [2, -1, 0]
    assert Target.from_json(json.loads(json.dumps(target.to_json()))) == target
    whole = target_of(data.from_arrays(views, labels.astype(float)), "anomaly-detection", 2)
    assert whole.encoded(np.array([2.0, 0.0])).tolist() == [0, 1]


def test_fusions_are_tuned_alike_and_ranked(npz, tmp_path, monkeypatch, quick_beta) -> None:
    assert grid(method("concatenation")) == [{"learning_rate": rate} for rate in grids.LEARNING_RATES]
    assert grid(method("omib")) == grid(method("concatenation"))
    assert [setting["beta"] for setting in grid(method("e-mib"), learning_rate=0.1)] == pytest.approx(
        [1e-4, 1e-3, 1e-2]
    )
    monkeypatch.setattr(grids, "LEARNING_RATES", (1e-30, 0.01))
    settings = {**SMALL, "warm_up_epochs": 1}
    methods = ["concatenation", "omib"]
    found = compare(methods, npz, tmp_path / "c", seeds=2, **settings)
    assert found.settings["concatenation"] == {"learning_rate": 0.01}
    of_omib = [each for each in found.tried if each["method"] == "omib"]
    assert found.settings["omib"] == max(of_omib, key=lambda each: each["score"])["loss"]
    assert list(found.figures()["omib"]) == ["accuracy", "F1"]
    run = train.open_run(tmp_path / "c" / "runs" / "concatenation,learning_rate=0.01,seed=1")
    other = train.open_run(tmp_path / "c" / "runs" / "concatenation,learning_rate=0.01,seed=0")
    values = [evaluate(each, progress=False).value("classification", "accuracy") for each in (run, other)]
    assert found.figures()["concatenation"]["accuracy"][0] == pytest.approx(np.mean(values))
    assert "| OMIB | learning_rate " in found.markdown()
    assert found.markdown().startswith("| method | settings | accuracy | F1 |\n")
    assert (tmp_path / "c" / "comparison.png").exists()
    # Given, a learning rate is not tuned.
    fixed = compare(["concatenation"], npz, tmp_path / "fixed", seeds=1, **{**SMALL, "learning_rate": 0.02})
    assert fixed.tried == []
    assert train.open_run(tmp_path / "fixed" / "runs" / "concatenation,seed=0").config.learning_rate == 0.02
    with pytest.raises(train.RunError, match="alignments and fusions are scored differently"):
        compare(["concatenation", "clip"], npz, tmp_path / "other", **SMALL)
    with pytest.raises(train.RunError, match="beta must be"):
        compare(["omib"], npz, tmp_path / "other", vary={"beta": [0.0]}, **settings)


def test_ablations_of_omib_and_a_sweep_of_its_beta(npz, tmp_path, quick_beta) -> None:
    settings = {**SMALL, "epochs": 1, "warm_up_epochs": 1, "seeds": 1, "tune": False}
    vary = {"fusion": ["cross_attention", "concatenation"], "dynamic_weights": [True, False]}
    found = compare(["omib"], npz, tmp_path / "ablations", vary=vary, **settings)
    assert "omib[fusion=concatenation,dynamic_weights=False]" in found.settings
    run = train.open_run(tmp_path / "ablations" / "runs" / "omib,fusion=concatenation,dynamic_weights=False,seed=0")
    assert not run.module.model.dynamic_weights
    # Estimated once, for all runs of a seed.
    (kept,) = (tmp_path / "ablations").glob("beta*")
    assert run.module.model.beta == json.loads(kept.read_text())["beta"]
    assert not (tmp_path / "ablations" / "sweep.png").exists()
    found = compare(["omib", "e-mib"], npz, tmp_path / "sweep", vary={"beta": [1e-4, 1e-2, 1.0]}, **settings)
    assert len(found.settings) == 6
    report = json.loads((tmp_path / "sweep" / "beta,seed=0.json").read_text())
    assert report["lower"] <= report["upper"]
    import matplotlib.image

    assert matplotlib.image.imread(tmp_path / "sweep" / "sweep.png").std() > 0.01


def test_ablations_change_one_thing_each(npz, tmp_path) -> None:
    settings = {**SMALL, "epochs": 1, "warm_up_epochs": 1, "seeds": 1, "tune": False}
    ablate = {"noise": 0.5, "warm_up_epochs": 0}
    found = compare(["two-stages", "concatenation"], npz, tmp_path / "c", ablate=ablate, **settings)
    assert list(found.settings) == [
        "two-stages",
        "two-stages[noise=0.5]",
        "two-stages[warm_up_epochs=0]",
        "concatenation",
    ]
    runs = {
        name: train.open_run(tmp_path / "c" / "runs" / f"{name},seed=0")
        for name in ("two-stages", "two-stages,noise=0.5", "two-stages,warm_up_epochs=0")
    }
    assert [run.module.model.noise for run in runs.values()] == [0.1, 0.5, 0.1]
    assert [len(run.epochs) for run in runs.values()] == [2, 2, 1]
    assert "warm_up_epochs 0" in found.markdown()
    for wrong, message in (
        ({"ablate": {"nois": 1}}, "did you mean 'noise'"),
        ({"ablate": {"warm_up_epochs": -1}}, "warm_up_epochs must be an integer of at least 0"),
        ({"ablate": {"noise": 1}, "vary": {"noise": [1, 2]}}, "varies options or ablates them, not both"),
    ):
        with pytest.raises(train.RunError, match=message):
            compare(["two-stages"], npz, tmp_path / "other", **wrong, **settings)
    with pytest.raises(train.RunError, match="none of the methods has a loss option 'warm_up_epochs'"):
        compare(["concatenation"], npz, tmp_path / "other", ablate={"warm_up_epochs": 0}, **{**SMALL, "seeds": 1})


def test_authentic_features_are_classified(tmp_path, monkeypatch) -> None:
    settings = {"samples": 400, "epochs": 4, "batch_size": 32, "features": 32, "depth": 1, "progress": False}
    found = classify_authentic_features("sim-iii", tmp_path / "a", seeds=2, **settings)
    rows = {row["features"]: row for row in found.rows()}
    assert list(rows) == list(authentic_features("sim-iii", 10)[0])
    assert rows["optimal"]["mean"] > 0.6
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").glob("*,seed=*.json")}
    assert len(files) == 12
    # What is there is kept, what is missing is made anew, with the same numbers.
    (tmp_path / "a" / "union,seed=1.json").unlink()
    again = classify_authentic_features("sim-iii", tmp_path / "a", seeds=2, **settings)
    assert again.rows() == found.rows()
    assert sum(path.stat().st_mtime_ns != before for path, before in files.items()) == 1
    assert "| optimal | 0." in (tmp_path / "a" / "accuracies.md").read_text()
    for wrong, message in (
        ({"epochs": 0}, "epochs must be an integer of at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be a finite positive number, got 0.0"),
        ({"batch_size": 321}, "a batch of 321 is larger than the training split of 400 samples"),
        ({"seeds": 3}, "was begun with other seeds"),
        ({"dropout": 0.5}, "was begun with other dropout"),
        ({"dropout": 1.0}, r"dropout must be below 1, got 1\.0"),
    ):
        with pytest.raises(train.RunError, match=message):
            classify_authentic_features("sim-iii", tmp_path / "a", **{"seeds": 2, **settings, **wrong})
    with pytest.raises(data.DataError, match="did you mean 'sim-iii'"):
        classify_authentic_features("sim-iiii", tmp_path / "b", **settings)
    assert not (tmp_path / "b").exists()


def test_dropout_reaches_the_encoders(tmp_path, monkeypatch) -> None:
    """Of a run from the command line, in part of the modalities, and of the classifiers of true features."""
    rng = np.random.default_rng(0)
    arrays = {"a": rng.standard_normal((60, 6)), "b": rng.standard_normal((60, 8, 3)), "labels": np.arange(60) % 2}
    np.savez(tmp_path / "data.npz", **arrays)
    given = ["--data", f"npz:{tmp_path / 'data.npz'}", "--dropout", "0.25", "--epochs", "1", "--batch-size", "16"]
    assert command(["fit", "concatenation", *given, "--output", str(tmp_path / "run")]) == 0
    module = train.open_run(tmp_path / "run").module
    rates = {name: [x.p for x in part.modules() if isinstance(x, nn.Dropout)] for name, part in module.named_modules()}
    assert next(found for name, found in rates.items() if name.endswith("encoders.a")) == [0.25, 0.25]
    assert next(found for name, found in rates.items() if name.endswith("encoders.b")) == []

    made, modes = [], []

    class Recorded(MLPEncoder):
        def __init__(self, *sizes: int, **options: float) -> None:
            super().__init__(*sizes, **options)
            made.append(options["dropout"])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            modes.append((self.training, torch.is_grad_enabled()))
            return super().forward(x)

    monkeypatch.setattr("mibfast.train.experiments.authentic.MLPEncoder", Recorded)
    settings = {"samples": 200, "epochs": 2, "batch_size": 32, "features": 8, "depth": 2, "progress": False}
    classify_authentic_features("sim-i", tmp_path / "authentic", seeds=1, dropout=0.5, **settings)
    assert set(made) == {0.5}
    # It is trained with it, and scored without.
    assert set(modes) == {(True, True), (False, False)}


@pytest.mark.parametrize("name", SPECIFIC)
def test_the_best_accuracies_are_those_of_the_known_rule(name) -> None:
    first, second = SPECIFIC[name]
    generator = np.random.default_rng(0)
    known = {"consistent": 200, "specific": first + second, "v1": 200 + first, "v2": 200 + second, "optimal": 800}
    for row, length in known.items():
        # The parts of a label's sum that are known and those that are not.
        seen = np.sqrt(length) * generator.standard_normal(200_000)
        unseen = np.sqrt(800 - length) * generator.standard_normal(200_000)
        assert np.mean((seen > 0) == (seen + unseen > 0)) == pytest.approx(best_accuracies(name)[row], abs=0.005)


def test_a_sweep_is_labelled_in_plain_numbers(tmp_path, monkeypatch) -> None:
    drawn = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path: drawn.append(figure))
    sweep = {"OMIB": {10.0**k: {"accuracy": (0.8, 0.1)} for k in range(-6, 2)}}
    pictures.draw_sweep(sweep, "beta", "sim-i, 1 seed", tmp_path / "sweep.png", {"M_l": 0.13, "M_u": 0.15})
    (figure,) = drawn
    figure.canvas.draw()
    (axes,) = figure.axes
    labels = {text.get_text() for text in axes.get_xticklabels()}
    assert {"0.01", "1"} <= labels
    assert not any("$" in label for label in labels)
    # Neighbours' names stand apart.
    lower, upper = (text.get_window_extent() for text in axes.texts)
    assert lower.x1 <= upper.x0


def test_less_error_is_better(tmp_path, monkeypatch) -> None:
    views, labels = arrays(120)
    np.savez(tmp_path / "x.npz", **views, labels=labels + views["a"][:, 0])
    monkeypatch.setattr(grids, "LEARNING_RATES", (1e-30, 0.01))
    settings = {**SMALL, "epochs": 5}
    found = compare(["concatenation", "film"], f"npz:{tmp_path / 'x.npz'}", tmp_path / "c", seeds=1, **settings)
    assert found.settings == {"concatenation": {"learning_rate": 0.01}, "film": {"learning_rate": 0.01}}
    errors = {name: each["MAE"][0] for name, each in found.figures().items()}
    best = min(errors, key=errors.__getitem__)
    assert f"**{errors[best]:.4f} ±" in found.markdown()
    assert "Pearson r" in found.markdown()


def test_the_commands(npz, tmp_path, capsys, quick_beta) -> None:
    out = str(tmp_path / "run")
    options = ["--data", npz, "--epochs", "2", "--batch-size", "8", "--features", "8", "--depth", "1"]
    assert command(["fit", "omib", *options, "--output", out, "--warm-up-epochs", "1"]) == 0
    captured = capsys.readouterr()
    assert "OMIB on npz:" in captured.out
    assert "x.npz, classification of 3 classes: 3 epochs" in captured.out
    assert "OMIB: classification of 3 classes, of a, b; 60 training, 20 validation samples" in captured.err
    assert "validation loss of predictions " in captured.out
    assert "beta in [" in captured.err
    assert "drawn: beta" in captured.err
    assert command(["evaluate", out]) == 0
    assert "accuracy" in capsys.readouterr().out
    found = json.loads((tmp_path / "run" / "evaluation" / "test" / "evaluation.json").read_text())
    assert [row["metric"] for row in found["rows"]] == ["accuracy", "F1"]
    assert command(["embed", out, "--output", str(tmp_path / "e.npz")]) == 2
    assert "OMIB is a fusion and has no embeddings" in capsys.readouterr().err
    assert command(["embed", out, "--output", str(tmp_path / "e.npz"), "--representations"]) == 0
    anomalies = ["--task", "anomaly-detection", "--normal-class", "1", "--output", str(tmp_path / "svdd")]
    assert command(["fit", "film", *options, *anomalies]) == 0
    assert command(["evaluate", str(tmp_path / "svdd")]) == 0
    assert "AUC" in capsys.readouterr().out
    assert command(["fit", "omib", *options, "--beta", "-1", "--output", str(tmp_path / "bad")]) == 2
    assert "beta must be" in capsys.readouterr().err
    compared = ["compare", "--methods", "two-stages", *options[:6], "--depth", "1", "--seeds", "1", "--no-tune"]
    ablate = ["--ablate", "warm_up_epochs=0", "--ablate", "noise=0.5"]
    assert command([*compared, *ablate, "--warm-up-epochs", "1", "--output", str(tmp_path / "ablations")]) == 0
    assert "warm_up_epochs 0" in capsys.readouterr().out
    assert (tmp_path / "ablations" / "runs" / "two-stages,noise=0.5,seed=0" / "test.json").exists()
    assert command(["authentic", "sim-iv", "--output", str(tmp_path / "authentic")]) == 2
    assert "there is no 'sim-iv'" in capsys.readouterr().err
