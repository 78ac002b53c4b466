"""Experiments with bottlenecks: what is measured, what is refused, and going on after an interruption."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("lightning")
from mibfast import train
from mibfast.bottleneck import Bottleneck, methods
from mibfast.cli.commands import run as command
from mibfast.data import DataError
from mibfast.train.errors import DivergedError, RunError
from mibfast.train.evaluation.probes import linear_svm
from mibfast.train.experiments import bottleneck_fitting as fitting
from mibfast.train.experiments import bottlenecks as experiments
from mibfast.train.experiments.bottlenecks import Experiment, experiment

TINY = {"seeds": 1, "latent": 3, "hidden_features": 16, "steps": 10, "progress": False}


@pytest.fixture
def npz(tmp_path) -> str:
    """Two views of four classes that a line tells apart, between 0 and 1."""
    generator = np.random.default_rng(0)
    labels = np.arange(160) % 4
    views = {
        name: np.clip(np.eye(4)[labels] + 0.1 * generator.standard_normal((160, 4)), 0, 1).astype(np.float32)
        for name in ("a", "b")
    }
    np.savez(tmp_path / "small.npz", **views, labels=labels)
    return f"npz:{tmp_path / 'small.npz'}"


def views(n: int = 64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(n, 6, generator=generator) for name in "XY"}


def test_fitting_repeats_and_leaves_the_generator_alone() -> None:
    before = torch.get_rng_state()
    first, again = (
        fitting.fit_bottleneck(methods.dvsib(8.0), views(), views(40), 3, hidden_features=8, steps=60, device="cpu")
        for _ in range(2)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert [row["step"] for row in first.checks] == [25, 50, 60]
    assert first.checks == again.checks
    for name, x in first.loss.state_dict().items():
        assert torch.equal(x, again.loss.state_dict()[name])
    other = fitting.fit_bottleneck(
        methods.dvsib(8.0), views(), views(40), 3, hidden_features=8, steps=60, seed=1, device="cpu"
    )
    assert other.checks != first.checks


def test_the_best_weights_are_kept_and_training_stops() -> None:
    seen, unseen = {"X": views()["X"]}, {"X": 1 - views()["X"]}
    fitted = fitting.fit_bottleneck(
        methods.beta_vae(1e4), seen, unseen, 6, hidden_features=32, patience=100, learning_rate=0.01, device="cpu"
    )
    last = fitted.checks[-1]["step"]
    assert last == fitted.best_step + 100 < 2000
    lowest = min(fitted.checks, key=lambda row: row["validation_loss"])
    assert lowest["step"] == fitted.best_step
    assert not fitted.loss.training
    found = fitting._validation_loss(fitted.loss, unseen, 128)
    assert found == lowest["validation_loss"]


def test_training_that_diverges() -> None:
    with pytest.raises(DivergedError, match="lower learning_rate"):
        fitting.fit_bottleneck(methods.beta_vae(1e30), {"X": views()["X"]}, {"X": views()["X"]}, 3, learning_rate=1e30)


@pytest.mark.parametrize("encoder", ["mlp", "conv2d"])
@pytest.mark.parametrize("critic", fitting.CRITICS)
def test_networks_of_every_method(encoder, critic) -> None:
    shapes = {"X": (1, 6, 6), "Y": (1, 6, 6)}
    x, y = torch.rand(2, 9, *shapes["X"])
    for make in experiments.BOTTLENECKS.values():
        bottleneck = make(2.0)
        loss = fitting.build_networks(bottleneck, shapes, 3, hidden_features=8, encoder=encoder, critic=critic)
        observed = {name: {"X": x, "Y": y}[name] for name in bottleneck.observed}
        loss(**observed).backward()
        assert all(p.grad is not None for p in loss.parameters())
        encoded = fitting.encode_in_parts(loss, observed, size=4)
        for name, means in loss.encode(**observed).items():
            torch.testing.assert_close(encoded[name], means)


def test_networks_that_do_not_fit(monkeypatch) -> None:
    with pytest.raises(RunError, match=r"conv2d encodes one image \[C, H, W\], got \[\[5\]\]"):
        fitting.build_networks(methods.beta_vae(), {"X": (5,)}, 3, encoder="conv2d")
    joint = Bottleneck("X -> Z, Y -> Z", "Z -> X")
    with pytest.raises(RunError, match="encodes one image"):
        fitting.build_networks(joint, {"X": (1, 4, 4), "Y": (1, 4, 4)}, 3, encoder="conv2d")
    monkeypatch.setitem(__import__("sys").modules, "torchvision.models", None)
    with pytest.raises(RunError, match="ResNet18Encoder needs torchvision"):
        fitting.build_networks(methods.beta_vae(), {"X": (1, 4, 4)}, 3, encoder="resnet18")


def test_an_experiment_leaves_all_that_it_promises(npz, tmp_path) -> None:
    found = experiment(npz, "latent", tmp_path / "run", values=(2, 4), methods=("pixels", "dvsib", "beta-vae"), **TINY)
    assert sorted(p.name for p in (tmp_path / "run").iterdir() if not p.name.startswith(".")) == [
        "cells.jsonl",
        "plan.json",
        "results.csv",
        "results.json",
        "results.md",
        "results.png",
    ]
    cells = [(cell["method"], cell["value"]) for cell in found.cells]
    # The views themselves are no method that others are compared with, and have no latent.
    assert cells == [("dvsib", 2), ("dvsib", 4), ("beta-vae", 2), ("beta-vae", 4), ("pixels", None)]
    for cell in found.cells:
        assert set(cell["views"]) == {"a", "b"}
        for view in cell["views"].values():
            assert 0 <= view["accuracy"] <= 1
            assert view["tested"] == 32
    # The classes are as good as unit vectors.
    assert found.accuracies()["a"]["pixels"][None] == [1.0]
    terms = found.cells[0]["views"]["a"]["terms"]
    assert set(terms) == {"X -> ZX", "Y -> ZY", "ZX -> X", "ZY -> Y", "ZX -- ZY"}
    assert found.markdown() == (tmp_path / "run" / "results.md").read_text()
    assert len(found.rows()) == 10
    assert found.exponents() == []


def test_an_interrupted_experiment_goes_on(npz, tmp_path, monkeypatch) -> None:
    arguments = {**TINY, "values": (1.0, 8.0), "methods": ("dvsib-no-reconstruction", "dvib")}
    whole = experiment(npz, "beta", tmp_path / "whole", **arguments)
    original, calls = experiments._cell, []

    def interrupted(*given: object, **named: object) -> object:
        calls.append(given[0])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*given, **named)

    monkeypatch.setattr(experiments, "_cell", interrupted)
    with pytest.raises(KeyboardInterrupt):
        experiment(npz, "beta", tmp_path / "run", **arguments)
    assert len((tmp_path / "run" / "cells.jsonl").read_text().splitlines()) == 2
    calls.extend(["no more interruptions"])
    resumed = experiment(npz, "beta", tmp_path / "run", **arguments)
    assert len(calls) == 4 + 2

    def without_seconds(found: Experiment) -> list[dict[str, object]]:
        return [{key: value for key, value in cell.items() if key != "seconds"} for cell in found.cells]

    assert without_seconds(resumed) == without_seconds(whole)
    assert (tmp_path / "run" / "results.csv").read_text() == (tmp_path / "whole" / "results.csv").read_text()
    # All is there: nothing is trained.
    experiment(npz, "beta", tmp_path / "run", **arguments)
    assert len(calls) == 4 + 2


def test_folders_of_something_else(npz, tmp_path) -> None:
    arguments = {**TINY, "values": (2,), "methods": ("beta-vae",)}
    experiment(npz, "latent", tmp_path / "run", **arguments)
    with pytest.raises(RunError, match=r"was begun with other values"):
        experiment(npz, "latent", tmp_path / "run", **{**arguments, "values": (3,)})
    with pytest.raises(RunError, match=r"with other training"):
        experiment(npz, "latent", tmp_path / "run", **{**arguments, "steps": 11})
    cells = tmp_path / "run" / "cells.jsonl"
    whole = cells.read_text()
    for damaged in (
        "{",
        "3",
        "\xff\n",
        '{"method": "pixels"}',
        whole.replace("beta-vae", "dvsib"),
        whole[: len(whole) // 2],
    ):
        cells.write_bytes(damaged.encode("latin-1"))
        with pytest.raises(RunError, match=r"cells.jsonl is damaged in line 1"):
            experiment(npz, "latent", tmp_path / "run", **arguments)
    cells.write_text(whole)
    experiment(npz, "latent", tmp_path / "run", **arguments)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(RunError, match="is not empty"):
        experiment(npz, "latent", tmp_path / "other", **arguments)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sweep": "width"}, "sweep 'width' is not known; expected one of 'latent', 'beta', 'samples'"),
        ({"methods": ("dvsip",)}, "method 'dvsip' is not known; did you mean 'dvsib'?"),
        ({"methods": ("dvsib", "dvsib")}, "methods must be given, each once"),
        ({"methods": ()}, "methods must be given, each once; got none"),
        ({"encoder": "cnn"}, "encoder 'cnn' is not known"),
        ({"encoder": "conv2d"}, r"conv2d encodes one image \[C, H, W\], got \[\[4\]\]"),
        ({"critic": "dense"}, "critic 'dense' is not known"),
        ({"estimator": "mini"}, "estimator 'mini' is not known; did you mean 'mine'?"),
        ({"values": (2.5,)}, "values of latent must each be an integer of at least 1, got 2.5"),
        ({"values": (0,)}, "values of latent must each be an integer of at least 1, got 0"),
        ({"values": ()}, "values of latent must be given, each once; got none"),
        ({"values": (2, 2)}, "each once; got 2, 2"),
        ({"sweep": "beta", "values": (-1.0,)}, "values of beta must each be a positive number, got -1.0"),
        ({"sweep": "beta", "values": (float("nan"),)}, "got nan"),
        ({"sweep": "samples", "values": (97,)}, "samples of 97 are more than the 96 training samples of npz"),
        ({"sweep": "samples", "values": (4,)}, "an integer of at least 20, got 4"),
        ({"beta": {"dvibs": 1.0}}, "beta of 'dvibs' is not known"),
        ({"beta": -1}, "beta must be a finite number of at least 0, got -1"),
        ({"seeds": 0}, "seeds must be an integer of at least 1, got 0"),
        ({"steps": 1.5}, "steps must be an integer of at least 1, got 1.5"),
        ({"batch_size": 1}, "batch_size must be an integer of at least 2, got 1"),
        ({"learning_rate": 0.0}, "learning_rate must be a finite positive number, got 0.0"),
    ],
)
def test_arguments_that_do_not_fit(npz, tmp_path, changed, message) -> None:
    arguments = {**TINY, "data": npz, "sweep": "latent", "methods": ("dvsib",), **changed}
    with pytest.raises(RunError, match=message):
        experiment(output=tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_data_that_do_not_fit(npz, tmp_path) -> None:
    with np.load(npz.partition(":")[2]) as archive:
        arrays = dict(archive)
    for changed, message in (
        ({"c": arrays["a"]}, "takes data of two modalities"),
        ({"a": 2 * arrays["a"]}, "modality 'a' lies between 0 and 2; an experiment takes values between 0 and 1"),
        ({"a": np.where(arrays["a"] == 0, np.nan, arrays["a"])}, "lies between nan and nan"),
        ({"labels": arrays["labels"] + 0.5}, "takes data with classes as labels"),
        ({"a.presence": arrays["labels"] > 0}, "takes data of two modalities that no sample lacks"),
    ):
        path = tmp_path / "changed.npz"
        np.savez(path, **{**arrays, **changed})
        with pytest.raises(RunError, match=message):
            experiment(f"npz:{path}", "latent", tmp_path / "run", **TINY)
    with pytest.raises(DataError, match="unknown data set"):
        experiment("noisy-numbers", "latent", tmp_path / "run", **TINY)


def test_few_samples_are_parts_of_more(npz, tmp_path, monkeypatch) -> None:
    seen = []
    original = experiments._scored

    def watched(views: list[torch.Tensor], labels: list[np.ndarray]) -> dict[str, object]:
        seen.append(views[0])
        return original(views, labels)

    monkeypatch.setattr(experiments, "_scored", watched)
    found = experiment(npz, "samples", tmp_path / "run", values=(24, 96), methods=("pixels",), **TINY)
    few, _, many, _ = seen
    assert few.shape == (24, 4)
    assert torch.equal(many[:24], few)
    assert [row["method"] for row in found.exponents()] == ["pixels", "pixels"]


def of_power_laws(accuracy: float, error: float, n: tuple[int, ...] = (100, 200, 400)) -> list[dict[str, object]]:
    def view(value: float) -> dict[str, object]:
        return {"accuracy": value, "tested": 10**9}

    return [
        {
            "method": "dvsib",
            "value": each,
            "seed": seed,
            "views": {"x": view(0.02 * (1 + seed) * each**accuracy), "y": view(1 - 0.9 * each**-error)},
        }
        for seed in range(2)
        for each in n
    ]


def test_exponents_of_known_power_laws() -> None:
    x, y = Experiment("samples", of_power_laws(0.345, 0.196), "").exponents()
    assert x["accuracy"] == pytest.approx(0.345)
    assert x["accuracy_sd"] == pytest.approx(0, abs=1e-12)
    assert y["error"] == pytest.approx(0.196)


def test_differences_are_of_one_seed() -> None:
    cells = [
        {"method": method, "value": value, "seed": seed, "views": {"x": {"accuracy": accuracy}}}
        for seed, accuracies in ((1, (0.9, 0.7, 0.2)), (0, (0.5, 0.4, 0.1)))
        for method, value, accuracy in zip(("a", "b", "pixels"), (2, 2, None), accuracies, strict=True)
    ]
    found = Experiment("latent", cells, "")
    assert found.accuracies() == {"x": {"a": {2: [0.5, 0.9]}, "b": {2: [0.4, 0.7]}, "pixels": {None: [0.1, 0.2]}}}
    b, pixels = found.differences()
    assert (b["first"], b["other"], b["won"], b["seeds"]) == ("a", "b", 2, 2)
    assert b["each"] == pytest.approx([0.1, 0.2])
    assert b["mean"] == pytest.approx(0.15)
    assert b["sd"] == pytest.approx(np.std([0.1, 0.2], ddof=1))
    assert pixels["mean"] == pytest.approx(0.55)


def test_what_diverges_is_said_and_leaves_the_rest(npz, tmp_path, monkeypatch, capsys) -> None:
    original, written = experiments.fit_bottleneck, []

    def diverging(bottleneck, *arguments, seed, **options):
        if seed == 1:
            written.append((tmp_path / "run" / "results.md").exists())
            raise DivergedError("the loss became nan")
        return original(bottleneck, *arguments, seed=seed, **options)

    monkeypatch.setattr(experiments, "fit_bottleneck", diverging)
    settings = {**TINY, "seeds": 2, "values": (2,), "methods": ("beta-vae", "pixels")}
    found = experiment(npz, "latent", tmp_path / "run", **settings)
    # The results of a seed are there before the next one's.
    assert written == [True]
    assert [cell["views"] is None for cell in found.cells if cell["method"] == "beta-vae"] == [False, True]
    row = found.rows()[0]
    assert (row["seeds"], row["diverged"]) == (1, 1)
    assert found.differences()[0]["seeds"] == 1
    assert "(1 diverged)" in (tmp_path / "run" / "results.md").read_text()
    assert "NaN" not in (tmp_path / "run" / "results.json").read_text()
    # It is not tried again.
    assert experiment(npz, "latent", tmp_path / "run", **settings).markdown() == found.markdown()
    assert len(written) == 1
    monkeypatch.setattr(experiments, "fit_bottleneck", lambda *_, **__: diverging(None, seed=1))
    with pytest.raises(DivergedError, match="training diverged in all of 1 cells"):
        experiment(npz, "latent", tmp_path / "none", **{**TINY, "values": (2,), "methods": ("beta-vae",)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sweep", "latent", "--beta", "1,2"], "--beta must be one NUMBER"),
        (["--sweep", "latent", "--beta", "dvsib=1,2"], "--beta must be one NUMBER"),
        (["--sweep", "latent", "--beta", "dvsib=1", "--beta", "dvsib=2"], "--beta names dvsib twice"),
        (["--sweep", "beta", "--beta", "3"], "--beta is what varies"),
        (["--sweep", "latent", "--latent", "3"], "--latent is what varies"),
        (["--sweep", "beta", "--values", "0"], "values of beta must each be a positive number, got 0"),
        (["--sweep", "latent", "--methods", "pixels"], "pixels do not depend on latent"),
    ],
)
def test_options_that_contradict(npz, tmp_path, capsys, options, message) -> None:
    assert command(["experiment", npz, "--output", str(tmp_path / "run"), *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_the_svm_does_not_choose_by_test_samples() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, (3, 40))
    features = generator.standard_normal((3, 40, 5)) + 2 * np.eye(5)[labels]
    train, validation, test = zip(features, labels, strict=True)
    found = linear_svm(train, validation, test)
    other = linear_svm(train, validation, (test[0], (test[1] + 1) % 3))
    assert (other.C, other.validation_accuracy) == (found.C, found.validation_accuracy)
    assert other.test_accuracy < 0.5 < found.test_accuracy


def test_the_command(npz, tmp_path, capsys) -> None:
    arguments = ["experiment", npz, "--sweep", "latent", "--values", "2", "--seeds", "1", "--steps", "10"]
    arguments += ["--methods", "dvsib,beta-vae", "--hidden-features", "8", "--output", str(tmp_path / "run")]
    assert command([*arguments, "--beta", "dvsib=8", "--beta", "beta-vae=2"]) == 0
    assert "dvsib - beta-vae" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["beta"] == {"dvsib": 8.0, "beta-vae": 2.0}
    assert command([*arguments, "--beta", "16"]) == 2
    assert "was begun with other beta" in capsys.readouterr().err
    assert command([*arguments, "--beta", "16", "--beta", "dvsib=2"]) == 2
    assert "--beta must be one NUMBER, or METHOD=NUMBER for each method" in capsys.readouterr().err


def test_alignment_of_noisy_digits() -> None:
    """The same data serve alignment without a special case."""
    run = train.fit("clip", "noisy-digits", epochs=1, features=8, encoders={"x": "conv2d"}, progress=False)
    assert {name: z.shape for name, z in run.embed("test").items()} == {"x": (359, 8), "y": (359, 8)}
