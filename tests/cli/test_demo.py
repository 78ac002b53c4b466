"""Digits, encoders, training, and the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning")
from mibfast import nn
from mibfast.cli.commands import run
from mibfast.train import RunError
from mibfast.train.experiments import demonstration
from mibfast.train.experiments.demonstration import demonstrate
from mibfast.train.methods import method
from mibfast.train.progress import Report


def test_encoders() -> None:
    assert nn.MLPEncoder(10, 6, 7, 1)(torch.zeros(2, 10)).shape == (2, 6)
    assert len([x for x in nn.ProjectionHead(8, 4).modules() if isinstance(x, torch.nn.Linear)]) == 3
    with pytest.raises(ValueError, match="MLPEncoder: depth must be at least 1, got 0"):
        nn.MLPEncoder(10, depth=0)


def test_dropout_of_an_mlp_leaves_out_hidden_units_in_training_alone() -> None:
    encoder = nn.MLPEncoder(10, 6, 400, depth=3, dropout=0.75)
    found = {}
    for position, layer in enumerate(encoder.layers):
        if isinstance(layer, torch.nn.Linear) and position:
            layer.register_forward_pre_hook(lambda module, given, at=position: found.update({at: given[0]}))
    x = torch.randn(50, 10)
    for training in (True, False):
        encoder.train(training)(x)
        assert len(found) == 2
        for hidden in found.values():
            # Half of the units are negative before ReLU.
            assert abs((hidden == 0).float().mean() - (0.875 if training else 0.5)) < 0.1
    assert torch.equal(encoder(x), encoder(x))
    assert not any(isinstance(layer, torch.nn.Dropout) for layer in nn.MLPEncoder(10).layers)
    with pytest.raises(ValueError, match="MLPEncoder: dropout must be below 1, where no unit would be left, got 1"):
        nn.MLPEncoder(10, dropout=1)


def test_sequence_encoders() -> None:
    x = torch.randn(3, 9, 4)
    for encoder in (nn.Conv1dEncoder(4, 6, 5), nn.LSTMEncoder(4, 6, 5)):
        assert encoder(x).shape == (3, 6)
        assert encoder(x[:, :1]).shape == (3, 6)
        # Order in time matters, and samples do not see each other.
        assert not torch.allclose(encoder(x), encoder(x.flip(1)))
        torch.testing.assert_close(encoder(x)[:1], encoder(x[:1]))
    with pytest.raises(ValueError, match="Conv1dEncoder: kernel_size must be odd, got 4"):
        nn.Conv1dEncoder(4, kernel_size=4)
    with pytest.raises(TypeError, match="LSTMEncoder: depth must be an int"):
        nn.LSTMEncoder(4, depth=1.0)


def test_standardisation_keeps_the_digits_of_large_features() -> None:
    x = torch.tensor([[1e9 + 1, 5.0], [1e9 + 3, 5.0]], dtype=torch.float64)
    found = nn.Standardisation(x.mean(0), x.std(0, correction=0))(x)
    assert found.dtype == torch.float32
    assert found.tolist() == [[-1.0, 0.0], [1.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.float16, torch.bfloat16], ids=str)
def test_standardisation_of_integers_and_short_floats_is_that_of_float64(dtype) -> None:
    """Means and scales in the input's own dtype would be whole numbers, or infinite beyond 65,504."""
    x = torch.tensor([[64.0, 3.0], [72.0, 4.0], [96.0, 3.0]], dtype=torch.float64)
    mean, deviation = torch.tensor([70.3, 1e6], dtype=torch.float64), torch.tensor([16.5, 1e6], dtype=torch.float64)
    found = nn.Standardisation(mean, deviation)(x.to(dtype))
    torch.testing.assert_close(found, ((x - mean) / deviation).float())


def test_the_demonstration_leaves_a_whole_folder_and_repeats(tmp_path, monkeypatch) -> None:
    # t-SNE of 330 samples takes longer than all else here.
    monkeypatch.setattr(demonstration, "_PICTURED_SAMPLES", 20)
    metrics = demonstrate(tmp_path / "demo", epochs=2, seed=1, report=Report(False))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["demo"]
    assert sorted(p.name for p in (tmp_path / "demo").iterdir()) == [
        "clip",
        "embeddings.png",
        "learning_curves.png",
        "metrics.json",
        "ova-ib",
    ]
    assert json.loads((tmp_path / "demo" / "metrics.json").read_text()) == metrics
    for found in metrics.values():
        assert set(found["linear_probe"]) == {"pixels", "frequencies", "profiles", "all"}
        assert found["linear_probe"]["all"] > 0.8
        assert all(0 <= x <= 1 for x in (*found["linear_probe"].values(), *found["retrieval"].values()))
        # Chance is 1 in 360.
        assert found["retrieval"]["R@1"] > 0.005
        assert found["retrieval"]["R@1"] <= found["retrieval"]["MRR"] <= 1
    for picture in ("embeddings.png", "learning_curves.png"):
        import matplotlib.image

        assert matplotlib.image.imread(tmp_path / "demo" / picture).std() > 0.01
    again = demonstrate(tmp_path / "again", epochs=2, seed=1, methods=["ova-ib"], report=Report(False))
    for part in ("linear_probe", "retrieval"):
        assert again["ova-ib"][part] == metrics["ova-ib"][part]
    with pytest.raises(RunError, match="exists and is not empty"):
        demonstrate(tmp_path / "demo", report=Report(False))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--epochs", "0"], "greater than or equal to 1"),
        (["demo", "--epochs", "many"], "valid integer"),
        (["demo", "--seed", "-1"], "greater than or equal to 0"),
        (["demo", "--output", "."], "exists and is not empty; choose another folder"),
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
    wrong = method("ova-ib").loss(3, 8).forward
    monkeypatch.setattr("mibfast.losses.OVAIBLoss.forward", lambda self, z: wrong(z) * (1.0 if self.backend else 1.001))
    assert run(["verify"]) == 1
    out = capsys.readouterr().out
    assert out.count("FAILED") == 2
    assert "2 checks failed" in out


def test_bench_refuses_unknown_rows() -> None:
    root = Path(__file__).parents[2]
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
