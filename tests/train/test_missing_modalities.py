"""Samples that lack modalities: in files, in training, in evaluations, in what is written."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("lightning")
from mibfast import data, losses, train
from mibfast.cli.commands import run as command
from mibfast.data.digits import read_digits
from mibfast.train.comparison import compare
from mibfast.train.evaluation import evaluate
from mibfast.train.evaluation.embedding import write_embeddings
from mibfast.train.fitting.batches import shuffled
from mibfast.train.fitting.recording import Recording
from mibfast.train.fitting.requirements import usable
from mibfast.train.methods import ALIGNMENTS
from mibfast.train.progress import Report

SETTINGS = {"epochs": 2, "batch_size": 8, "features": 12, "progress": False}
QUIET = {"progress": False}
N = 150


def arrays(share: float = 0.7, names: str = "abc", seed: int = 0) -> tuple[dict, np.ndarray, dict]:
    """Views with NaN wherever they are absent, labels, and presence."""
    generator = np.random.default_rng(seed)
    labels = np.arange(N) % 3
    centres = 3 * generator.standard_normal((3, 5))
    views = {name: centres[labels] + generator.standard_normal((N, 5)) for name in names}
    presence = {name: generator.random(N) < share for name in names}
    for name, view in views.items():
        view[~presence[name]] = np.nan
    return views, labels, presence


@pytest.fixture
def npz(tmp_path) -> str:
    views, labels, presence = arrays()
    companions = {f"{name}.presence": each for name, each in presence.items()}
    np.savez(tmp_path / "x.npz", **views, **companions, labels=labels)
    return f"npz:{tmp_path / 'x.npz'}"


def names_of(method: str) -> list[str]:
    return ["a", "b"] if method == "barlow-twins" else ["a", "b", "c"]


def states(run: train.Run) -> dict[str, torch.Tensor]:
    return dict(run.module.state_dict())


def same(first: train.Run, second: train.Run) -> bool:
    mine, other = states(first), states(second)
    return mine.keys() == other.keys() and all(torch.equal(x, other[name]) for name, x in mine.items())


@pytest.mark.parametrize("kind", ["npz", "dir"])
def test_files_say_what_samples_lack(tmp_path, kind) -> None:
    views, labels, presence = arrays()
    presence["c"][:] = True
    views["c"] = np.nan_to_num(views["c"]).astype(np.float32)
    content = {**views, **{f"{name}.presence": each for name, each in presence.items()}, "labels": labels}
    if kind == "npz":
        np.savez(tmp_path / "x.npz", **content)
        found = data.load(f"npz:{tmp_path / 'x.npz'}")
    else:
        for name, array in content.items():
            np.save(tmp_path / f"{name}.npy", array)
        found = data.load(f"dir:{tmp_path}")
    assert set(found.views) == {"a", "b", "c"}
    # What nothing is missing of has no presence.
    assert set(found.presence) == {"a", "b"}
    assert f"a [150, 5] ({presence['a'].sum()} present)" in repr(found)
    assert "c [150, 5];" in repr(found)
    chosen = torch.tensor([5, 3, 149, 3, 0])
    taken = found.take(chosen)
    assert set(taken) == {"a", "b", "c", "a.presence", "b.presence"}
    for name in "ab":
        assert np.array_equal(taken[f"{name}.presence"], presence[name][chosen.numpy()])
        assert np.array_equal(taken[name], np.nan_to_num(views[name])[chosen.numpy()])
    assert set(found.only(["c", "a"]).presence) == {"a"}
    assert set(data.load(found.name, modalities=["c", "b"]).presence) == {"b"}


def test_statistics_are_of_what_is_present(monkeypatch) -> None:
    monkeypatch.setattr("mibfast.data.multimodal._CHUNK_BYTES", 1000)
    views, labels, presence = arrays()
    views["a"][~presence["a"]] = 1e300
    views["b"] = np.where(presence["b"][:, None], np.nan_to_num(views["b"]), 77).astype(np.uint8)
    found = data.from_arrays(views, labels, presence={name: torch.from_numpy(each) for name, each in presence.items()})
    in_training = np.isin(np.arange(N), found.splits["train"].numpy())
    for name, (mean, deviation) in found.statistics().items():
        rows = views[name][in_training & presence[name]].astype(float)
        np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-12)
        np.testing.assert_allclose(deviation, rows.std(0), rtol=1e-9)
    row = int(np.flatnonzero(presence["c"])[7])
    views["c"][row, 2] = np.inf
    with pytest.raises(data.DataError, match=rf"modality 'c' holds infinity at \[{row}, 2\]"):
        data.from_arrays(views, labels, presence=presence).statistics()


def test_the_fingerprint_is_of_what_is_present() -> None:
    views, labels, presence = arrays()
    whole = data.from_arrays(views, labels, presence=presence)
    rubbish = {name: np.where(presence[name][:, None], view, 5.0) for name, view in views.items()}
    assert data.from_arrays(rubbish, labels, presence=presence).fingerprint() == whole.fingerprint()
    fewer = {**presence, "a": presence["a"].copy()}
    # A sample that the digest of 64 rows does not read.
    fewer["a"][np.flatnonzero(presence["a"])[1]] = False
    assert data.from_arrays(views, labels, presence=fewer).fingerprint() != whole.fingerprint()
    complete = {name: np.ones(N, dtype=bool) for name in views}
    filled = {name: np.nan_to_num(view) for name, view in views.items()}
    assert data.from_arrays(filled, presence=complete).fingerprint() == data.from_arrays(filled).fingerprint()


@pytest.mark.parametrize(
    ("companions", "message"),
    [
        ({"a.presence": np.ones(N, int)}, "the presence of modality 'a' must be [N] of bool, got shape [150], int64"),
        ({"a.presence": np.ones((N, 1), bool)}, "'a' must be [N] of bool, got shape [150, 1], bool"),
        ({"a.presence": np.ones(N - 1, bool)}, "arrays must be of one length, got a 150, b 150, c 150, a.presence 149"),
        ({"d.presence": np.ones(N, bool)}, "there is 'd.presence' and no modality 'd'; expected one of 'a', 'b', 'c'"),
        ({"labels.presence": np.ones(N, bool)}, "there is 'labels.presence' and no modality 'labels'"),
        ({".presence": np.ones(N, bool)}, "there is '.presence' and no modality ''"),
    ],
)
def test_bad_presences_are_refused(tmp_path, companions, message) -> None:
    views, _, _ = arrays(share=1.1)
    np.savez(tmp_path / "x.npz", **views, **companions)
    with pytest.raises(data.DataError) as caught:
        data.load(f"npz:{tmp_path / 'x.npz'}")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_presence_of_no_modality_is_refused() -> None:
    views, _, _ = arrays(share=1.1)
    with pytest.raises(data.DataError, match="a presence is given of modality 'x', which there is not; expected one"):
        data.from_arrays(views, presence={"x": np.ones(N, dtype=bool)})


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_modality_that_a_split_lacks_is_said_before_training(tmp_path, split) -> None:
    views, labels, presence = arrays()
    whole = data.from_arrays(views, labels, presence=presence)
    presence["b"][whole.splits[split].numpy()] = False
    lacking = data.from_arrays(views, labels, presence=presence)
    title = {"train": "training"}.get(split, split)
    with pytest.raises(data.DataError, match=f"no {title} sample has modality 'b'; leave it out, or split otherwise"):
        train.fit("clip", lacking, output=tmp_path / "run", **SETTINGS)
    assert not (tmp_path / "run").exists()
    assert train.fit("clip", lacking, modalities=["a", "c"], **SETTINGS).epochs
    if split == "train":
        with pytest.raises(data.DataError, match="no training sample has modality 'b'"):
            lacking.statistics()


def test_too_few_samples_that_the_loss_takes_are_said_before_training(tmp_path) -> None:
    views, labels, presence = arrays()
    presence["a"] = ~presence["b"]
    found = data.from_arrays(views, labels, presence=presence)
    with pytest.raises(train.RunError, match="training split, which has 0 samples with all modalities"):
        train.fit("symile", found, output=tmp_path / "run", **SETTINGS)
    with pytest.raises(train.RunError, match=r"which has \d+ samples with two modalities or more"):
        train.fit("clip", found, output=tmp_path / "run", **{**SETTINGS, "batch_size": 90})
    presence = {name: np.ones(N, dtype=bool) for name in "abc"}
    validation = found.splits["validation"].numpy()
    presence["a"][validation[1:]] = False
    found = data.from_arrays(arrays(1.1)[0], labels, presence=presence)
    with pytest.raises(train.RunError, match="validation split has 1 sample with all modalities; a loss needs at"):
        train.fit("gram", found, output=tmp_path / "run", **SETTINGS)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ALIGNMENTS)
def test_all_or_nothing_is_as_good_as_complete_samples_alone(name) -> None:
    """Bit for bit: samples without any modality, whatever their rows hold, might as well not be there."""
    views, labels, _ = arrays(share=1.1, names="".join(names_of(name)))
    splits = np.random.default_rng(1).choice(["train", "validation", "test"], N, p=[0.6, 0.2, 0.2])
    kept = np.random.default_rng(2).random(N) < 0.7
    holed = {modality: np.where(kept[:, None], view, np.nan) for modality, view in views.items()}
    presence = dict.fromkeys(views, kept)
    whole = train.fit(name, data.from_arrays(holed, labels, split=splits, presence=presence), **SETTINGS)
    dropped = data.from_arrays({m: view[kept] for m, view in views.items()}, labels[kept], split=splits[kept])
    alone = train.fit(name, dropped, **SETTINGS)
    assert same(whole, alone)
    assert [row["validation_loss"] for row in whole.epochs] == [row["validation_loss"] for row in alone.epochs]
    mine, other = (evaluate(run, probes=["linear"], **QUIET).rows for run in (whole, alone))
    assert mine == other


@pytest.mark.parametrize("name", ALIGNMENTS)
def test_what_is_absent_changes_nothing_and_runs_go_on(npz, tmp_path, monkeypatch, name) -> None:
    settings = {**SETTINGS, "modalities": names_of(name), "checkpoint_minutes": 1e-9}
    whole = train.fit(name, npz, output=tmp_path / "whole", **settings)
    assert all(x.isfinite().all() for x in states(whole).values())
    assert all(np.isfinite(row["validation_loss"]) for row in whole.epochs)
    content = dict(np.load(npz.removeprefix("npz:")))
    other = {name: np.where(np.isnan(x), 1e9, x) if x.dtype.kind == "f" else x for name, x in content.items()}
    np.savez(tmp_path / "other.npz", **other)
    assert same(whole, train.fit(name, f"npz:{tmp_path / 'other.npz'}", **settings))
    original = Recording.on_train_batch_end

    def stopping(self: Recording, *arguments: object) -> None:
        original(self, *arguments)
        if self.step == 5:
            raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(Recording, "on_train_batch_end", stopping)
        with pytest.raises(InterruptedError):
            train.fit(name, npz, output=tmp_path / "run", **settings)
    assert same(whole, train.fit(name, npz, output=tmp_path / "run", resume=True, **settings))
    opened = train.open_run(tmp_path / "run")
    for modality, z in opened.embed("all").items():
        assert torch.equal(z.any(1), torch.from_numpy(opened.data.presence[modality]))
    described = json.loads((tmp_path / "run" / "config.json").read_text())["data"]["present"]
    assert described == {modality: int(each.sum()) for modality, each in opened.data.presence.items()}


@pytest.mark.parametrize(("name", "fewest"), [("clip", 2), ("ova-ib", 2), ("symile", 3), ("gram", 3)])
def test_batches_are_of_samples_that_the_loss_takes(name, fewest) -> None:
    views, labels, presence = arrays(0.5)
    run = train.fit(name, data.from_arrays(views, labels, presence=presence), **SETTINGS)
    indices = usable(run.data, run.config, "train")
    count = np.stack(list(presence.values())).sum(0)
    in_training = run.data.splits["train"].numpy()
    assert indices.tolist() == in_training[count[in_training] >= fewest].tolist()
    assert run.epochs[-1]["step"] == 2 * (len(indices) // 8)


class Watched(nn.Module):
    """An encoder with batch statistics, that keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[torch.Tensor] = []
        self.layers = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.given.append(x)
        return self.layers(x)


def test_encoders_are_given_what_is_present_alone() -> None:
    views = {name: torch.randn(20, 5) for name in "abc"}
    present = {"a": torch.rand(20) < 0.5, "b": torch.zeros(20, dtype=torch.bool)}
    batch = {**views, **{f"{name}.presence": each for name, each in present.items()}}
    batch["a"] = torch.where(present["a"][:, None], batch["a"], torch.nan)
    encoders = {name: Watched() for name in "abc"}
    module = train.AlignmentModule(encoders, losses.OVAIBLoss(0.2), features=12)
    for found in (module(batch), module.represent(batch)):
        assert list(found) == ["a", "b", "c"]
        assert torch.equal(found["a"].any(1), present["a"])
        assert not found["b"].any()
    assert torch.equal(encoders["a"].given[0], views["a"][present["a"]])
    assert encoders["b"].given == []
    loss = module.training_step(batch, 0)
    loss.backward()
    assert loss.isfinite()
    assert all(x.grad.isfinite().all() for x in encoders["a"].parameters())
    # The same as the loss of the embeddings of what is present.
    module.eval()
    expected = module.loss(module(views), torch.stack([present["a"], present["b"], torch.ones(20).bool()], 1))
    torch.testing.assert_close(module.validation_step(batch, 0), expected)


def test_a_batch_that_leaves_nothing_is_skipped_and_counted(tmp_path) -> None:
    """Of two samples that have two modalities each, a pair of modalities has both in a batch of some only."""
    generator = np.random.default_rng(0)
    views = {name: generator.standard_normal((N, 5)) for name in "abc"}
    lacking = generator.integers(3, size=N)
    presence = {name: lacking != m for m, name in enumerate("abc")}
    found = data.from_arrays(views, presence=presence)

    lines: list[str] = []

    class Lines(Report):
        def say(self, line: str) -> None:
            lines.append(line)

    settings = {**SETTINGS, "batch_size": 2, "loss": {"temperature": 0.1}, "progress": Lines(False)}
    run = train.fit("clip", found, output=tmp_path / "run", **settings)
    pairs = usable(run.data, run.config, "train")
    expected = 0
    for epoch in (1, 2):
        order = shuffled(pairs, 0, epoch).reshape(-1, 2)
        expected += int((lacking[order[:, 0]] != lacking[order[:, 1]]).sum())
    assert sum(row["skipped_batches"] for row in run.epochs) == expected > 0
    assert run.epochs[-1]["step"] == 90
    assert lines.count(f"{expected} of 90 batches were skipped: their samples had no modalities in common") == 1
    with open(tmp_path / "run" / "metrics.csv") as file:
        assert "skipped_batches" in file.readline()
    assert all(row["skipped_batches"] == 0 for row in train.fit("ova-ib", found, **SETTINGS).epochs)


def test_a_skipped_batch_moves_no_weight(monkeypatch) -> None:
    views, labels, presence = arrays()
    found = data.from_arrays(views, labels, presence=presence)
    original = train.AlignmentModule.training_step
    weights = []

    def nothing_once(self: train.AlignmentModule, batch: dict, position: int) -> torch.Tensor | None:
        weights.append(self.heads["a"].layers[0].weight.detach().clone())
        return None if position == 3 else original(self, batch, position)

    monkeypatch.setattr(train.AlignmentModule, "training_step", nothing_once)
    train.fit("clip", found, **{**SETTINGS, "weight_decay": 0.1, "loss": {"temperature": 0.1}})
    assert torch.equal(weights[3], weights[4])
    assert not torch.equal(weights[2], weights[3])
    assert not torch.equal(weights[4], weights[5])


def test_an_epoch_of_skipped_batches_alone_ends_the_run() -> None:
    """Modalities of which no two samples have the same pair in any batch of two."""
    views, _, _ = arrays(1.1, names="abcd")
    first = np.arange(N) % 2 == 0
    presence = {"a": first, "b": first, "c": ~first, "d": ~first}
    splits = np.array(["train", "train", "validation", "validation", *["test"] * (N - 4)])
    found = data.from_arrays(views, split=splits, presence=presence)
    with pytest.raises(train.RunError, match="no training batch of epoch 1 has anything to take the loss of"):
        train.fit("clip", found, **{**SETTINGS, "batch_size": 2})


@pytest.fixture(scope="module")
def holed() -> train.Run:
    """Of a and c no sample has both."""
    views, labels, presence = arrays(0.7)
    presence["a"] &= np.arange(N) % 2 == 0
    presence["c"] &= np.arange(N) % 2 == 1
    return train.fit("clip", data.from_arrays(views, labels, presence=presence), **SETTINGS, loss={"temperature": 0.1})


def test_rows_are_of_samples_that_have_what_they_are_about(holed, monkeypatch) -> None:
    lines = []
    monkeypatch.setattr(Report, "say", lambda self, line: lines.append(line))
    found = evaluate(holed, **QUIET)
    test = holed.data.splits["test"]
    for row in found.rows:
        names = row["modalities"].replace(" → ", "+").split("+")
        assert row["samples"] == int(holed.data.has(test, names).sum()) < len(test)
        assert {"a", "c"} - set(names)
    left_out = found.about["left_out"]
    assert {"linear probe a+c", "MLP probe a+b+c", "retrieval a → c", "retrieval b+c → a"} < set(left_out)
    assert {row["modalities"] for row in found.rows if row["metric"] == "MRR"} == {"a → b", "b → a", "b → c", "c → b"}
    assert [line for line in lines if line.startswith("left out")] == [
        f"left out, since too few samples have the modalities: {', '.join(left_out)}"
    ]
    assert found.value("linear probe", "accuracy", "b") > 0.8


def test_a_probe_is_that_of_the_samples_it_is_about(holed) -> None:
    from mibfast.train.evaluation.probes import probe

    parts = []
    for split in ("train", "test"):
        indices = holed.data.indices(split)
        chosen = indices[holed.data.has(indices, ["b", "c"])]
        z = holed.embed("all", representations=True)
        parts.append((torch.cat([z["b"], z["c"]], 1)[chosen].numpy(), holed.data.labels[chosen.numpy()]))
    expected = probe("linear", "classification", *parts).value("accuracy")
    found = evaluate(holed, probes=["linear"], retrieval=False, **QUIET)
    assert found.value("linear probe", "accuracy", "b+c") == expected


def test_pools_are_as_large_as_can_be(holed) -> None:
    small = evaluate(holed, probes=[], pool=6, **QUIET)
    assert {row["samples"] for row in small.rows} == {6}


def test_nothing_left_to_evaluate_is_an_error(holed) -> None:
    with pytest.raises(data.DataError, match="nothing to evaluate: too few samples have the modalities"):
        evaluate(holed, combinations="whole", **QUIET)


def test_rows_of_several_seeds_are_those_that_all_have() -> None:
    """A pair of modalities that few samples have, in the test splits of some seeds alone."""
    views, labels, presence = arrays(0.8)
    both = np.flatnonzero(presence["a"] & presence["c"])
    presence["a"][both[14:]] = False
    runs = [
        train.fit("clip", data.from_arrays(views, labels, seed=seed, presence=presence), seed=seed, **SETTINGS)
        for seed in (0, 1, 2, 3)
    ]
    alone = [{(row["task"], row["modalities"]) for row in evaluate(run, **QUIET).rows} for run in runs]
    together = {(row["task"], row["modalities"]) for row in evaluate(runs, **QUIET).rows}
    assert together == set.intersection(*alone)
    assert together != set.union(*alone)


@pytest.mark.parametrize("name", ["x.npz", "x.safetensors", "folder"])
@pytest.mark.parametrize("split", ["all", "test"])
def test_embeddings_say_what_is_missing_and_can_be_fitted_again(holed, tmp_path, name, split) -> None:
    shapes = write_embeddings(holed, tmp_path / name, split=split, **QUIET)
    if name == "x.npz":
        found = dict(np.load(tmp_path / name))
    elif name == "x.safetensors":
        from safetensors.numpy import load_file

        found = load_file(tmp_path / name)
    else:
        found = {path.name.removesuffix(".npy"): np.load(path) for path in (tmp_path / name).glob("*.npy")}
    assert {key: array.shape for key, array in found.items()} == shapes
    indices = holed.data.indices(split).numpy()
    for modality in "abc":
        present = found[f"{modality}.presence"]
        assert np.array_equal(present, holed.data.presence[modality][indices])
        assert np.array_equal(found[modality].any(1), present)
    if name != "x.safetensors" and split == "all":
        again = data.load(f"{'npz' if name == 'x.npz' else 'dir'}:{tmp_path / name}")
        assert again.presence.keys() == holed.data.presence.keys()
        assert train.fit("clip", again, **{**SETTINGS, "epochs": 1}).epochs


def test_the_commands(npz, tmp_path, capsys) -> None:
    run = str(tmp_path / "run")
    options = ["--epochs", "1", "--batch-size", "8", "--features", "8", "--loss", "temperature=0.1"]
    assert command(["fit", "clip", "--data", npz, "--output", run, *options]) == 0
    assert (tmp_path / "run" / "embeddings.png").exists()
    assert command(["evaluate", run, "--probe", "linear"]) == 0
    content = json.loads((tmp_path / "run" / "evaluation" / "test" / "evaluation.json").read_text())
    assert len({row["samples"] for row in content["rows"]}) > 1
    assert command(["embed", run, "--output", str(tmp_path / "e.npz")]) == 0
    assert "a.presence [150]" in capsys.readouterr().out
    assert command(["fit", "clip", "--data", f"npz:{tmp_path / 'e.npz'}", "--output", run + "2", *options]) == 0


def test_methods_are_compared(npz, tmp_path) -> None:
    found = compare(["clip", "gram"], npz, tmp_path / "c", seeds=2, tune=False, **SETTINGS)
    assert {row["method"] for row in found.rows} == {"clip", "gram"}
    assert {row["seeds"] for row in found.rows} == {2}
    assert "| pairwise CLIP |" in found.markdown()


def test_a_picture_is_of_samples_that_have_everything(holed, tmp_path, monkeypatch) -> None:
    lines = []
    monkeypatch.setattr(Report, "say", lambda self, line: lines.append(line))
    train.fit("clip", holed.data, output=tmp_path / "run", **{**SETTINGS, "epochs": 1})
    assert "no picture of embeddings: no test sample has all modalities" in lines
    assert not (tmp_path / "run" / "embeddings.png").exists()
    assert (tmp_path / "run" / "learning_curves.png").exists()


def test_labels_that_do_not_vary_among_those_that_have_a_modality() -> None:
    """Of samples with b no two are of different classes or targets; of those with a and c some are."""
    views, labels, presence = arrays(0.8)
    presence["b"] &= labels == 1
    for targets in (labels, labels / 2):
        run = train.fit("clip", data.from_arrays(views, targets, presence=presence), **SETTINGS)
        found = evaluate(run, probes=["linear"], retrieval=False, **QUIET)
        assert {row["modalities"] for row in found.rows} == {"a", "c", "a+c"}
        assert all(np.isfinite([row["low"], row["value"], row["high"]]).all() for row in found.rows)
        assert len(found.about["left_out"]) == 4


def test_digits_of_which_a_third_is_missing_are_worth_more_than_those_that_are_whole() -> None:
    """All are scored on test samples that have everything."""
    views, labels = read_digits()
    whole = data.from_arrays(views, labels)
    split = np.empty(len(labels), "<U10")
    for part, indices in whole.splits.items():
        split[indices.numpy()] = part
    generator = np.random.default_rng(0)
    presence = {name: (generator.random(len(labels)) < 0.7) | (split == "test") for name in views}
    complete = np.stack(list(presence.values())).all(0)
    dropped = {name: view[complete] for name, view in views.items()}
    probed, found = {}, {}
    for title, source in {
        "whole": whole,
        "holed": data.from_arrays(views, labels, split=split, presence=presence),
        "dropped": data.from_arrays(dropped, labels[complete], split=split[complete]),
    }.items():
        run = train.fit("ova-ib", source, epochs=10, loss={"temperature": 0.1}, progress=False)
        scored = evaluate(dataclasses.replace(run, data=whole), probes=["linear"], combinations="whole", **QUIET)
        probed[title] = scored.value("linear probe", "accuracy")
        found[title] = np.mean([row["value"] for row in scored.rows if row["metric"] == "MRR"])
    assert probed["holed"] > probed["whole"] - 0.05
    assert found["whole"] > found["holed"] > 1.2 * found["dropped"]
