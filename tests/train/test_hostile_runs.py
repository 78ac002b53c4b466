"""Run folders, settings and options that are damaged or made up: status 2, one line, and nothing written elsewhere."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("lightning")
from safetensors.torch import load_file, save_file

from mibfast import data, train
from mibfast.cli.commands import run as command
from mibfast.train.comparison import compare
from mibfast.train.evaluation.embedding import write_embeddings
from mibfast.train.experiments.authentic import classify_authentic_features
from mibfast.train.experiments.bottlenecks import experiment
from mibfast.train.fitting.recording import Recording
from mibfast.train.folder import RunFolder
from mibfast.train.json_files import NUMBER, check_form, parse_json

SMALL: dict[str, Any] = {"epochs": 2, "batch_size": 16, "features": 8, "progress": False}
DEEP = "[" * 100_000 + "]" * 100_000


class StoppedError(Exception):
    pass


@pytest.fixture(scope="module")
def npz(tmp_path_factory) -> str:
    generator = np.random.default_rng(0)
    labels = np.arange(90) % 3
    views = {name: np.eye(3)[labels] + 0.1 * generator.standard_normal((90, 3)) for name in "ab"}
    path = tmp_path_factory.mktemp("data") / "x.npz"
    np.savez(path, **views, labels=labels)
    return f"npz:{path}"


@pytest.fixture(scope="module")
def whole(npz, tmp_path_factory) -> dict[str, Path]:
    """An ended alignment, an ended fusion, and an alignment that was stopped within its second epoch."""
    folder = tmp_path_factory.mktemp("whole")
    train.fit("clip", npz, output=folder / "clip", pictures=False, **SMALL)
    train.fit("concatenation", npz, output=folder / "fusion", pictures=False, **SMALL)
    original = Recording.on_train_batch_end

    def stopping(self: Recording, *arguments: object) -> None:
        original(self, *arguments)
        if self.step == 5:
            raise StoppedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recording, "on_train_batch_end", stopping)
        with pytest.raises(StoppedError):
            train.fit("clip", npz, output=folder / "stopped", pictures=False, checkpoint_minutes=1e-9, **SMALL)
    return {name: folder / name for name in ("clip", "fusion", "stopped")}


@pytest.fixture
def hurt(whole, tmp_path) -> Callable[[str], Path]:
    def copied(name: str) -> Path:
        return Path(shutil.copytree(whole[name], tmp_path / name))

    return copied


def refused(arguments: list[Any], capsys, message: str = "") -> None:
    assert command([str(each) for each in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mibfast: error: ")
    assert error.count("\n") == 1
    assert message in error


def edit(path: Path, *keys: Any, to: Any) -> None:
    """Change what a JSON file holds at a place."""
    content = json.loads(path.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = to
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("run", "file", "keys", "to"),
    [
        ("clip", "config.json", ("settings", "features"), 10**30),
        ("clip", "config.json", ("settings", "features"), 2**20),
        ("clip", "config.json", ("settings", "features"), True),
        ("clip", "config.json", ("settings", "depth"), 10**9),
        ("clip", "config.json", ("settings", "depth"), 2),
        ("clip", "config.json", ("settings", "learning_rate"), 10**400),
        ("clip", "config.json", ("settings", "split"), [10**400, 0, 0]),
        ("clip", "config.json", ("settings", "split"), ["a"]),
        ("clip", "config.json", ("settings", "data"), "npz:\0"),
        ("clip", "config.json", ("settings", "data"), ["npz"]),
        ("clip", "config.json", ("settings", "modalities"), ["../a"]),
        ("clip", "config.json", ("settings", "encoders"), {"a": "os:system"}),
        ("clip", "config.json", ("settings", "encoders"), {"a": ["mlp"]}),
        ("clip", "config.json", ("settings", "encoders"), "mlp"),
        ("clip", "config.json", ("settings", "method"), "concatenation"),
        ("clip", "config.json", ("settings", "method"), ["clip"]),
        ("clip", "config.json", ("settings", "loss"), {"temperature": 10**400}),
        ("clip", "config.json", ("settings", "loss"), {"temperature": {}}),
        ("clip", "config.json", ("settings",), []),
        ("clip", "config.json", ("data",), []),
        ("clip", "config.json", ("data",), None),
        ("clip", "config.json", ("data", "shapes"), [3]),
        ("clip", "config.json", ("data", "shapes"), {}),
        ("clip", "config.json", ("data", "shapes", "a"), [-3]),
        ("clip", "config.json", ("data", "shapes", "a"), [10**12]),
        ("clip", "config.json", ("data", "shapes", "a"), [10**40]),
        ("clip", "config.json", ("data", "shapes", "a"), ["3"]),
        ("clip", "config.json", ("data", "shapes", "a"), [True]),
        ("clip", "config.json", ("data", "shapes"), {"a": [3], "../b": [3]}),
        ("clip", "config.json", ("data", "shapes"), {"a": [3], "b.c": [3]}),
        ("clip", "config.json", ("data", "fingerprint"), 3),
        ("clip", "config.json", ("target",), {"task": "classification", "classes": [0, 1]}),
        ("clip", "config.json", ("beta",), 3),
        ("clip", "config.json", ("format",), {}),
        ("fusion", "config.json", ("target",), None),
        ("fusion", "config.json", ("target",), "classification"),
        ("fusion", "config.json", ("target", "task"), ["classification"]),
        ("fusion", "config.json", ("target", "classes"), 3),
        ("fusion", "config.json", ("target", "classes"), [0]),
        ("fusion", "config.json", ("target", "classes"), [0, 0, 1]),
        ("fusion", "config.json", ("target", "classes"), [0, "a", {}]),
        ("fusion", "config.json", ("target", "classes"), [[0], [1], [2]]),
        ("fusion", "config.json", ("target", "unlearned"), [[]]),
        ("fusion", "config.json", ("target", "sentiment"), []),
        ("fusion", "config.json", ("target", "mean"), ["x"]),
        ("fusion", "config.json", ("target",), {"task": "regression", "mean": [0, 0], "deviation": [1]}),
        ("fusion", "config.json", ("target",), {"task": "regression", "mean": [0], "deviation": [0]}),
        ("fusion", "config.json", ("target",), {"task": "anomaly-detection"}),
        ("fusion", "config.json", ("target",), {"tusk": "classification"}),
        ("fusion", "config.json", ("beta",), {"beta": "x"}),
        ("clip", "metrics.json", ("best_epoch",), "1"),
        ("clip", "metrics.json", ("best_epoch",), 99),
        ("clip", "metrics.json", ("best_epoch",), 0),
        ("clip", "metrics.json", ("epochs",), "abc"),
        ("clip", "metrics.json", ("epochs",), [1, 2]),
        ("clip", "metrics.json", ("epochs",), [{"validation_loss": "low"}]),
        ("clip", "metrics.json", ("epochs", 0, "train_loss"), 0.5),
        ("clip", "metrics.json", ("weights_sha256",), None),
        ("clip", "metrics.json", ("weights_sha256",), ["x"]),
    ],
)
def test_what_a_folder_says_is_checked_before_it_is_believed(hurt, tmp_path, capsys, run, file, keys, to) -> None:
    """JSON of the right syntax and another meaning."""
    path = hurt(run)
    edit(path / file, *keys, to=to)
    refused(["evaluate", path, "--probe", "none"], capsys)
    refused(["embed", path, "--output", tmp_path / "out", "--representations"], capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [DEEP, "", "\0", "[", "3", "NaN", '{"settings": 1e999}', "9" * 5000])
@pytest.mark.parametrize("file", ["config.json", "metrics.json"])
def test_json_that_says_nothing(hurt, capsys, file, content) -> None:
    path = hurt("clip")
    (path / file).write_text(content)
    refused(["evaluate", path], capsys, file)


@pytest.mark.parametrize("content", [DEEP, "", "[]", '{"depth": 1e999}', '{"features": 99999999}', '{"loss": 3}', "\0"])
def test_settings_of_a_file_that_are_none(npz, tmp_path, capsys, content) -> None:
    (tmp_path / "settings.json").write_text(content)
    arguments = ["fit", "clip", "--data", npz, "--config", tmp_path / "settings.json", "--output", tmp_path / "run"]
    refused(arguments, capsys)
    assert not (tmp_path / "run").exists()


def test_networks_larger_than_memory_are_refused_before_they_are_made(npz, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("mibfast.data.opening.free_memory", lambda: 10**8)
    options = ["--data", npz, "--output", tmp_path / "run", "--batch-size", 16]
    refused(["fit", "clip", *options, "--features", 5000], capsys, "of memory, and 0.1 GB are free; ask for fewer")
    hidden = ["--loss", "hidden_features=100000"]
    refused(["fit", "concatenation", *options, *hidden], capsys, "ask for fewer")
    assert not (tmp_path / "run").exists()


def reweighted(path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Write other weights with their own, valid checksum."""
    weights = path / "weights.safetensors"
    save_file(change(load_file(weights)), weights)
    rewritten(path, weights.read_bytes())


def rewritten(path: Path, content: bytes) -> None:
    (path / "weights.safetensors").write_bytes(content)
    folder = RunFolder(path)
    folder.write_metrics({**folder.read_metrics(), "weights_sha256": hashlib.sha256(content).hexdigest()})


def header(text: str, body: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text.encode() + body


@pytest.mark.parametrize(
    "change",
    [
        lambda path: reweighted(path, lambda found: {}),
        lambda path: reweighted(path, lambda found: {k: x[:1].clone() for k, x in found.items() if x.ndim}),
        lambda path: reweighted(path, lambda found: {k: x.to(torch.int32) for k, x in found.items()}),
        lambda path: reweighted(path, lambda found: {**found, "more": torch.zeros(3)}),
        lambda path: reweighted(path, lambda found: {**found, "encoders.a.0.mean": torch.zeros(4).double()}),
        lambda path: rewritten(path, (10**18).to_bytes(8, "little") + b"{}"),
        lambda path: rewritten(path, header(DEEP)),
        lambda path: rewritten(
            path, header('{"a":{"dtype":"F32","shape":[9999999999],"data_offsets":[0,4]}}', b"1234")
        ),
        lambda path: rewritten(path, header('{"a":{"dtype":"F9","shape":[1],"data_offsets":[0,4]}}', b"1234")),
        lambda path: rewritten(path, header('{"a":{"dtype":"F4","shape":[8],"data_offsets":[0,4]}}', b"1234")),
        lambda path: rewritten(path, header('{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', b"1234")),
        lambda path: rewritten(path, b""),
    ],
    ids=[
        "none",
        "small",
        "integers",
        "more",
        "mean",
        "length",
        "deep",
        "huge",
        "no dtype",
        "4 bits",
        "negative",
        "empty",
    ],
)
def test_weights_under_a_valid_checksum(hurt, capsys, change) -> None:
    path = hurt("clip")
    change(path)
    refused(["evaluate", path, "--probe", "none"], capsys, "weights")


def mean_of_the_state(state: dict[str, Any]) -> Any:
    return next(iter(state["optimizer"]["state"].values()))


STATES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": lambda state: [state],
    "a number": lambda state: 3,
    "a tensor": lambda state: torch.zeros(3),
    "nothing": lambda state: {},
    "no weights": lambda state: {**state, "weights": 3},
    "weights that are numbers": lambda state: {**state, "weights": dict.fromkeys(state["weights"], 3)},
    "weights of another shape": lambda state: {**state, "weights": {k: x[None] for k, x in state["weights"].items()}},
    "huge weights": lambda state: {
        **state, "weights": {k: torch.zeros(1).expand(10**12) for k in state["weights"]}
    },
    "other weights": lambda state: {**state, "weights": {f"x{k}": x for k, x in state["weights"].items()}},
    "weights by number": lambda state: {**state, "weights": {3: torch.zeros(3)}},
    "sparse weights": lambda state: {**state, "weights": {k: x.to_sparse() for k, x in state["weights"].items()}},
    "no best weights": lambda state: {**state, "best_weights": {}},
    "best weights that are numbers": lambda state: {**state, "best_weights": [1]},
    "steps of text": lambda state: {**state, "step": "5"},
    "a negative step": lambda state: {**state, "step": -1},
    "a step of another epoch": lambda state: {**state, "step": 10**9},
    "a true step": lambda state: {**state, "step": True},
    "epochs that are numbers": lambda state: {**state, "epochs": [1]},
    "epochs without a loss": lambda state: {**state, "epochs": [{"epoch": 1}]},
    "too many epochs": lambda state: {**state, "epochs": state["epochs"] * 50},
    "a loss of text": lambda state: {**state, "epochs": [{**state["epochs"][0], "validation_loss": "low"}]},
    "a loss of nothing": lambda state: {**state, "epochs": [{**state["epochs"][0], "validation_loss": None}]},
    "a loss of NaN": lambda state: {**state, "epochs": [{**state["epochs"][0], "validation_loss": math.nan}]},
    "a loss beyond numbers": lambda state: {**state, "epochs": [{**state["epochs"][0], "validation_loss": 10**400}]},
    "another epoch's number": lambda state: {**state, "epochs": [{**state["epochs"][0], "epoch": 7}]},
    "another epoch's step": lambda state: {**state, "epochs": [{**state["epochs"][0], "step": -3}]},
    "time of NaN": lambda state: {**state, "spent": math.nan},
    "steps that wait and are fewer than none": lambda state: {
        **state, "steps": {**state["steps"], "open": {"sums": {}, "count": -7}}
    },
    "more steps than the table has": lambda state: {**state, "steps": {**state["steps"], "rows": [{"step": 1}] * 9000}},
    "steps of unequal terms": lambda state: {
        **state, "steps": {**state["steps"], "rows": [{"step": 1}, {"loss": 1.0}]}
    },
    "a term that is a tensor": lambda state: {**state, "epochs": [{**state["epochs"][0], "term": torch.zeros(2)}]},
    "no sums": lambda state: {**state, "means": {"count": 1}},
    "sums of text": lambda state: {**state, "means": {"sums": {"loss": "x"}, "count": 2}},
    "a negative count": lambda state: {**state, "means": {"sums": {"loss": 1.0}, "count": -1}, "skipped": 3},
    "a stride of zero": lambda state: {**state, "steps": {**state["steps"], "stride": 0}},
    "rows that are numbers": lambda state: {**state, "steps": {**state["steps"], "rows": [1]}},
    "time of text": lambda state: {**state, "spent": "long"},
    "no optimizer": lambda state: {**state, "optimizer": {}},
    "an optimizer that lacks a parameter's state": lambda state: {
        **state, "optimizer": {**state["optimizer"], "state": {
            k: each for k, each in state["optimizer"]["state"].items() if k != 1
        }}
    },
    "an optimizer of other parameters": lambda state: {
        **state, "optimizer": {**state["optimizer"], "param_groups": [
            {**group, "params": group["params"][::-1]} for group in state["optimizer"]["param_groups"]
        ]}
    },
    "an optimizer of text": lambda state: {**state, "optimizer": {"state": {}, "param_groups": "x"}},
    "an optimizer without groups": lambda state: {**state, "optimizer": {"state": {}, "param_groups": []}},
    "another learning rate": lambda state: {
        **state, "optimizer": {**state["optimizer"], "param_groups": [
            {**group, "lr": 1e9} for group in state["optimizer"]["param_groups"]
        ]}
    },
    "moments of another shape": lambda state: {
        **state, "optimizer": {**state["optimizer"], "state": {
            k: {**each, "exp_avg": torch.zeros(7, 7)} for k, each in state["optimizer"]["state"].items()
        }}
    },
    "moments that are numbers": lambda state: {
        **state, "optimizer": {**state["optimizer"], "state": {
            k: {**each, "exp_avg": 3} for k, each in state["optimizer"]["state"].items()
        }}
    },
    "no moments": lambda state: {
        **state, "optimizer": {**state["optimizer"], "state": {k: {} for k in state["optimizer"]["state"]}}
    },
}  # fmt: skip


@pytest.mark.parametrize("change", STATES.values(), ids=STATES)
def test_states_of_wrong_types_under_a_valid_checksum(hurt, npz, capsys, change) -> None:
    path = hurt("stopped")
    state = torch.load(path / "resume.pt", weights_only=True)
    torch.save(change(state), path / "resume.pt")
    refused(["fit", "clip", "--output", path, "--resume"], capsys, "damaged")


def test_the_state_as_it_was_goes_on(hurt, whole) -> None:
    """What refuses damage takes what is whole, to the same weights."""
    path = hurt("stopped")
    torch.save(torch.load(path / "resume.pt", weights_only=True), path / "resume.pt")
    assert command(["fit", "clip", "--output", str(path), "--resume"]) == 0
    assert (path / "weights.safetensors").read_bytes() == (whole["clip"] / "weights.safetensors").read_bytes()


def test_a_compressed_state_is_not_unpacked(hurt, capsys) -> None:
    import zipfile

    path = hurt("stopped")
    with zipfile.ZipFile(path / "resume.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(10**7))
    refused(["fit", "clip", "--output", path, "--resume"], capsys, "resume.pt is damaged: it is compressed")


@pytest.mark.parametrize(
    ("run", "file"),
    [
        ("clip", "config.json"),
        ("clip", "metrics.json"),
        ("clip", "weights.safetensors"),
        ("stopped", "config.json"),
        ("stopped", "resume.pt"),
    ],
)
def test_a_pipe_in_a_runs_folder_is_not_waited_for(hurt, npz, capsys, run, file) -> None:
    path = hurt(run)
    (path / file).unlink()
    os.mkfifo(path / file)
    if run == "clip":
        refused(["evaluate", path], capsys, "it is a pipe, not a regular file")
    arguments = ["fit", "clip", "--output", path, "--resume"]
    if file in ("config.json", "resume.pt"):
        refused(arguments, capsys, "it is a pipe, not a regular file")
    refused(["fit", "clip", "--data", npz, "--config", path / file], capsys)


def test_a_config_with_encoders_of_ones_own_is_refused_until_they_are_named(npz, tmp_path, capsys) -> None:
    """To leave them out would train something else without a word."""
    own = {"epochs": 1, "features": 8, "batch_size": 16, "encoders": {"a": "dropout_encoder:Encoder", "b": "mlp"}}
    (tmp_path / "settings.json").write_text(json.dumps(own))
    options = ["fit", "clip", "--data", npz, "--config", str(tmp_path / "settings.json"), "--output"]
    refused([*options, tmp_path / "run"], capsys, "give it once more: --encoder a=dropout_encoder:Encoder")
    assert not (tmp_path / "run").exists()
    for encoder in ("dropout_encoder:Encoder", "mlp"):
        path = tmp_path / encoder
        assert command([*options, str(path), "--encoder", f"a={encoder}"]) == 0
        assert json.loads((path / "config.json").read_text())["settings"]["encoders"] == {"a": encoder, "b": "mlp"}
    capsys.readouterr()
    path = tmp_path / "dropout_encoder:Encoder"
    refused(["fit", "clip", "--output", path, "--resume"], capsys, "give it once more")


@pytest.mark.parametrize("name", ["../x", "{}/x", "a/../../x", ".x", "a\0", "a\nb", "", "a//b", "n" * 250, "a\\b"])
def test_a_folder_writes_into_itself_alone(tmp_path, name) -> None:
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(train.RunError, match="nothing is written into") as caught:
        folder.write_json(name.format(tmp_path), {})
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_a_link_points_to_is_not_written(hurt, tmp_path) -> None:
    """A folder that somebody else made may hold links under the names that files have while they are written."""
    path, precious = hurt("clip"), tmp_path / "precious"
    precious.write_text("precious")
    (path / ".note.json.partial").symlink_to(precious)
    RunFolder(path).write_json("note.json", {})
    assert precious.read_text() == "precious"
    (path / ".folder.partial").mkdir()
    with RunFolder(path).locked():
        pass


@pytest.mark.parametrize("output", ["out", "out.npz", "out.safetensors"])
@pytest.mark.parametrize("name", ["../../precious", "{}/precious", "a\nb", ".a"])
def test_embeddings_stay_in_their_place_whatever_modalities_are_called(whole, tmp_path, output, name) -> None:
    """Even of data that were made past all checks."""
    name = name.format(tmp_path)
    np.save(tmp_path / "precious.npy", np.arange(3))
    run = train.open_run(whole["clip"])
    views = {name: run.data.views["a"], "b": run.data.views["b"]}
    unchecked = data.MultimodalData("x", views, None, run.data.splits)
    hostile = train.Run(run.module, unchecked, run.config, run.epochs, run.best_epoch)
    with pytest.raises(train.RunError, match="no embeddings can be written under the name"):
        write_embeddings(hostile, tmp_path / "folder" / output, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.npy"]
    assert np.array_equal(np.load(tmp_path / "precious.npy"), np.arange(3))


@pytest.mark.parametrize("split", ["../../../elsewhere", "{}/elsewhere", "test\n"])
def test_a_split_is_no_path(whole, tmp_path, capsys, split) -> None:
    before = sorted(tmp_path.rglob("*"))
    refused(
        ["evaluate", whole["clip"], "--split", split.format(tmp_path)],
        capsys,
        "--split must be one of test, validation",
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_a_comparison_names_its_runs_by_what_can_be_a_name(npz, tmp_path) -> None:
    """A value that the method takes and no file system does."""
    with pytest.raises(train.RunError, match="are named by its settings, which cannot be: it holds '/'"):
        compare(
            ["concatenation"], npz, tmp_path / "x", seeds=1, tune=False, **SMALL, vary={"hidden_features": [Slashed(8)]}
        )
    assert not (tmp_path / "x").exists()


class Slashed(int):
    def __format__(self, form: str) -> str:
        return f"../{int(self)}"


@pytest.mark.parametrize("content", [DEEP, "{", "3", "[]", '{"features": "union"}', '[{"task": 1}]'])
def test_what_a_comparison_or_experiment_kept_is_checked(npz, tmp_path, content) -> None:
    settings = {"seeds": 1, "tune": False, **SMALL, "epochs": 1}
    compare(["concatenation"], npz, tmp_path / "compared", **settings)
    kept = tmp_path / "compared" / "runs" / "concatenation,seed=0" / "test.json"
    if content != "[]":
        kept.write_text(content)
        with pytest.raises(train.RunError, match=r"test.json is damaged"):
            compare(["concatenation"], npz, tmp_path / "compared", **settings)
    arguments: dict[str, Any] = {"seeds": 1, "samples": 100, "epochs": 1, "features": 4, "depth": 1, "progress": False}
    classify_authentic_features("sim-i", tmp_path / "authentic", **arguments)
    (tmp_path / "authentic" / "union,seed=0.json").write_text(content)
    with pytest.raises(train.RunError, match=r"union,seed=0.json is damaged"):
        classify_authentic_features("sim-i", tmp_path / "authentic", **arguments)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, bool])
def test_an_experiment_takes_arrays_of_any_dtype(tmp_path, dtype) -> None:
    """Decoders' targets were of the arrays' own dtype, which ended in a traceback."""
    labels = np.arange(160) % 4
    views = {name: np.eye(4)[labels].astype(dtype) for name in "ab"}
    np.savez(tmp_path / "x.npz", **views, labels=labels)
    found = experiment(
        f"npz:{tmp_path / 'x.npz'}", "latent", tmp_path / "run", values=(2,), methods=("dvsib", "pixels"), seeds=1,
        hidden_features=8, steps=3, progress=False,
    )  # fmt: skip
    assert found.accuracies()["a"]["pixels"][None] == [1.0]


def test_forms() -> None:
    form = {"step": int, "losses": [NUMBER], "by": {str: {"value": (str, type(None))}}}
    check_form({"step": 1, "losses": [1, 0.5], "by": {"x": {"value": None}}, "more": object()}, form)
    for change, message in (
        ({"step": True}, "its 'step' must be int, got bool True"),
        ({"losses": [1, "x"]}, r"its 'losses' \[1\] must be int or float, got str 'x'"),
        ({"losses": (1,)}, "its 'losses' must be list, got tuple"),
        ({"by": {3: {}}}, "a key of its 'by' must be str, got int 3"),
        ({"by": {"x": {}}}, "its 'by' 'x' has no 'value'"),
        ({"by": []}, "its 'by' must be a mapping, got list"),
    ):
        with pytest.raises(ValueError, match=message):
            check_form({"step": 1, "losses": [], "by": {}, **change}, form)
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(DEEP)
