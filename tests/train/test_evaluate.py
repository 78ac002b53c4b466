"""Evaluations: probes, retrieval, intervals, and embeddings for use elsewhere."""

import csv
import json
import os

import numpy as np
import pytest
import torch

pytest.importorskip("lightning")
from mibfast import data, train
from mibfast import functional as F
from mibfast.cli.commands import run as command
from mibfast.train.evaluation import evaluate
from mibfast.train.evaluation.embedding import write_embeddings
from mibfast.train.evaluation.probes import probe
from mibfast.train.evaluation.retrieval import retrieved
from mibfast.train.fitting.targets import task_of
from mibfast.train.methods import ALIGNMENTS
from mibfast.train.pictures import draw_embeddings

SETTINGS = {"epochs": 3, "batch_size": 16, "features": 12, "progress": False}
QUIET = {"progress": False}


def views(n: int = 200, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    centres = 3 * generator.standard_normal((3, 5))
    return {
        "a": centres[labels] + generator.standard_normal((n, 5)),
        "b": centres[labels] + generator.standard_normal((n, 5)),
        "c": generator.standard_normal((n, 4)),
        "labels": labels,
    }


@pytest.fixture(scope="module")
def npz(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("data") / "x.npz"
    np.savez(path, **views())
    return f"npz:{path}"


@pytest.fixture(scope="module")
def runs(npz, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [train.fit("ova-ib", npz, output=folder / str(seed), seed=seed, **SETTINGS) for seed in (0, 1, 2)]


def test_every_combination_and_every_query(runs) -> None:
    found = evaluate(runs[0], **QUIET)
    assert {(row["task"], row["metric"]) for row in found.rows} == {
        ("linear probe", "accuracy"),
        ("MLP probe", "accuracy"),
        *(("retrieval", metric) for metric in ("R@1", "R@5", "R@10", "MRR", "mAP")),
    }
    combinations = [row["modalities"] for row in found.rows if row["task"] == "linear probe"]
    assert combinations == ["a", "b", "c", "a+b", "a+c", "b+c", "a+b+c"]
    queries = [row["modalities"] for row in found.rows if row["metric"] == "MRR"]
    assert len(queries) == 9
    assert {"b → a", "c → a", "b+c → a", "a+b → c"} < set(queries)
    for row in found.rows:
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
    assert found.value("linear probe", "accuracy") > 0.9
    # Noise alone: about a third.
    assert found.value("linear probe", "accuracy", "c") < 0.6
    with pytest.raises(KeyError, match="no accuracy of retrieval"):
        found.value("retrieval", "accuracy")


def test_settings_can_be_chosen_without_the_test_split(runs) -> None:
    found = evaluate(runs[0], probes=["linear"], split="validation", **QUIET)
    assert found.about["split"] == "validation"
    assert {row["samples"] for row in found.rows} == {40}
    assert "over validation samples" in found.interval
    assert found.rows != evaluate(runs[0], probes=["linear"], **QUIET).rows
    with pytest.raises(train.RunError, match="not on 'train'"):
        evaluate(runs[0], split="train", **QUIET)


def test_evaluation_repeats(runs) -> None:
    assert evaluate(runs[0], **QUIET).rows == evaluate(train.open_run(runs[0].path), **QUIET).rows


def test_intervals_over_seeds_are_student_s(runs) -> None:
    from scipy import stats

    together = evaluate(runs, probes=["linear"], **QUIET)
    alone = [evaluate(run, probes=["linear"], **QUIET) for run in runs]
    assert "Student's t over 3 runs" in together.interval
    for row in together.rows:
        values = [each.value(row["task"], row["metric"], row["modalities"]) for each in alone]
        assert row["value"] == pytest.approx(np.mean(values))
        low, high = (
            stats.t.interval(0.95, 2, np.mean(values), stats.sem(values)) if np.ptp(values) else (values[0],) * 2
        )
        assert row["low"] == pytest.approx(low)
        assert row["high"] == pytest.approx(high)
    other = train.fit("ova-ib", runs[0].config.data, seed=3, **{**SETTINGS, "epochs": 1})
    with pytest.raises(train.RunError, match="may differ in their seed alone, but: epochs 3 and not 1"):
        evaluate([runs[0], other], **QUIET)


def test_one_run_twice_is_not_two_seeds(runs) -> None:
    with pytest.raises(train.RunError, match="must be of different seeds, got 0, 0"):
        evaluate([runs[0], runs[0]], **QUIET)


def test_one_modality_and_few_samples_can_be_embedded(runs, tmp_path, capsys) -> None:
    np.savez(tmp_path / "one.npz", a=views()["a"][:2])
    arguments = ["embed", str(runs[0].path), "--data", f"npz:{tmp_path / 'one.npz'}", "--output", f"{tmp_path}/e.npz"]
    assert command(arguments) == 0
    with torch.no_grad():
        expected = runs[0].module({"a": torch.from_numpy(views()["a"][:2])})["a"]
    assert np.array_equal(np.load(tmp_path / "e.npz")["a"], expected.numpy())


def test_the_bootstrap_covers_the_truth() -> None:
    """Of intervals for a share of 0.7 among 100 samples, about 95% hold it."""
    from mibfast.train.evaluation.evaluation import _rows
    from mibfast.train.evaluation.probes import Probed

    generator = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        hits = (generator.random(100) < 0.7).astype(float)
        (row,) = _rows([{("x", "y"): Probed({"accuracy": (hits, np.ones(100))})}])
        held += row["low"] <= 0.7 <= row["high"]
    assert 0.88 <= held / 200 <= 0.99


def test_regression_of_one_target_and_of_several(npz) -> None:
    generator = np.random.default_rng(1)
    hidden = generator.standard_normal((300, 3))
    noise = 0.1 * generator.standard_normal((300, 3))
    for targets in (100 + 50 * hidden[:, 0], hidden):
        arrays = data.from_arrays({"x": hidden, "y": hidden + noise}, targets)
        run = train.fit("clip", arrays, **{**SETTINGS, "epochs": 20})
        found = evaluate(run, retrieval=False, **QUIET)
        assert {row["metric"] for row in found.rows} == {"MSE", "R2"}
        assert found.value("linear probe", "R2") > 0.6
        spread = targets[run.data.indices("test").numpy()].var(0).mean()
        assert found.value("linear probe", "MSE") == pytest.approx(
            (1 - found.value("linear probe", "R2")) * spread, rel=1e-6
        )


def test_probes_are_those_of_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import r2_score
    from sklearn.preprocessing import StandardScaler

    generator = np.random.default_rng(0)
    x = generator.standard_normal((200, 6)) * np.arange(1, 7)
    y = (x[:, 0] + generator.standard_normal(200) > 0).astype(int)
    scaler = StandardScaler().fit(x[:150])
    expected = LogisticRegression(max_iter=2000).fit(scaler.transform(x[:150]), y[:150])
    found = probe("linear", "classification", (x[:150], y[:150]), (x[150:], y[150:]))
    assert found.value("accuracy") == expected.score(scaler.transform(x[150:]), y[150:])
    target = x @ np.ones(6) + generator.standard_normal(200)
    found = probe("linear", "regression", (x[:150], target[:150]), (x[150:], target[150:]))
    assert found.value("R2") > 0.97
    from sklearn.linear_model import Ridge

    centred = (target[:150] - target[:150].mean()) / target[:150].std()
    predicted = Ridge().fit(scaler.transform(x[:150]), centred).predict(scaler.transform(x[150:]))
    predicted = predicted * target[:150].std() + target[:150].mean()
    assert found.value("R2") == pytest.approx(r2_score(target[150:], predicted))


def ranked(scores: torch.Tensor):
    """A method's retrieval by scores [Q, C] that are given."""
    return lambda candidates, context, k: scores.topk(k, dim=1).indices


def test_retrieval_metrics_are_those_of_counting() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(20, 30, generator=generator) - 10
    own = torch.randperm(30, generator=generator)[:20]
    classes = torch.randint(3, (20,), generator=generator), torch.randint(3, (30,), generator=generator)
    found = retrieved(ranked(scores), torch.zeros(30, 1), [torch.zeros(20, 1)], own, classes)
    ranks = 1 + (scores > scores.gather(1, own[:, None])).sum(1).double()
    assert found.value("MRR") == pytest.approx(float((1 / ranks).mean()))
    for k in (1, 5, 10):
        assert found.value(f"R@{k}") == pytest.approx(float((ranks <= k).double().mean()))
    precisions = []
    for query in range(20):
        relevant = classes[1][scores[query].argsort(descending=True)] == classes[0][query]
        places = relevant.nonzero()[:, 0] + 1
        precisions.append(float((torch.arange(1, len(places) + 1) / places).mean()))
    assert found.value("mAP") == pytest.approx(np.mean(precisions))


def test_what_is_not_among_the_best_thousand_is_not_found() -> None:
    scores = -torch.arange(1200.0).expand(2, 1200)
    found = retrieved(ranked(scores), torch.zeros(1200, 1), [torch.zeros(2, 1)], torch.tensor([999, 1000]))
    np.testing.assert_allclose(found.metrics["MRR"][0], [1 / 1000, 0.0])
    assert "mAP" not in found.metrics


def test_retrieval_finds_what_it_should() -> None:
    eye = torch.eye(10)
    # A second embedding that is close to the first, not the same: two that are span nothing.
    close = eye + 0.1 * torch.randn(10, 10)
    for method in ALIGNMENTS.values():
        for context in ([eye], [close], [eye, close], [3 * close, 0.5 * eye]):
            assert torch.equal(method.retrieve(2 * eye, context, 1)[:, 0], torch.arange(10))
    # A context's span holds more candidates than its directions.
    both = ALIGNMENTS["ova-ib"].retrieve(eye, [eye, eye.roll(1, 0)], 2).sort(1).values
    assert torch.equal(both, torch.stack([torch.arange(10), torch.arange(10).roll(1)], 1).sort(1).values)


@pytest.mark.parametrize("scale", [1e20, 1e-20])
@pytest.mark.parametrize("name", ALIGNMENTS)
def test_retrieval_does_not_depend_on_the_size_of_embeddings(name, scale) -> None:
    """Squares of 1e20 are beyond float32, and those of 1e-20 at its end."""
    generator = torch.Generator().manual_seed(0)
    key, *context = (torch.randn(n, 12, generator=generator) for n in (30, 8, 8))
    # The ridge of a projection is an absolute one, so small embeddings differ there by definition.
    if name.startswith("ova-ib") and scale < 1:
        pytest.skip("a ridge of 1e-8 outweighs embeddings of 1e-20")
    retrieve = ALIGNMENTS[name].retrieve
    assert torch.equal(retrieve(scale * key, [scale * z for z in context], 5), retrieve(key, context, 5))


def test_pictures_of_large_embeddings_are_drawn_from_unit_rows(tmp_path, monkeypatch) -> None:
    from sklearn.manifold import TSNE

    drawn = []
    monkeypatch.setattr(TSNE, "fit_transform", lambda self, rows: drawn.append(rows) or rows[:, :2])
    z = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    draw_embeddings({"small": {"a": z}, "large": {"a": 1e20 * z}}, None, tmp_path / "x.png")
    small, large = drawn
    assert np.linalg.norm(large, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert large == pytest.approx(small, abs=1e-6)


def test_each_method_retrieves_by_its_own_score_at_any_scale() -> None:
    key, context = torch.randn(30, 12).double(), [torch.randn(8, 12).double() for _ in range(2)]
    unit = torch.nn.functional.normalize
    units = [unit(z, dim=1) for z in context]
    candidates = unit(key, dim=1)
    cosines = sum(z @ candidates.T for z in units)
    scores = {
        "ova-ib": F.projection_score(key, torch.stack(context, 1)),
        "gram": -F.gram_volume(candidates, units).T,
        "triangle": -F.triangle_area(candidates, *units).T,
        "symile": (units[0] * units[1]) @ candidates.T,
        **dict.fromkeys(("clip", "clip-ib", "siglip", "barlow-twins"), cosines),
    }
    for name, score in scores.items():
        assert torch.equal(ALIGNMENTS[name].retrieve(key, context, 5), score.topk(5, dim=1).indices), name
    for name in ("siglip", "triangle", "ova-ib"):
        alone = ALIGNMENTS[name].retrieve(key, context[:1], 5)
        cosine = units[0] @ candidates.T
        assert torch.equal(alone, (cosine.abs() if name == "ova-ib" else cosine).topk(5, dim=1).indices), name


def test_learned_projectors_retrieve_by_what_they_predict(tmp_path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, **views(100))
    run = train.fit("ova-ib-mlp", f"npz:{path}", output=tmp_path / "run", **SETTINGS)
    found = evaluate(run, probes=(), progress=False)
    z = {name: each.double() for name, each in run.embed("test").items()}
    run.module.double()
    names = list(z)
    others = [z[name] for name in names[:-1]]
    with torch.no_grad():
        predicted = run.module.loss.predict(len(names) - 1, others)
    cosines = torch.nn.functional.cosine_similarity(predicted[:, None], z[names[-1]][None], dim=2)
    ranks = 1 + (cosines > cosines.diagonal()[:, None]).sum(1).double()
    assert found.value("retrieval", "MRR", f"{'+'.join(names[:-1])} → {names[-1]}") == pytest.approx(
        float((1 / ranks).mean())
    )
    # The loss is the InfoNCE of these cosines, each modality its own perceptron.
    with pytest.raises(AssertionError):
        torch.testing.assert_close(predicted, run.module.loss.predict(0, others))


def test_ova_ib_retrieves_by_the_ridge_that_it_was_trained_with(npz, tmp_path) -> None:
    run = train.fit("ova-ib", npz, output=tmp_path / "run", loss={"ridge": 30.0, "beta": 0.0}, **SETTINGS)
    found = evaluate(run, probes=(), progress=False)
    z = run.embed("test")
    scores = F.projection_score(z["c"], torch.stack([z["a"], z["b"]], 1), 30.0)
    ranks = 1 + (scores > scores.diagonal()[:, None]).sum(1).double()
    assert found.value("retrieval", "MRR", "a+b → c") == pytest.approx(float((1 / ranks).mean()), rel=1e-6)
    other = F.projection_score(z["c"], torch.stack([z["a"], z["b"]], 1))
    assert not torch.equal(scores.argsort(1), other.argsort(1))


def test_ties_are_no_better_than_chance(tmp_path) -> None:
    """Embeddings that all coincide: the right candidate comes at a random place."""
    views = np.zeros((200, 4), np.float32)
    path = tmp_path / "x.npz"
    np.savez(path, a=views, b=views)
    run = train.fit("clip", f"npz:{path}", output=tmp_path / "run", epochs=1, batch_size=16, features=4, progress=False)
    found = evaluate(run, progress=False)
    assert found.value("retrieval", "R@1") <= 0.1
    assert 0.05 < found.value("retrieval", "MRR") < 0.2


@pytest.mark.parametrize(
    ("labels", "wanted", "message"),
    [
        (np.array([0.5, 1.0, 2.0, 3.0]), "classification", "hold numbers that are not whole"),
        (np.array(["a", "b", "a", "b"]), "regression", "they hold strings"),
        (np.arange(4), "auto", "4 classes among 4 samples"),
        (np.zeros(4, int), "classification", "1 classes among 4 samples"),
        (np.zeros(4), "auto", "a target never varies"),
        (np.zeros((4, 2)), "classification", "numbers that are not whole"),
    ],
)
def test_labels_that_do_not_fit_the_task(labels, wanted, message) -> None:
    with pytest.raises(data.DataError, match=message):
        task_of(labels, wanted)


def test_labels_that_fit() -> None:
    assert task_of(np.array([0, 1, 0, 1])) == "classification"
    assert task_of(np.array(["x", "y", "x", "y"])) == "classification"
    assert task_of(np.array([0.0, 1.0, 0.0, 1.0])) == "regression"
    assert task_of(np.array([0.0, 1.0, 0.0, 1.0]), "classification") == "classification"
    assert task_of(np.array([0, 1, 0, 1]), "regression") == "regression"


def test_string_labels_and_no_labels(tmp_path) -> None:
    content = views()
    names = np.array(["cat", "dog", "eel"])[content.pop("labels")]
    run = train.fit("clip", data.from_arrays(content, names), output=tmp_path / "named", **SETTINGS)
    assert evaluate(run, probes=["linear"], retrieval=False, **QUIET).value("linear probe", "accuracy") > 0.8
    run = train.fit("clip", data.from_arrays(content), **SETTINGS)
    assert {row["task"] for row in evaluate(run, **QUIET).rows} == {"retrieval"}
    with pytest.raises(data.DataError, match="classification needs labels, and there are none"):
        evaluate(run, task="classification", **QUIET)
    with pytest.raises(data.DataError, match="nothing to evaluate"):
        evaluate(run, retrieval=False, **QUIET)


@pytest.mark.parametrize(
    "labels",
    [np.arange(200), np.arange(200).astype(str), np.full(200, 7), np.full(200, 0.5)],
    ids=["ids", "ids as strings", "one class", "one target"],
)
def test_labels_that_no_probe_fits_stand_in_the_way_of_probes_alone(tmp_path, capsys, labels) -> None:
    """Retrieval and embeddings need none; what is left out is said."""
    content = views()
    del content["labels"]
    np.savez(tmp_path / "x.npz", **content, labels=labels)
    run, name = str(tmp_path / "run"), f"npz:{tmp_path / 'x.npz'}"
    small = ["--epochs", "1", "--features", "8"]
    assert command(["fit", "clip", "--data", name, "--output", run, *small]) == 0
    said = capsys.readouterr()
    assert "pairwise CLIP: alignment, without labels, of a, b, c; 120 training, 40 validation samples" in said.err
    assert "x.npz, alignment: 1 epochs" in said.out
    for probes in ("none", "both"):
        assert command(["evaluate", run, "--probe", probes]) == 0
        said = capsys.readouterr()
        assert ("no probes: " in said.err) == (probes == "both")
        assert "retrieval" in said.out
        written = json.loads((tmp_path / "run" / "evaluation" / "test" / "evaluation.json").read_text())
        assert {row["task"] for row in written["rows"]} == {"retrieval"}
        assert len(written["left_out"]) == (probes == "both")
    task = "regression" if labels.dtype.kind == "f" else "classification"
    assert command(["evaluate", run, "--task", task]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert command(["embed", run, "--output", str(tmp_path / "e.npz")]) == 0
    assert np.array_equal(np.load(tmp_path / "e.npz")["labels"], labels)
    with pytest.raises(data.DataError, match=r"nothing to evaluate: .*labels"):
        evaluate(train.open_run(run), retrieval=False, **QUIET)
    compare = ["compare", "--methods", "clip", "--data", name, "--seeds", "1", "--no-tune", "--epochs", "1"]
    assert command([*compare, "--no-every-combination", "--output", str(tmp_path / "compared")]) == 0
    said = capsys.readouterr()
    assert "no probes: " in said.err
    assert "retrieval MRR" in " ".join(said.out.split())


def test_other_data_with_some_of_the_modalities(runs, tmp_path) -> None:
    content = views(100, seed=0)
    del content["a"]
    np.savez(tmp_path / "new.npz", **content)
    run = train.open_run(runs[0].path, data=f"npz:{tmp_path / 'new.npz'}")
    found = evaluate(run, probes=["linear"], **QUIET)
    assert {row["modalities"] for row in found.rows} == {"b", "c", "b+c", "b → c", "c → b"}
    # Standardised as in training, whatever the new data's own spread.
    z = run.embed("all")["b"]
    views_of_it = {"b": torch.from_numpy(content["b"])}
    with torch.no_grad():
        assert torch.equal(runs[0].module(views_of_it)["b"], z)
    np.savez(tmp_path / "wide.npz", **{**content, "b": np.zeros((100, 6))})
    with pytest.raises(data.DataError, match=r"modality 'b' has samples \[6\], and the run was trained on \[5\]"):
        train.open_run(runs[0].path, data=f"npz:{tmp_path / 'wide.npz'}")
    np.savez(tmp_path / "other.npz", x=np.zeros((100, 5)), y=np.zeros((100, 5)))
    with pytest.raises(data.DataError, match="has none of the run's modalities a, b, c; got x, y"):
        train.open_run(runs[0].path, data=f"npz:{tmp_path / 'other.npz'}")


def test_the_command_leaves_a_table_csv_json_and_a_picture(runs, tmp_path, capsys) -> None:
    path = runs[0].path
    assert command(["evaluate", str(path), "--probe", "linear"]) == 0
    out = capsys.readouterr().out
    assert "linear probe" in out
    assert "a+b+c" in out
    assert "95% bootstrap intervals over test samples" in out
    with open(path / "evaluation" / "test" / "evaluation.csv") as file:
        rows = list(csv.DictReader(file))
    content = json.loads((path / "evaluation" / "test" / "evaluation.json").read_text())
    assert [float(row["value"]) for row in rows] == [row["value"] for row in content["rows"]]
    assert {row["samples"] for row in content["rows"]} == {40}
    import matplotlib.image

    assert matplotlib.image.imread(path / "evaluation" / "test" / "evaluation.png").std() > 0.01
    seeds = [str(run.path) for run in runs]
    assert command(["evaluate", *seeds, "--probe", "none", "--output", str(tmp_path / "three")]) == 0
    assert json.loads((tmp_path / "three" / "evaluation.json").read_text())["runs"] == seeds
    capsys.readouterr()
    for arguments, message in (
        (["evaluate", str(path), "--probe", "deep"], "--probe must be one of linear, mlp, both, none, got 'deep'"),
        (["evaluate", str(path), "--task", "sorting"], "--task must be one of auto, classification, regression"),
        (["evaluate", str(path), "--task", "regression", "--data", "npz:none"], "No such file"),
        (["embed", str(path), "--output", str(tmp_path / "x.npz"), "--split", "dev"], "unknown split 'dev'"),
        (["embed", str(path), "--output", str(tmp_path / "three")], "three exists and is not empty"),
    ):
        assert command(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["x.npz", "x.safetensors", "folder"])
@pytest.mark.parametrize("split", ["all", "test"])
def test_embeddings_are_written_whole(runs, tmp_path, name, split, monkeypatch) -> None:
    monkeypatch.setattr("mibfast.train.fitting.run.EMBEDDED_ROWS", 7)
    run = runs[0]
    shapes = write_embeddings(run, tmp_path / name, split=split, **QUIET)
    assert not list(tmp_path.rglob(".*"))
    if name == "x.npz":
        found = dict(np.load(tmp_path / name))
    elif name == "x.safetensors":
        from safetensors.numpy import load_file

        found = load_file(tmp_path / name)
    else:
        found = {path.stem: np.load(path) for path in (tmp_path / name).glob("*.npy")}
    assert {key: array.shape for key, array in found.items()} == shapes
    expected = run.embed(split)
    for modality, z in expected.items():
        assert np.array_equal(found[modality], z.numpy())
    assert np.array_equal(found["labels"], run.data.labels[run.data.indices(split).numpy()])
    assert ("split" in found) == (split == "all" and name != "x.safetensors")
    if name != "x.safetensors" and split == "all":
        again = data.load(f"{'npz' if name == 'x.npz' else 'dir'}:{tmp_path / name}", seed=7)
        # In the same split, whatever the seed: what the encoders were trained on is not tested on.
        assert all(torch.equal(again.splits[part], run.data.splits[part]) for part in run.data.splits)
        assert train.fit("clip", again, **{**SETTINGS, "epochs": 1}).epochs


def test_representations_come_before_the_heads(runs, tmp_path) -> None:
    write_embeddings(runs[0], tmp_path / "r.npz", representations=True, **QUIET)
    found = np.load(tmp_path / "r.npz")["a"]
    assert np.array_equal(found, runs[0].embed("all", representations=True)["a"].numpy())
    assert not np.array_equal(found, runs[0].embed("all")["a"].numpy())


def test_a_sample_that_is_not_finite_is_not_embedded(runs, tmp_path) -> None:
    content = views()
    content["b"][123, 1] = np.inf
    np.savez(tmp_path / "bad.npz", **content)
    run = train.open_run(runs[0].path, data=f"npz:{tmp_path / 'bad.npz'}")
    with pytest.raises(data.DataError, match="modality 'b' holds NaN or infinity in sample 123"):
        write_embeddings(run, tmp_path / "folder", **QUIET)
    assert list((tmp_path / "folder").iterdir()) == []


def test_the_uci_archive_is_probed_as_well_as_documented() -> None:
    """The settings of docs/own-data.md, which the validation split chose; a quarter is held out, three seeds."""
    root = os.environ.get("MIBFAST_DATA")
    if root is None:
        pytest.skip("MIBFAST_DATA names no folder of real data")
    views = ("fou", "fac", "kar", "pix", "zer", "mor")
    settings = {"modalities": views, "split": (0.7, 0.05, 0.25), "batch_size": 128, "depth": 2}
    loss = {"temperature": 0.1, "beta": 0.1}
    settings = {**settings, "loss": loss, "progress": False}
    runs = [train.fit("ova-ib", f"mfeat:{root}/mfeat", seed=seed, **settings) for seed in range(3)]
    found = evaluate(runs, probes=["linear"], retrieval=False, combinations="whole", **QUIET)
    assert found.value("linear probe", "accuracy") >= 0.985
