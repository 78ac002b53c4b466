"""Digits, encoders, training, and the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning")
from mibfast import data, nn
from mibfast.cli.commands import run
from mibfast.train import evaluation
from mibfast.train.methods import METHODS, method
from mibfast.train.run import RunConfig, train_and_evaluate


def test_digits() -> None:
    digits = data.load("digits", seed=3)
    assert {name: view.shape[1] for name, view in digits.views.items()} == {
        "pixels": 64,
        "frequencies": 40,
        "profiles": 32,
    }
    every = torch.cat(list(digits.splits.values()))
    assert sorted(every.tolist()) == list(range(1797))
    for view in digits.views.values():
        train = view[digits.splits["train"]]
        assert view.dtype == torch.float32
        assert train.mean(0).abs().max() < 1e-5
        # Some pixels are black in every image.
        assert all(abs(s - 1) < 1e-3 or s == 0 for s in train.std(0, correction=0).tolist())
        assert view[digits.splits["test"]].mean(0).abs().max() > 1e-3
    for part in digits.splits.values():
        shares = torch.bincount(digits.labels[part]) / len(part)
        assert (shares - 0.1).abs().max() < 0.01
    again = data.load("digits", seed=3)
    assert all(torch.equal(digits.splits[s], again.splits[s]) for s in digits.splits)
    assert not torch.equal(digits.splits["test"], data.load("digits", seed=4).splits["test"])


def test_views_are_what_they_are_called() -> None:
    from sklearn.datasets import load_digits

    from mibfast.data.digits import _frequencies, _profiles

    images = torch.from_numpy(load_digits().images[:5]).float()
    shifted = images.roll((1, 2), (1, 2))
    torch.testing.assert_close(_frequencies(images), _frequencies(shifted), rtol=1e-3, atol=1e-3)
    profiles = _profiles(images)
    assert torch.equal(profiles[:, :8], images.sum(2))
    assert torch.equal(profiles[:, 8:16], images.sum(1))
    assert profiles[0, 16] == images[0, :2, :2].sum()
    assert profiles[0, 17] == images[0, :2, 2:4].sum()


def test_unknown_names_are_refused_with_the_valid_ones() -> None:
    with pytest.raises(ValueError, match="unknown data set 'mnist'; expected one of 'digits'"):
        data.load("mnist")
    with pytest.raises(ValueError, match="unknown method 'gram'; expected one of 'ova_ib', 'pairwise_clip'"):
        method("gram")
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        data.load("digits").split("dev")


def test_encoders() -> None:
    assert nn.MLPEncoder(10, 6, 7, 1)(torch.zeros(2, 10)).shape == (2, 6)
    assert len([x for x in nn.ProjectionHead(8, 4).modules() if isinstance(x, torch.nn.Linear)]) == 3
    with pytest.raises(ValueError, match="MLPEncoder: depth must be at least 1, got 0"):
        nn.MLPEncoder(10, depth=0)


def test_a_run_leaves_a_whole_folder_and_repeats(tmp_path) -> None:
    config = RunConfig(epochs=2, seed=1)
    metrics = train_and_evaluate(config, tmp_path / "run", progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "config.json",
        "embeddings.png",
        "learning_curves.png",
        "metrics.json",
        "ova_ib.safetensors",
        "pairwise_clip.safetensors",
    ]
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == metrics
    assert json.loads((tmp_path / "run" / "config.json").read_text())["epochs"] == 2
    for found in metrics.values():
        assert set(found["linear_probe"]) == {"pixels", "frequencies", "profiles", "all"}
        assert found["linear_probe"]["all"] > 0.8
        assert all(0 <= x <= 1 for x in (*found["linear_probe"].values(), *found["retrieval"].values()))
        # Chance is 1 in 360.
        assert found["retrieval"]["R@1"] > 0.02
        assert found["retrieval"]["R@1"] <= found["retrieval"]["MRR"] <= 1
        assert [len(c) for c in found["curves"].values()] == [2, 2]
    for picture in ("embeddings.png", "learning_curves.png"):
        import matplotlib.image

        assert matplotlib.image.imread(tmp_path / "run" / picture).std() > 0.01
    again = train_and_evaluate(RunConfig(("ova_ib",), epochs=2, seed=1), tmp_path / "again", progress=False)
    for part in ("linear_probe", "retrieval", "curves"):
        assert again["ova_ib"][part] == metrics["ova_ib"][part]


def test_weights_are_those_of_the_metrics(tmp_path) -> None:
    from safetensors.torch import load_file

    from mibfast.train.alignment import AlignmentModule

    metrics = train_and_evaluate(RunConfig(("ova_ib",), epochs=1), tmp_path / "run", progress=False)
    digits = data.load("digits")
    module = AlignmentModule({k: v.shape[1] for k, v in digits.views.items()}, METHODS["ova_ib"].loss(None))
    module.load_state_dict(load_file(tmp_path / "run" / "ova_ib.safetensors"))
    assert evaluation.retrieval(module, digits, METHODS["ova_ib"]) == metrics["ova_ib"]["retrieval"]


def test_a_failing_run_leaves_nothing(tmp_path, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("disk full")

    monkeypatch.setattr("mibfast.train.pictures.draw_embeddings", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        train_and_evaluate(RunConfig(("ova_ib",), epochs=1), tmp_path / "run", progress=False)
    assert not list(tmp_path.iterdir())


def test_retrieval_metrics_of_known_ranks() -> None:
    class Identity:
        def __call__(self, views):
            return views

    n = 10
    eye = torch.eye(n)
    views = {"a": eye, "b": eye, "c": eye.roll(1, 0)}
    digits = data.MultimodalData("known", views, torch.zeros(n), {"test": torch.arange(n)})
    found = evaluation.retrieval(Identity(), digits, METHODS["pairwise_clip"])
    # `c` is never found by the others; `a` and `b` tie with the wrong candidate that `c` points to.
    assert found["R@5"] >= found["R@1"]
    views["c"] = eye
    digits = data.MultimodalData("known", views, torch.zeros(n), {"test": torch.arange(n)})
    for name in METHODS:
        assert evaluation.retrieval(Identity(), digits, METHODS[name]) == {"R@1": 1.0, "R@5": 1.0, "MRR": 1.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--epochs", "0"], "greater than or equal to 1"),
        (["demo", "--epochs", "many"], "valid integer"),
        (["demo", "--seed", "-1"], "greater than or equal to 0"),
        (["demo", "--output", "."], "exists; choose another folder"),
        (["demo", "--colour"], "No such option: --colour"),
        (["train"], "No such command 'train'"),
    ],
)
def test_bad_input_is_one_line_on_stderr_and_status_2(arguments, message, capsys) -> None:
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("mibfast: error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert captured.out == ""


def test_a_folder_that_cannot_be_written_is_bad_input(tmp_path, capsys) -> None:
    (tmp_path / "file").touch()
    assert run(["demo", "--epochs", "1", "--output", str(tmp_path / "file" / "run")]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_info_and_version(capsys) -> None:
    assert run(["info"]) == 0
    assert "torch" in capsys.readouterr().out
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("mibfast 0.1.0")


def test_verify_passes_and_notices_what_is_wrong(capsys, monkeypatch) -> None:
    assert run(["verify"]) == 0
    assert "all checks passed" in capsys.readouterr().out
    wrong = method("ova_ib").loss(None).forward
    monkeypatch.setattr("mibfast.losses.OVAIBLoss.forward", lambda self, z: wrong(z) * (1.0 if self.backend else 1.001))
    assert run(["verify"]) == 1
    out = capsys.readouterr().out
    assert out.count("FAILED") == 2
    assert "2 checks failed" in out


def test_bench_refuses_unknown_rows() -> None:
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "benches.gate", "--rows", "all"], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("mibfast: error: unknown rows all; expected some of ")


def test_missing_extras_are_named() -> None:
    program = "import sys; sys.modules['typer'] = None; from mibfast.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "mibfast: error: typer is missing; pip install 'mibfast[train]'\n"
