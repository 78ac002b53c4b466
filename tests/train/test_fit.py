"""Runs: trained, interrupted, resumed, damaged, and refused."""

import csv
import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lightning")
from mibfast import data, train
from mibfast.cli.commands import run as command
from mibfast.train.fitting.config import RunConfig
from mibfast.train.fitting.recording import _WARM_UP_EPOCHS, EpochsOfData, Recording
from mibfast.train.folder import RunFolder

# 60 samples of training make 7 batches.
SMALL = {"epochs": 4, "batch_size": 8, "features": 16, "progress": False}
COMMAND = [sys.executable, "-c", "import sys; from mibfast.cli import main; main()"]


@pytest.fixture
def npz(tmp_path) -> str:
    generator = np.random.default_rng(0)
    labels = np.arange(100) % 4
    centres = generator.standard_normal((4, 6)) * 2
    views = {
        "a": centres[labels] + generator.standard_normal((100, 6)),
        "b": (centres[labels] ** 2 + generator.standard_normal((100, 6))).astype(np.float32),
        "c": np.stack([centres[labels] + 0.5 * generator.standard_normal((100, 6)) for _ in range(5)], 1),
    }
    np.savez(tmp_path / "small.npz", **views, labels=labels)
    return f"npz:{tmp_path / 'small.npz'}"


def weights(path: Path) -> bytes:
    return (path / "weights.safetensors").read_bytes()


class StoppedError(Exception):
    pass


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Raise in the middle of training, after the state was written where it was due."""
    original = Recording.on_train_batch_end

    def stopping(self: Recording, *arguments: object) -> None:
        original(self, *arguments)
        if self.step == step:
            raise StoppedError

    monkeypatch.setattr(Recording, "on_train_batch_end", stopping)


def test_a_run_leaves_all_that_it_promises(npz, tmp_path) -> None:
    run = train.fit("ova-ib", npz, output=tmp_path / "run", **SMALL)
    # TensorBoard's, where it is installed, has a test of its own; the lock stays.
    names = {p.name for p in tmp_path.joinpath("run").iterdir()} - {"tensorboard", ".lock"}
    assert sorted(names) == [
        "config.json",
        "embeddings.png",
        "learning_curves.png",
        "metrics.csv",
        "metrics.json",
        "weights.safetensors",
    ]
    with open(tmp_path / "run" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]
    assert [int(row["step"]) for row in rows] == [7, 14, 21, 28]
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert found["epochs"] == list(run.epochs)
    losses = [row["validation_loss"] for row in found["epochs"]]
    assert found["best_epoch"] == 1 + losses.index(min(losses))
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    again = RunConfig(**config["settings"])
    assert again == run.config
    assert config["data"]["shapes"] == {"a": [6], "b": [6], "c": [5, 6]}
    opened = train.open_run(tmp_path / "run")
    for name, z in run.embed("test").items():
        assert torch.equal(z, opened.embed("test")[name])
        assert z.shape == (20, 16)


def test_the_same_settings_give_the_same_weights_and_others_do_not(npz, tmp_path) -> None:
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train.fit("clip", npz, output=tmp_path / name, seed=seed, **SMALL)
        torch.rand(3)
        np.random.rand(3)
    assert weights(tmp_path / "a") == weights(tmp_path / "b") != weights(tmp_path / "c")
    torch.set_rng_state(state[0])
    before = torch.get_rng_state()
    train.fit("clip", npz, **SMALL)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_folder_changes_nothing_but_that_it_is_there(npz, tmp_path) -> None:
    inside = train.fit("ova-ib", npz, output=tmp_path / "run", **SMALL)
    outside = train.fit("ova-ib", npz, **SMALL)
    for name, x in inside.module.state_dict().items():
        assert torch.equal(x, outside.module.state_dict()[name])


@pytest.mark.parametrize("step", [3, 7, 8, 20, 28])
@pytest.mark.parametrize("minutes", [1e-9, 10.0])
def test_an_interrupted_run_ends_with_the_same_weights(npz, tmp_path, monkeypatch, step, minutes) -> None:
    """Whatever was random: weights, the order of samples, dropout, Python's and numpy's numbers."""
    settings = {**SMALL, "encoders": {"a": "dropout_encoder:Encoder"}, "checkpoint_minutes": minutes}
    train.fit("clip-ib", npz, output=tmp_path / "whole", loss={"learnable_temperature": True}, **settings)
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        with pytest.raises(StoppedError):
            train.fit("clip-ib", npz, output=tmp_path / "run", loss={"learnable_temperature": True}, **settings)
    assert not (tmp_path / "run" / "weights.safetensors").exists()
    state = RunFolder(tmp_path / "run").read_state()
    # Just now, or at the end of the epoch before.
    assert (state or {"step": 0})["step"] == (step - (step % 7 == 0) if minutes < 1 else (step - 1) // 7 * 7)
    with pytest.raises(train.RunError, match="holds a run already; choose another folder, or --resume"):
        train.fit("clip-ib", npz, output=tmp_path / "run", loss={"learnable_temperature": True}, **settings)
    run = train.fit(
        "clip-ib", npz, output=tmp_path / "run", resume=True, loss={"learnable_temperature": True}, **settings
    )
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert not (tmp_path / "run" / "resume.pt").exists()
    whole = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    for mine, its in zip(run.epochs, whole["epochs"], strict=True):
        assert mine["train_loss"] == its["train_loss"]
        assert mine["validation_loss"] == its["validation_loss"]


def test_a_run_that_was_killed_while_it_closed_can_be_closed(npz, tmp_path, monkeypatch) -> None:
    train.fit("ova-ib", npz, output=tmp_path / "whole", **SMALL)
    for place in ("draw_learning_curves", "draw_embeddings"):
        with monkeypatch.context() as patch:
            patch.setattr(f"mibfast.train.fitting.training.{place}", lambda *_: (_ for _ in ()).throw(StoppedError()))
            with pytest.raises(StoppedError):
                train.fit("ova-ib", npz, output=tmp_path / place, **SMALL)
        (tmp_path / place / ".weights.safetensors.partial").write_bytes(b"half")
        train.fit("ova-ib", npz, output=tmp_path / place, resume=True, **SMALL)
        assert weights(tmp_path / place) == weights(tmp_path / "whole")
        assert [p.name for p in (tmp_path / place).glob(".*")] == [".lock"]
    # Once more, and it is left as it is.
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "whole").iterdir()}
    again = train.fit("ova-ib", npz, output=tmp_path / "whole", resume=True, **SMALL)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "whole").iterdir()} == before
    assert len(again.epochs) == 4


def test_training_stops_once_the_validation_loss_falls_no_more(npz) -> None:
    run = train.fit("ova-ib", npz, **{**SMALL, "epochs": 200, "patience": 3})
    assert len(run.epochs) < 200
    assert run.best_epoch == len(run.epochs) - 3
    best = min(row["validation_loss"] for row in run.epochs)
    assert run.epochs[run.best_epoch - 1]["validation_loss"] == best
    # The weights are those of that epoch.
    module = run.module
    views = run.data.take(run.data.indices("validation"))
    order = EpochsOfData(run.data, run.config, Recording(run.config))._validation
    views = run.data.take(order)
    with torch.no_grad():
        losses = [float(module.loss(module({k: v[i : i + 8] for k, v in views.items()}))) for i in (0, 8)]
    assert np.mean(losses) == pytest.approx(best, rel=1e-5)


def test_a_loss_that_is_no_number_ends_the_run_and_loses_nothing(npz, tmp_path) -> None:
    with pytest.raises(train.RunError, match=r"the loss became (nan|inf) at step \d+, in epoch \d"):
        train.fit("ova-ib", npz, output=tmp_path / "run", **{**SMALL, "learning_rate": 1e30})
    assert (tmp_path / "run" / "config.json").exists()


def start(tmp_path: Path, npz: str, *options: str) -> subprocess.Popen[str]:
    arguments = [*COMMAND, "fit", "ova-ib", "--data", npz, "--output", str(tmp_path / "run"), "--resume", *options]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, process: subprocess.Popen[str], changed_since: int = 0) -> None:
    for _ in range(60000):
        if process.poll() is not None or (path.exists() and path.stat().st_mtime_ns > changed_since):
            return
        time.sleep(0.01)


def test_kill_control_c_and_termination_at_any_moment(npz, tmp_path) -> None:
    options = ("--epochs", "40", "--batch-size", "8", "--features", "16", "--checkpoint-minutes", "1e-9")
    settings = {**SMALL, "epochs": 40, "checkpoint_minutes": 1e-9}
    train.fit("ova-ib", npz, output=tmp_path / "whole", **settings)
    generator = np.random.default_rng()
    state = tmp_path / "run" / "resume.pt"
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
        process = start(tmp_path, npz, *options)
        wait_for(state, process, state.stat().st_mtime_ns if state.exists() else 0)
        time.sleep(generator.uniform(0, 0.3))
        process.send_signal(number)
        _, error = process.communicate()
        if number != signal.SIGKILL and process.returncode != 0:
            assert process.returncode == 128 + number
            assert "the same command with --resume" in error
            assert "Traceback" not in error
    process = start(tmp_path, npz, *options)
    _, error = process.communicate()
    assert process.returncode == 0, error
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_a_full_disk_is_an_error_and_loses_nothing(npz, tmp_path) -> None:
    path = tmp_path / "run"
    train.fit("ova-ib", npz, output=path, **{**SMALL, "epochs": 1})
    whole = weights(path)
    folder = RunFolder(path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        for write in (
            lambda: folder.write_weights({"x": torch.zeros(9999)}),
            lambda: folder.write_state({"x": torch.zeros(9999)}),
            lambda: folder.write_json("config.json", ["x"] * 9999),
        ):
            with pytest.raises(train.RunError, match=r"cannot write .*: File too large; what was there is as it was"):
                write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert weights(path) == whole
    assert [p.name for p in path.glob(".*")] == [".lock"]
    train.open_run(path)


def test_a_full_disk_in_training_is_one_line_and_the_run_goes_on_later(npz, tmp_path) -> None:
    train.fit("ova-ib", npz, output=tmp_path / "whole", **SMALL)
    options = ["--epochs", "4", "--batch-size", "8", "--features", "16"]
    arguments = ["fit", "ova-ib", "--data", npz, "--output", str(tmp_path / "run"), "--resume", *options]
    # The config fits, the state to resume from does not.
    limit = f"import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); {COMMAND[2]}".replace(
        "main()", "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, -1)); main()"
    )
    done = subprocess.run([sys.executable, "-c", limit, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "cannot write" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert command(arguments) == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_a_folder_that_cannot_be_written(npz, tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(train.RunError, match=r"cannot write .*file/run/?: Not a directory"):
        train.fit("ova-ib", npz, output=tmp_path / "file" / "run", **SMALL)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(train.RunError, match="full exists and is not empty; choose another folder"):
        train.fit("ova-ib", npz, output=tmp_path / "full", **SMALL)
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    if os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(train.RunError, match="Permission denied"):
            train.fit("ova-ib", npz, output=tmp_path / "locked" / "run", **SMALL)


def test_a_folder_belongs_to_one_process_at_a_time(npz, tmp_path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    with folder.locked(), pytest.raises(train.RunError, match="is in use by another process"):
        train.fit("ova-ib", npz, output=tmp_path / "run", **SMALL)
    train.fit("ova-ib", npz, output=tmp_path / "run", **SMALL)


@pytest.mark.parametrize("name", train.ALIGNMENTS)
def test_every_method_trains_goes_on_and_opens_again(npz, tmp_path, monkeypatch, name) -> None:
    settings = {**SMALL, "epochs": 2, "modalities": ["a", "b"] if name == "barlow-twins" else None}
    train.fit(name, npz, output=tmp_path / "whole", **settings)
    with monkeypatch.context() as patch:
        stop_after(patch, 10)
        with pytest.raises(StoppedError):
            train.fit(name, npz, output=tmp_path / "run", **settings)
    before = torch.get_rng_state()
    run = train.fit(name, npz, output=tmp_path / "run", resume=True, **settings)
    assert torch.equal(torch.get_rng_state(), before)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert len(run.epochs) == 2
    opened = train.open_run(tmp_path / "run")
    state = opened.module.state_dict()
    assert all(torch.equal(x, state[key]) for key, x in run.module.state_dict().items())
    if name == "ova-ib-mlp":
        assert state["loss.projectors.2.0.weight"].shape == (16, 32)
    embeddings = opened.embed("test")
    views = list(embeddings.values())
    for context in (views[1:2], views[1:]):
        assert opened.method.retrieve(views[0], context, 20).shape == (20, 20)


def test_a_method_that_does_not_take_the_modalities_is_refused_first(npz, tmp_path) -> None:
    five = {name: torch.randn(50, 3) for name in "abcde"}
    for name, source, settings, message in (
        ("triangle", npz, {"modalities": ["a", "b"]}, "TRIANGLELoss: .* exactly 3 modalities, got 2"),
        ("triangle", data.from_arrays(five), {}, "TRIANGLELoss: .* exactly 3 modalities, got 5"),
        ("barlow-twins", npz, {}, "BarlowTwinsLoss: .* exactly 2 modalities, got 3"),
        ("symile", data.from_arrays(five), {"loss": {"negatives": "all"}}, "at most 4 modalities, got 5"),
        ("gram", npz, {"loss": {"anchor": 3}}, r"GRAMLoss: anchor must be in \[0, 2\], got 3"),
        ("gram", npz, {"loss": {"anchor": "d"}}, "anchor must be one of 'a', 'b', 'c', got str 'd'"),
        ("ova-ib-mlp", npz, {"loss": {"depth": 0}}, "LearnedProjectorOVAIBLoss: depth must be at least 1, got 0"),
        ("ova-ib-mlp", npz, {"loss": {"features": 9}}, "has no loss option 'features'"),
        ("barlow-twins", npz, {"modalities": ["a", "b"], "loss": {"group": "world"}}, "must be a torch.distributed"),
    ):
        with pytest.raises(train.RunError, match=message) as caught:
            train.fit(name, source, output=tmp_path / "run", **{**SMALL, **settings})
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists()
    run = train.fit("symile", data.from_arrays(five), loss={"negatives": "shuffled"}, **{**SMALL, "epochs": 1})
    assert len(run.epochs) == 1


def test_what_is_wrong_leaves_no_folder_behind(npz, tmp_path) -> None:
    views = dict(np.load(npz.removeprefix("npz:")))
    views["b"][50, 2] = np.nan
    np.savez(tmp_path / "nan.npz", **views)
    for name, settings, message in (
        (f"npz:{tmp_path / 'nan.npz'}", {}, r"modality 'b' holds NaN at \[50, 2\]"),
        (npz, {"batch_size": 61}, "a batch of 61 is larger than the training split, which has 60 samples"),
        (npz, {"encoders": {"a": "lstm"}}, r"modality 'a': lstm takes samples \[T, C\], got \[6\]"),
        (npz, {"encoders": {"d": "mlp"}}, "an encoder is chosen for modality 'd', which there is not"),
        (npz, {"encoders": {"a": "mpl"}}, "modality 'a': no encoder 'mpl'; did you mean 'mlp'"),
        (npz, {"encoders": {"a": "nowhere:Encoder"}}, "encoder 'nowhere:Encoder' cannot be imported: No module named"),
        (
            npz,
            {"encoders": {"a": "dropout_encoder:Decoder"}},
            "cannot be imported: module .* has no attribute 'Decoder'",
        ),
        (npz, {"encoders": {"a": "dropout_encoder:no_module"}}, "returned str, not an nn.Module"),
        (npz, {"dropout": 1.0}, "dropout must be below 1, got 1.0"),
        (npz, {"dropout": 0.5, "depth": 1}, "dropout = 0.5 is of the hidden layers of mlp encoders, and no encoder"),
        (
            npz,
            {"encoders": {"a": "dropout_encoder:wrong_shape"}},
            r"must return \[2, 16\] for 2 samples, got \[2, 17\]",
        ),
        (npz, {"encoders": {"c": "dropout_encoder:wrong_shape"}}, r"does not take \[2, 5, 6\]"),
        (npz, {"loss": {"temprature": 1}}, "OVA-IB has no loss option 'temprature'; did you mean 'temperature'"),
        (npz, {"loss": {"temperature": -1}}, "OVAIBLoss: temperature must be positive and finite, got -1"),
        (npz, {"loss": {"temperature": "hot"}}, "OVAIBLoss: temperature must be a positive number, got str 'hot'"),
        (npz, {"epoch": 3}, "fit: no setting 'epoch'; did you mean 'epochs'"),
        (npz, {"epochs": 0}, "epochs must be an integer of at least 1, got 0"),
        (npz, {"learning_rate": float("nan")}, "learning_rate must be a finite positive number, got nan"),
        (npz, {"batch_size": 1}, "batch_size must be an integer of at least 2, got 1"),
        (npz, {"modalities": "ab"}, "modalities must be a list, got 'ab'"),
        (npz, {"modalities": ["a"]}, "OVA-IB needs at least 2 modalities, got a"),
        (npz, {"encoders": {"a": 3}}, "encoders must map names to names, got 'a': 3"),
        (npz, {"encoders": {"a": "dropout_encoder:broken"}}, "raised ZeroDivisionError"),
        (npz, {"loss": {"backend": "cuda"}}, "a run's backend is not an option of its loss"),
        (npz, {"seed": 2**32}, "seed must be at most 4294967295, got 4294967296"),
        (npz, {"split": (float("nan"), 0.2, 0.2)}, "split must hold finite numbers"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            train.fit("ova-ib", name, output=tmp_path / "run", **{**SMALL, **settings})
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists()
    with pytest.raises(train.RunError, match="unknown method 'ova_ib'; did you mean 'ova-ib'"):
        train.fit("ova_ib", npz, **SMALL)


def test_a_run_of_another_config_or_other_data_is_not_gone_on_with(npz, tmp_path) -> None:
    train.fit("ova-ib", npz, output=tmp_path / "run", **SMALL)
    with pytest.raises(train.RunError, match="is a run of another config: it has seed 0 and not 1"):
        train.fit("ova-ib", npz, output=tmp_path / "run", resume=True, seed=1, **SMALL)
    with pytest.raises(train.RunError, match="it has method 'ova-ib' and not 'clip'"):
        train.fit("clip", npz, output=tmp_path / "run", resume=True, **SMALL)
    views = dict(np.load(npz.removeprefix("npz:")))
    views["a"][0] += 1
    np.savez(npz.removeprefix("npz:"), **views)
    with pytest.raises(train.RunError, match=r"does not hold the data that the run in .* began with"):
        train.fit("ova-ib", npz, output=tmp_path / "run", resume=True, **SMALL)


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_damaged_folder_is_refused(npz, tmp_path, monkeypatch) -> None:
    train.fit("ova-ib", npz, output=tmp_path / "whole", **{**SMALL, "epochs": 1})
    for part, hurt, message in (
        ("config.json", damage, "config.json is damaged"),
        ("config.json", Path.unlink, "is not a run's folder: it has no config.json"),
        ("config.json", lambda p: p.write_text("[]"), "config.json is damaged: it holds no settings"),
        ("config.json", lambda p: edit(p, format=99), "is of another version: format 99, and this mibfast reads 2"),
        ("config.json", lambda p: edit(p, settings={"methods": "clip"}), "no setting 'methods'; did you mean 'method'"),
        ("config.json", lambda p: edit(p, settings={"method": "clip"}), "config.json is damaged"),
        ("metrics.json", Path.unlink, "has not ended; `mibfast fit ... --resume` goes on with it"),
        ("metrics.json", damage, "metrics.json is damaged"),
        ("weights.safetensors", damage, "weights.safetensors is damaged"),
        ("weights.safetensors", Path.unlink, "has no weights.safetensors"),
    ):
        path = tmp_path / "hurt"
        shutil.copytree(tmp_path / "whole", path)
        hurt(path / part)
        with pytest.raises(train.RunError, match=message) as caught:
            train.open_run(path)
        assert "\n" not in str(caught.value)
        shutil.rmtree(path)
    with pytest.raises(train.RunError, match="nowhere is not a folder; expected that of a run"):
        train.open_run(tmp_path / "nowhere")
    with monkeypatch.context() as patch:
        stop_after(patch, 10)
        with pytest.raises(StoppedError):
            train.fit("ova-ib", npz, output=tmp_path / "run", **SMALL)
    whole = (tmp_path / "run" / "resume.pt").read_bytes()
    for content in (whole[:1000], whole[: len(whole) // 2], b"", b"text"):
        (tmp_path / "run" / "resume.pt").write_bytes(content)
        with pytest.raises(train.RunError, match=r"resume\.pt is damaged"):
            train.fit("ova-ib", npz, output=tmp_path / "run", resume=True, **SMALL)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_would_execute_code_is_not_loaded(npz, tmp_path, monkeypatch) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "executed"),)

    with monkeypatch.context() as patch:
        stop_after(patch, 10)
        with pytest.raises(StoppedError):
            train.fit("ova-ib", npz, output=tmp_path / "run", **SMALL)
    torch.save({"weights": Malicious()}, tmp_path / "run" / "resume.pt")
    with pytest.raises(train.RunError, match=r"resume\.pt is damaged"):
        train.fit("ova-ib", npz, output=tmp_path / "run", resume=True, **SMALL)
    assert not (tmp_path / "executed").exists()


def test_tensorboard_is_given_the_losses_of_every_epoch(npz, tmp_path, monkeypatch) -> None:
    from lightning.pytorch.loggers import Logger

    logged = []

    class Recorder(Logger):
        def __init__(self, place: Path, **_: object) -> None:
            super().__init__()
            assert place == tmp_path / "run"

        name = version = "tensorboard"

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            logged.append((step, metrics))

        def log_hyperparams(self, *_: object, **__: object) -> None: ...

    monkeypatch.setattr("lightning.pytorch.loggers.TensorBoardLogger", Recorder)
    monkeypatch.setattr("mibfast.train.fitting.training.importlib.util.find_spec", lambda name: name == "tensorboard")
    run = train.fit("ova-ib", npz, output=tmp_path / "run", **{**SMALL, "epochs": 2})
    assert [step for step, _ in logged] == [1, 2]
    for (_, metrics), row in zip(logged, run.epochs, strict=True):
        assert metrics["validation_loss"] == row["validation_loss"]


def test_tensorboard_reads_what_was_logged(npz, tmp_path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train.fit("ova-ib", npz, output=tmp_path / "run", **{**SMALL, "epochs": 2})
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    found = [event.value for event in events.Scalars("validation_loss")]
    assert found == pytest.approx([row["validation_loss"] for row in run.epochs])


def test_a_flipped_bit_is_noticed(npz, tmp_path, monkeypatch) -> None:
    train.fit("ova-ib", npz, output=tmp_path / "whole", **{**SMALL, "epochs": 1})
    with monkeypatch.context() as patch:
        stop_after(patch, 10)
        with pytest.raises(StoppedError):
            train.fit("ova-ib", npz, output=tmp_path / "run", **SMALL)
    for path in (tmp_path / "whole" / "weights.safetensors", tmp_path / "run" / "resume.pt"):
        whole = path.read_bytes()
        for share in (0.3, 0.5, 0.8):
            hurt = bytearray(whole)
            hurt[int(share * len(whole))] ^= 4
            path.write_bytes(hurt)
            opening = partial(train.open_run, path.parent)
            if path.name == "resume.pt":
                opening = partial(train.fit, "ova-ib", npz, output=path.parent, resume=True, **SMALL)
            with pytest.raises(train.RunError, match="is damaged"):
                opening()
        path.write_bytes(whole)
    train.open_run(tmp_path / "whole")


def test_a_run_is_not_opened_on_data_or_splits_that_it_was_not_trained_on(npz, tmp_path) -> None:
    split_otherwise = data.load(npz, seed=5)
    train.fit("clip", split_otherwise, output=tmp_path / "run", **{**SMALL, "epochs": 1})
    with pytest.raises(train.RunError, match="does not hold the data, or not in the splits, that the run in"):
        train.open_run(tmp_path / "run")
    assert len(train.open_run(tmp_path / "run", data=split_otherwise).embed("test")["a"]) == 20


def test_encoders_that_share_weights_and_labels_that_are_formulas(tmp_path) -> None:
    generator = np.random.default_rng(0)
    views = {name: generator.standard_normal((60, 4)) for name in "ab"}
    arrays = data.from_arrays(views, np.array(["$_$", "x^"] * 30))
    own = {"a": "dropout_encoder:tied"}
    run = train.fit("clip", arrays, output=tmp_path / "run", encoders=own, **{**SMALL, "epochs": 1, "features": 1})
    assert torch.equal(
        train.open_run(tmp_path / "run", data=arrays, encoders=own).embed("test")["a"], run.embed("test")["a"]
    )
    assert (tmp_path / "run" / "embeddings.png").exists()


def test_a_run_that_diverges_late_keeps_its_best_weights(npz, tmp_path, monkeypatch) -> None:
    original = train.AlignmentModule.training_step

    def diverging(self: train.AlignmentModule, batch: object, position: int) -> torch.Tensor:
        return original(self, batch, position) * (float("nan") if self.trainer.current_epoch == 2 else 1.0)

    monkeypatch.setattr(train.AlignmentModule, "training_step", diverging)
    with pytest.raises(train.RunError, match=r"nan at step 15, .*; the run has ended with the weights of epoch"):
        train.fit("ova-ib", npz, output=tmp_path / "run", **SMALL)
    assert len(train.open_run(tmp_path / "run").epochs) == 2


def test_encoders_of_ones_own_are_imported_only_where_they_are_named(npz, tmp_path) -> None:
    own = {"a": "dropout_encoder:Encoder"}
    train.fit("ova-ib", npz, output=tmp_path / "run", encoders=own, **SMALL)
    with pytest.raises(train.RunError, match="give it once more: --encoder a=dropout_encoder:Encoder"):
        train.open_run(tmp_path / "run")
    with pytest.raises(train.RunError, match="once more"):
        train.open_run(tmp_path / "run", encoders={"a": "dropout_encoder:other"})
    assert train.open_run(tmp_path / "run", encoders=own).embed("test")["a"].shape == (20, 16)


def test_arrays_at_hand_and_a_single_batch_of_validation(tmp_path) -> None:
    generator = torch.Generator().manual_seed(0)
    views = {
        "x": torch.randn(50, 4, generator=generator),
        "y": torch.randn(50, 3, 2, 2, generator=generator).bfloat16(),
    }
    arrays = data.from_arrays(views, seed=2)
    assert arrays.labels is None
    run = train.fit("clip", arrays, output=tmp_path / "run", **{**SMALL, "batch_size": 30})
    assert run.epochs[-1]["step"] == 4
    assert train.open_run(tmp_path / "run", data=arrays).embed("all")["y"].shape == (50, 16)


def test_the_command_line(npz, tmp_path, capsys) -> None:
    out = str(tmp_path / "run")
    options = ["--epochs", "3", "--batch-size", "8", "--features", "16", "--patience", "2", "--seed", "4"]
    options += ["--modalities", "c,a", "--split", "0.5,0.25,0.25", "--weight-decay", "0.1", "--encoder", "c=lstm"]
    options += ["--loss", "temperature=0.1", "--loss", "keys=pairwise"]
    assert command(["fit", "ova-ib", "--data", npz, "--output", out, *options]) == 0
    captured = capsys.readouterr()
    assert f"next: mibfast evaluate {out}" in captured.out
    config = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert config["loss"] == {"temperature": 0.1, "keys": "pairwise"}
    assert config["modalities"] == ["c", "a"]
    assert config["split"] == [0.5, 0.25, 0.25]
    assert config["encoders"] == {"c": "lstm"}
    # A run's config repeats it.
    assert command(["fit", "ova-ib", "--config", f"{out}/config.json", "--output", str(tmp_path / "again")]) == 0
    assert weights(tmp_path / "again") == weights(tmp_path / "run")
    # The folder knows its settings.
    assert command(["fit", "ova-ib", "--output", out, "--resume"]) == 0
    assert command(["fit", "ova-ib", "--output", out, "--resume", "--epochs", "4"]) == 2
    assert "it has epochs 3 and not 4" in capsys.readouterr().err


def test_help_states_methods_and_defaults(capsys) -> None:
    assert command(["fit", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    # Lines may end within a name.
    assert all(f" {name}" in said.replace("- ", "-") for name in train.METHODS)
    # From one option to the next.
    parts = said.split(" --")
    helps = {part.split()[0]: part for part in parts}
    for field in dataclasses.fields(RunConfig):
        if field.name in ("method", "data", "modalities", "encoders", "loss"):
            continue
        value = {"warm_up_epochs": _WARM_UP_EPOCHS}.get(field.name, field.default)
        if value is None:
            continue
        stated = (
            ",".join(f"{x:g}" for x in value)
            if isinstance(value, tuple)
            else format(value, "" if isinstance(value, str) else "g")
        )
        assert f"[default: {stated}]" in helps[field.name.replace("_", "-")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "ova-lb", "--data", "digits"], "unknown method 'ova-lb'; did you mean 'ova-ib'?"),
        (["fit", "ova-ib"], "fit needs --data"),
        (["fit", "ova-ib", "--data", "digits", "--epoch", "3"], "No such option: --epoch (Possible options: --"),
        (["fit", "ova-ib", "--data", "digits", "--resume"], "--resume needs --output"),
        (["fit", "ova-ib", "--data", "digits", "--split", "a,b"], "--split must be numbers with commas"),
        (["fit", "ova-ib", "--data", "digits", "--loss", "0.1"], "--loss must be NAME=VALUE, got '0.1'"),
        (["fit", "ova-ib", "--data", "digits", "--batch-size", "5000"], "larger than the training split"),
        (["fit", "ova-ib", "--data", "digits", "--config", "none.json"], "cannot read none.json"),
        (["fit", "ova-ib", "--data", "npz:none.npz"], "No such file or directory"),
        (["fti"], "No such command 'fti'. Did you mean 'fit'?"),
        (["evaluate", "nowhere"], "nowhere is not a folder"),
        (["embed", "nowhere", "--output", "x.npz"], "nowhere is not a folder"),
    ],
)
def test_bad_commands_are_one_line_on_stderr_and_status_2(arguments, message, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("mibfast: error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert captured.out == ""
    assert not list(tmp_path.iterdir())


def test_methods_have_the_settings_of_their_papers_and_released_code() -> None:
    made = {name: each.loss(3, 8) for name, each in train.ALIGNMENTS.items()}
    assert all(made[name].temperature.log_temperature is not None for name in ("gram", "triangle"))
    assert made["symile"].log_scale is not None
    for name in ("clip", "clip-ib"):
        assert not made[name].positive_in_denominator
        assert made[name].temperature() == 0.01
    for name in ("ova-ib", "ova-ib-mlp"):
        assert not made[name].positive_in_denominator
        assert made[name].temperature == 0.01


def test_symile_takes_all_combinations_of_up_to_three_modalities() -> None:
    symile = train.ALIGNMENTS["symile"]
    assert [symile.loss(m, 8).negatives for m in (2, 3, 4, 6)] == ["all", "all", "shuffled", "shuffled"]
    assert symile.loss(4, 8, negatives="all").negatives == "all"
    symile.refuse_misfit(["a", "b", "c", "d", "e"], 8)
