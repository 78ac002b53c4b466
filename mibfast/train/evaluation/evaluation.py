"""Evaluation of runs: alignments by probes and retrieval, fusions by their predictions."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import mibfast
from mibfast import _check
from mibfast.data import DataError, MultimodalData
from mibfast.losses import LearnedProjectorOVAIBLoss, OVAIBLoss
from mibfast.train import pictures
from mibfast.train.errors import RunError
from mibfast.train.evaluation.probes import PROBES, Probed, probe
from mibfast.train.evaluation.retrieval import retrieved
from mibfast.train.evaluation.scores import Scored, scored
from mibfast.train.fitting.modules import AlignmentModule
from mibfast.train.fitting.run import Run
from mibfast.train.fitting.targets import task_of
from mibfast.train.folder import RunFolder
from mibfast.train.methods import Alignment, by_cosines, by_projection
from mibfast.train.progress import Report, reported

_PROBED_SAMPLES = 20_000
_POOL = 1000
_QUERIES = 1000
# Samples that a probe needs to be fitted: the MLP probe sets a tenth of them aside to stop early.
_FEWEST_FITTED = 10
_RESAMPLES = 1000
_CONFIDENCE = 0.95
# Up to this many modalities, all combinations are evaluated; beyond, single ones, all but one, and all.
_ALL_COMBINATIONS = 6


@dataclass(frozen=True)
class Evaluation:
    """The result of :func:`evaluate`.

    Attributes
    ----------
    rows : list of dict
        `task` ("linear probe", "MLP probe", "retrieval"; a fusion's own), `modalities`, `metric`, `value`, the ends
        `low` and `high` of a 95% confidence interval, and the number of `samples` that were scored.
    title : str
    interval : str
        What the intervals stand for.
    about : dict
        Runs, data, samples, versions, date, and the rows left out because too few samples have the modalities.
    """

    rows: list[dict[str, Any]]
    title: str
    interval: str
    about: dict[str, Any]

    def value(self, task: str, metric: str, modalities: str | None = None) -> float:
        """Return a figure; by default that of all modalities, or of the last combination that enough samples have.

        Examples
        --------
        >>> from mibfast.train.evaluation import Evaluation
        >>> row = {"task": "linear probe", "modalities": "a+b", "metric": "accuracy", "value": 0.9}
        >>> Evaluation([{**row, "low": 0.8, "high": 0.95}], "", "", {}).value("linear probe", "accuracy")
        0.9
        """
        rows = [row for row in self.rows if (row["task"], row["metric"]) == (task, metric)]
        if modalities is not None:
            rows = [row for row in rows if row["modalities"] == modalities]
        if not rows:
            raise KeyError(f"no {metric} of {task}" + (f" for {modalities}" if modalities else ""))
        # Larger combinations come later.
        return float(rows[-1]["value"])

    def write(self, folder: RunFolder, place: str = "") -> None:
        """Write `evaluation.csv`, `.json` and `.png`; RunError where they cannot be written."""
        prefix = f"{place}/" if place else ""
        folder.write_table(f"{prefix}evaluation.csv", self.rows)
        folder.write(f"{prefix}evaluation.png", lambda path: pictures.draw_evaluation(self.rows, self.title, path))
        folder.write_json(
            f"{prefix}evaluation.json",
            {"title": self.title, "interval": self.interval, **self.about, "rows": self.rows},
        )


def evaluate(
    runs: Run | Sequence[Run],
    *,
    probes: Sequence[str] = PROBES,
    task: str = "auto",
    retrieval: bool = True,
    pool: int = _POOL,
    split: str = "test",
    combinations: str = "every",
    progress: bool | Report = True,
) -> Evaluation:
    """Evaluate a run, or several that differ in their seed, on the test split or, to choose settings, on validation.

    A fusion is scored by its predictions for the samples that have all modalities, see
    :func:`mibfast.train.evaluation.scores.scored`. All else is about alignments.

    Probes are fitted to the training split's representations (before the projection heads) of every combination of
    modalities, concatenated; of more than 20,000 samples a random choice is taken, in fitting and in scoring. Retrieval
    finds a sample's missing modality in a pool of candidates by the method's own score, given any context of the other
    modalities, see :func:`mibfast.train.evaluation.retrieval.retrieved`: R@k and MRR of the sample's own, mAP of its
    class.

    Where samples lack modalities, a probe is fitted to and scored on those that have all of its combination, and
    queries and candidates have both the context and what is missing; a row's `samples` says how many were scored. Rows
    of too few are left out (fewer than 10 in fitting or 2 in scoring, labels that do not vary), which is said. So are
    all probes where labels fit no task, as ids do: retrieval needs none.

    Parameters
    ----------
    runs : Run or sequence of Run
        Intervals are a bootstrap over samples for one, Student's t over the runs for several.
    probes : sequence of {"linear", "mlp"}
        See :func:`mibfast.train.evaluation.probes.probe`. None are fitted where the data have no labels.
    task : {"auto", "classification", "regression"}
    retrieval : bool
    pool : int
        Candidates, at most: a random choice of the split's samples, of which at most 1000 are queries as well.
    split : {"test", "validation"}
        Samples to score on. Settings should be chosen by the validation split alone.
    combinations : {"every", "whole"}
        Every combination of modalities and every context, or all modalities and all others alone.
    progress : bool or Report

    Raises
    ------
    RunError
        For runs that differ in more than their seed.
    DataError
        For labels that do not fit the task, or where there are none and a task is asked for, and where nothing is left
        to evaluate.
    """
    evaluated = [runs] if isinstance(runs, Run) else list(runs)
    report = reported("evaluate", progress)
    _check.boolean("evaluate", "retrieval", retrieval)
    first = evaluated[0]
    for other in evaluated[1:]:
        differences = dataclasses.replace(first.config, seed=0).differences(dataclasses.replace(other.config, seed=0))
        if differences:
            raise RunError(f"runs evaluated together may differ in their seed alone, but: {', '.join(differences)}")
    if combinations not in ("every", "whole"):
        raise RunError(f"combinations must be 'every' or 'whole', got {combinations!r}")
    if split not in ("test", "validation"):
        raise RunError(f"runs are evaluated on the test or the validation split, not on {split!r}")
    if pool < 2:
        raise RunError(f"pool must be at least 2, got {pool}")
    seeds = [run.config.seed for run in evaluated]
    if len(set(seeds)) < len(seeds):
        raise RunError(f"runs evaluated together must be of different seeds, got {', '.join(map(str, seeds))}")
    for name in probes:
        if name not in PROBES:
            raise RunError(f"unknown probe {name!r}; expected some of {', '.join(map(repr, PROBES))}")
    fusions = first.target is not None
    if first.target is not None and task not in ("auto", first.target.task):
        raise RunError(f"{first.method.title} was trained for {first.target.task}, not for {task}")
    left_out: dict[tuple[str, str], None] = {}
    tasks: list[str | None] = [None] * len(evaluated)
    if probes and not fusions:
        try:
            tasks = [probed_task(run.data, task) for run in evaluated]
        except DataError as error:
            if task != "auto":
                raise
            # Retrieval needs no labels, and works beside labels that are ids.
            report.say(f"no probes: {error}")
            left_out["probes:", str(error)] = None
    retrieval = retrieval and not fusions
    total = sum(
        fusions
        + (len(probes) * len(_combinations(list(run.data.views), combinations)) if each else 0)
        + (len(_queries(list(run.data.views), combinations)) if retrieval else 0)
        for run, each in zip(evaluated, tasks, strict=True)
    )
    results: list[dict[tuple[str, str], Probed | Scored]] = []
    with report.task("evaluating", max(total, 1)) as bar:
        for run, each in zip(evaluated, tasks, strict=True):
            result: dict[tuple[str, str], Probed | Scored] = {}
            parts: list[Iterator[tuple[tuple[str, str], Probed | Scored | None]]] = [
                _predicted(run, split, report) if fusions else iter(()),
                _probed(run, each, probes, split, combinations) if each else iter(()),
                _retrieved(run, pool, split, combinations) if retrieval else iter(()),
            ]
            for part in parts:
                for key, outcome in part:
                    if outcome is None:
                        left_out[key] = None
                    else:
                        result[key] = outcome
                    bar.advance(1, f"{key[0]} {key[1]}")
            results.append(result)
    # A row is kept where enough samples of every run have its modalities.
    results = [{key: each for key, each in result.items() if key not in left_out} for result in results]
    too_few = [" ".join(key) for key in left_out if key[0] != "probes:"]
    if too_few:
        report.say(f"left out, since too few samples have the modalities: {', '.join(too_few)}")
    rows = _rows(results)
    if not rows:
        why = "too few samples have the modalities" if too_few else "no labels to probe, and no retrieval asked for"
        why = "; ".join(" ".join(key) for key in left_out if key[0] == "probes:") or why
        raise DataError(f"{first.data.name}: nothing to evaluate: {why}")
    interval = (
        f"95% bootstrap intervals over {split} samples ({_RESAMPLES} resamples)"
        if len(evaluated) == 1
        else f"95% intervals of Student's t over {len(evaluated)} runs"
    )
    title = f"{first.method.title} on {first.data.name}" + (f", {len(evaluated)} seeds" if len(evaluated) > 1 else "")
    about = {
        "runs": [str(run.path) for run in evaluated],
        "data": first.data.name,
        "split": split,
        "samples_of_split": len(first.data.indices(split)),
        "left_out": [" ".join(key) for key in left_out],
        "date": datetime.date.today().isoformat(),
        "mibfast": mibfast.info()["versions"],
    }
    return Evaluation(rows, title, interval, about)


def _predicted(run: Run, split: str, report: Report) -> Iterator[tuple[tuple[str, str], Scored | None]]:
    assert run.target is not None
    names = list(run.data.views)
    indices = run.data.indices(split)
    indices = indices[run.data.has(indices, names)]
    key = run.target.task, "+".join(names)
    if run.data.labels is None:
        raise DataError(f"{run.data.name}: predictions are scored by labels, and there are none")
    if len(indices) < 2:
        yield key, None
        return
    try:
        scores = scored(run.target, run.predict_samples(indices), run.data.labels[indices.numpy()])
    except DataError as error:
        raise DataError(f"{run.data.name}: {error}") from error
    unlearned = len(indices) - len(scores.prediction)
    if unlearned:
        report.say(f"left out: {unlearned} of {len(indices)} {split} samples, of classes that training had not")
    yield key, scores


def probed_task(data: MultimodalData, wanted: str = "auto") -> str | None:
    """Return the task of probes, None without labels; DataError where labels fit no task, or do not vary."""
    if data.labels is None:
        if wanted != "auto":
            raise DataError(f"{data.name}: {wanted} needs labels, and there are none")
        return None
    try:
        task = task_of(data.labels, wanted)
    except DataError as error:
        raise DataError(f"{data.name}: {error}") from error
    if _constant(data.labels[data.indices("train").numpy()], task):
        raise DataError(f"{data.name}: labels do not vary in the training split, so there is nothing to probe")
    return task


def _combinations(names: Sequence[str], which: str) -> list[tuple[str, ...]]:
    if which == "whole":
        return [tuple(names)]
    sizes: Sequence[int] = range(1, len(names) + 1)
    if len(names) > _ALL_COMBINATIONS:
        sizes = [1, len(names) - 1, len(names)]
    return [each for size in sizes for each in itertools.combinations(names, size)]


def _queries(names: Sequence[str], which: str) -> list[tuple[str, tuple[str, ...]]]:
    """Return each modality to retrieve with each context of others, larger contexts last."""
    if len(names) < 2:
        return []
    queries = [
        (missing, context)
        for missing in names
        for context in _combinations([name for name in names if name != missing], which)
    ]
    return sorted(queries, key=lambda query: len(query[1]))


def _gathered(run: Run, indices: Tensor, *, representations: bool) -> dict[str, Tensor]:
    if not len(indices):
        return {name: torch.empty(0, run.config.features) for name in run.data.views}
    parts = list(run.embed_in_parts(indices, representations=representations))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _probed(
    run: Run, task: str, probes: Sequence[str], scored: str, which: str
) -> Iterator[tuple[tuple[str, str], Probed | None]]:
    assert run.data.labels is not None
    splits = {}
    for split in ("train", scored):
        chosen = run.data.sample(split, _PROBED_SAMPLES)
        labels = run.data.labels[chosen.numpy()]
        if task == "regression":
            labels = labels.astype(np.float64)
        splits[split] = chosen, _gathered(run, chosen, representations=True), labels
    for kind in probes:
        title = {"linear": "linear probe", "mlp": "MLP probe"}[kind]
        for names in _combinations(list(run.data.views), which):
            train, test = (
                (torch.cat([x[name][at] for name in names], dim=1).numpy(), labels[at.numpy()])
                for chosen, x, labels in splits.values()
                for at in [run.data.has(chosen, names)]
            )
            missing = not set(names).isdisjoint(run.data.presence)
            # Samples drawn from many may be of one class.
            too_few = _too_few(train[1], test[1], task) if missing else _constant(train[1], task)
            yield (title, "+".join(names)), None if too_few else probe(kind, task, train, test, run.config.seed)


def _too_few(fitted: NDArray[Any], scored: NDArray[Any], task: str) -> bool:
    if len(fitted) < _FEWEST_FITTED or len(scored) < 2:
        return True
    return _constant(fitted, task) or (task == "regression" and _constant(scored, task))


def _constant(labels: NDArray[Any], task: str) -> bool:
    return bool((np.ptp(labels, axis=0) == 0).any()) if task == "regression" else len(np.unique(labels)) < 2


def _retrieved(run: Run, pool: int, split: str, which: str) -> Iterator[tuple[tuple[str, str], Probed | None]]:
    # Pools are as large as possible: among few candidates, the right one is found more easily.
    pools = {
        (missing, context): run.data.sample(split, pool, [missing, *context])
        for missing, context in _queries(list(run.data.views), which)
    }
    embedded = torch.unique(torch.cat(list(pools.values()))) if pools else torch.empty(0, dtype=torch.int64)
    embeddings = _gathered(run, embedded, representations=False)
    for (missing, context), chosen in pools.items():
        key = "retrieval", f"{'+'.join(context)} → {missing}"
        if len(chosen) < 2 and run.data.presence:
            yield key, None
            continue
        at = torch.searchsorted(embedded, chosen)
        # Among equal scores the first candidate wins, so queries are drawn at random from the pool.
        queries = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))[:_QUERIES].sort().values
        classes = _classes(run, chosen)
        given = [embeddings[name][at[queries]] for name in context]
        sample_classes = None if classes is None else (classes[queries], classes)
        assert isinstance(run.module, AlignmentModule)
        assert isinstance(run.method, Alignment)
        retrieve, loss = run.method.retrieve, run.module.loss
        if isinstance(loss, OVAIBLoss):
            retrieve = partial(by_projection, ridge=loss.ridge)
        if isinstance(loss, LearnedProjectorOVAIBLoss) and len(context) == len(run.module.modalities) - 1:
            # A learned projector needs all other modalities; its prediction from them is then the query.
            with torch.no_grad():
                given = [loss.predict(run.module.modalities.index(missing), given)]
            retrieve = by_cosines
        yield key, retrieved(retrieve, embeddings[missing][at], given, queries, sample_classes)


def _classes(run: Run, samples: Tensor) -> Tensor | None:
    """Return the classes of samples as int64; None where labels are not classes."""
    labels = run.data.labels
    if labels is None or labels.dtype.kind == "f":
        return None
    return torch.from_numpy(np.unique(labels, return_inverse=True)[1])[samples]


def _rows(results: Sequence[Mapping[tuple[str, str], Probed | Scored]]) -> list[dict[str, Any]]:
    from scipy import stats

    rows = []
    resamples: dict[int, NDArray[Any]] = {}
    for key in results[0]:
        outcomes = [result[key] for result in results]
        for metric in outcomes[0].metrics:
            values = [float(outcome.value(metric)) for outcome in outcomes]
            if len(values) == 1:
                n = outcomes[0].size(metric)
                if n not in resamples:
                    resamples[n] = np.random.default_rng(0).integers(n, size=(_RESAMPLES, n), dtype=np.int32)
                with np.errstate(divide="ignore", invalid="ignore"):
                    spread = outcomes[0].value(metric, resamples[n])
                low, high = np.nanquantile(spread, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
            else:
                half = stats.t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1) * stats.sem(values)
                low, high = np.mean(values) - half, np.mean(values) + half
            rows.append(
                {
                    "task": key[0],
                    "modalities": key[1],
                    "metric": metric,
                    "value": float(np.mean(values)),
                    "low": float(low),
                    "high": float(high),
                    "samples": outcomes[0].size(metric),
                }
            )
    return rows


def loss_step_milliseconds(method: Alignment, embeddings: Mapping[str, Tensor], rounds: int = 30) -> dict[str, float]:
    """Return median milliseconds of the loss, forward and backward, fused and in eager PyTorch, interleaved."""
    views = {name: z.detach().clone().requires_grad_() for name, z in embeddings.items()}
    sizes = len(views), next(iter(views.values())).shape[1]
    steps = {"fused": method.loss(*sizes), "eager": method.loss(*sizes, backend="reference")}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, loss in steps.items():
            started = time.perf_counter()
            loss(views).backward()
            times[name].append(time.perf_counter() - started)
            for z in views.values():
                z.grad = None
    # The first round compiles.
    return {name: 1e3 * statistics.median(seconds[1:]) for name, seconds in times.items()}
